"""Checks of arguments that many builders share."""

from collections.abc import Mapping
from typing import Any, TypeVar

from vidtrain.errors import UsageError

_Value = TypeVar("_Value")


def choose(name: str, value: Any, choices: Mapping[Any, _Value]) -> _Value:
    """Returns the choice of that name.

    Raises:
        UsageError: There is none; the message lists those there are.
    """
    if value not in choices:
        raise UsageError(
            f"{name}={value} does not exist: choose from {', '.join(map(str, choices))}."
        )
    return choices[value]


def rate(name: str, value: float) -> float:
    """Returns a probability as it is.

    Raises:
        UsageError: It is outside [0, 1).
    """
    if not 0 <= value < 1:
        raise UsageError(
            f"{name}={value} is no rate: give a number from 0 up to, not including, 1."
        )
    return value
