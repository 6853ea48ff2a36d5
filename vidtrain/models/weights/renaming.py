"""Names of tensors rewritten by short tables of (pattern, replacement), applied in order."""

import re
from collections.abc import Callable, Iterable

from torch import Tensor

Rules = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]


def rename(name: str, rules: Rules) -> str:
    """Returns a name with every rule applied to it, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def renamed(state: dict[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Returns the same tensors under rewritten names; a name that no rule matches stays.

    Args:
        state: Tensors by name.
        rules: Patterns as `re.sub` takes them, and what stands in their place.
    """
    rules = tuple(rules)
    return {rename(name, rules): tensor for name, tensor in state.items()}
