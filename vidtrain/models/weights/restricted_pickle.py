"""Pickle files read without running what they ask for: only arrays, numbers and containers.

A pickle names functions and calls them. Here every name leads to one of the few harmless stand-ins
of `SAFE`, or is refused. NumPy's own functions are among those replaced, so that a size which a
file claims is compared with the bytes it holds before an array is made of them.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np


class RefusedPickle(pickle.UnpicklingError):
    """The file asks for something that is not among the safe names.

    Attributes:
        wanted: Dotted name of what it asks for.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(f"it wants to import {wanted}")
        self.wanted = wanted


class Ignored:
    """Stands for objects of other programs that hold no weights: settings, histories."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything and keeps nothing."""

    def __setstate__(self, state: Any) -> None:
        """Takes anything and keeps nothing."""


class _DType:
    """A type of numbers, or the note that the elements are something else."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        self.text = text.lstrip("<>=|")
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.order = ">" if order == ">" else "<"

    def numbers(self) -> np.dtype[Any] | None:
        """Returns the type of plain numbers; None for strings, objects and records."""
        if re.fullmatch("i[1248]|u[1248]|f[248]|b1", self.text):
            return np.dtype(self.order + self.text)
        return None


class Array:
    """An array of a pickle.

    Attributes:
        value: The array, or None if its elements are no numbers.
    """

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Fills it from NumPy's (version, shape, type, column order, bytes)."""
        shape, dtype, columns_first, raw = state[-4:]
        self.value = _array(_as_bytes(raw), dtype, shape, "F" if columns_first else "C")


def _array(
    raw: Any, dtype: _DType, shape: tuple[int, ...], order: str
) -> np.ndarray[Any, Any] | None:
    numbers = dtype.numbers()
    if numbers is None or not isinstance(raw, (bytes, bytearray)):
        return None
    # Refuses a shape that the bytes do not fill.
    return np.frombuffer(raw, numbers).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(raw: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> Array:
    made = Array()
    made.value = _array(raw, dtype, shape, order)
    return made


def _scalar(dtype: _DType, raw: Any = b"") -> Any:
    numbers = dtype.numbers()
    return None if numbers is None else np.frombuffer(_as_bytes(raw), numbers, count=1)[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedPickle(f"the text encoding {encoding}")
    return text.encode("latin1")


def _as_bytes(raw: Any) -> Any:
    """Bytes of Python 2 are text here, one character for each byte."""
    return raw.encode("latin1") if isinstance(raw, str) else raw


class _Call:
    """A function that a pickle can call but, other than a plain one, not give attributes to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise RefusedPickle("a function in order to change it")


_NUMPY = {
    "core.multiarray._reconstruct": _Call(_reconstruct),
    "core.multiarray.scalar": _Call(_scalar),
    "core.numeric._frombuffer": _Call(_from_buffer),
}
# Dotted name in a file -> what stands for it.
SAFE: dict[str, Callable[..., Any]] = {
    **{f"numpy.{name}": made for name, made in _NUMPY.items()},
    **{f"numpy._{name}": made for name, made in _NUMPY.items()},
    "numpy.ndarray": Array,
    "numpy.dtype": _DType,
    "argparse.Namespace": Ignored,
    "mmengine.logging.history_buffer.HistoryBuffer": Ignored,
}
_PLAIN = {
    "_codecs.encode": _Call(_encode),
    "builtins.bytes": _Call(lambda: b""),  # how Python 3 writes empty bytes for Python 2
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name.

        Raises:
            RefusedPickle: Nothing does.
        """
        wanted = f"{module.replace('__builtin__', 'builtins')}.{name}"  # the name in Python 2
        try:
            return SAFE.get(wanted) or _PLAIN[wanted]
        except KeyError:
            raise RefusedPickle(wanted) from None


def load(file: IO[bytes]) -> Any:
    """Returns the object of a pickle, of Python 2 or 3.

    Args:
        file: Opened for reading bytes.

    Returns:
        Containers, numbers and text; `Array` for arrays.

    Raises:
        RefusedPickle: The file wants something imported that is not in `SAFE`.
        Exception: Of many types; the file is damaged.
    """
    return _Unpickler(file, encoding="latin1").load()
