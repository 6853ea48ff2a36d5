"""Turns a `_target_` into a call.

Only allow-listed packages may be called, because a config can come from a run folder that somebody
else made. Every argument is checked against the target's signature, with the config key named.
"""

import functools
import importlib
import inspect
import os
import typing
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from vidtrain.errors import InputError, UsageError, did_you_mean

ALLOWED = ("vidtrain.models.", "vidtrain.data.sources.", "vidtrain.data.clip_samplers.",
           "vidtrain.data.augment.", "vidtrain.data.multigrid.", "vidtrain.tasks.",
           "vidtrain.training.", "torch.optim.", "torch.nn.", "timm.optim.")  # fmt: skip
ALLOW_VARIABLE = "VIDTRAIN_ALLOW_TARGETS"


def component(node: dict[str, Any], where: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a node's target with the node's arguments and those given here.

    Args:
        node: `_target_` and plain arguments; arguments may be nodes themselves.
        where: Config key of the node, for messages.
        args: Positional arguments that do not come from config.
        kwargs: Keyword arguments that do not come from config.

    Raises:
        UsageError: Target not allowed or not found, unknown, missing or mistyped argument.
    """
    call = prepared(node, where, *args, **kwargs)
    try:
        return call(*args)
    except InputError:
        raise
    except ValueError as error:  # how libraries refuse a value
        raise UsageError(f"{where}: {node['_target_']} refuses its arguments: {error}") from error


def prepared(node: dict[str, Any], where: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Checks a node as `component` does and returns its call, which still takes `args`.

    For what is called often: the checks are done once.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise UsageError(f"{where} must be a node with _target_ and arguments, not {node!r}")
    target = locate(node["_target_"], where)
    settings = {
        key: component(value, f"{where}.{key}")
        if isinstance(value, dict) and "_target_" in value
        else value
        for key, value in node.items()
        if key != "_target_"
    }
    _check_names(target, node["_target_"], where, settings, args, kwargs)
    return functools.partial(target, **_typed(target, settings, where), **kwargs)


def locate(name: str, where: str) -> Callable[..., Any]:
    """Returns the function or class that a `_target_` names.

    Args:
        name: Dotted path.
        where: Config key of the node, for messages.

    Raises:
        UsageError: It is outside the allowed packages, or not there.
    """
    extra = [p.strip() for p in os.environ.get(ALLOW_VARIABLE, "").split(",") if p.strip()]
    allowed = (*ALLOWED, *(f"{package.rstrip('.')}." for package in extra))
    refused = UsageError(
        f"{where}._target_={name!r} is not in an allowed package ({', '.join(allowed)}); "
        f"to allow your own, set {ALLOW_VARIABLE}=package"
    )
    if not str(name).startswith(allowed):
        raise refused
    module, _, attribute = name.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{where}._target_={name!r} cannot be imported: {error}") from error
    # A module's attribute may be somebody else's function: what counts is where it was defined.
    if not f"{getattr(target, '__module__', '')}.".startswith(allowed) or not callable(target):
        raise refused
    return target


def _check_names(
    target: Callable[..., Any], name: str, where: str, settings: dict, args: tuple, kwargs: dict
) -> None:
    signature = inspect.signature(target)
    known = [p for p in signature.parameters if p not in kwargs]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in settings:
        if key not in known and not takes_any:
            hint = did_you_mean(key, known) or f"it takes {known}"
            raise UsageError(f"{where}.{key} is not an argument of {name}; {hint}")
    try:
        signature.bind(*args, **settings, **kwargs)
    except TypeError as error:
        raise UsageError(f"{where}: {name}: {error}") from error


def _typed(target: Callable[..., Any], settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the settings converted to the annotated types, or names key, value and type."""
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # annotations that only a type checker can resolve
        hints = {}
    typed = {}
    for key, value in settings.items():
        try:
            adapter = TypeAdapter(
                hints.get(key, Any), config=ConfigDict(arbitrary_types_allowed=True)
            )
        except PydanticUserError:  # dataclasses and the like bring their own configuration
            adapter = TypeAdapter(Any)
        try:
            typed[key] = adapter.validate_python(value)
        except ValidationError:
            if typing.get_origin(hints[key]) is typing.Literal:
                choices = ", ".join(map(str, typing.get_args(hints[key])))
                raise UsageError(f"{where}.{key}={value!r} must be one of {choices}") from None
            wanted = hints[key].__name__ if inspect.isclass(hints[key]) else str(hints[key])
            raise UsageError(
                f"{where}.{key}={value!r}: expected {wanted}, got {type(value).__name__}"
            ) from None
    return typed
