"""Pickle files read without running what they ask for: only arrays, numbers and containers.

A pickle names functions and calls them. Here every name leads to one of the few harmless stand-ins
of `SAFE`, or is refused. NumPy's own functions are among those replaced, so that a size which a
file claims is compared with the bytes it holds before an array is made of them. For the same reason
the reader is Python's slower one, whose instructions can be guarded: the other makes a list as long
as the highest number that a file gives to a value.
"""

import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import IO, Any, ClassVar

import numpy as np


class RefusedPickle(pickle.UnpicklingError):
    """The file asks for something that is not among the safe names.

    Attributes:
        wanted: Dotted name of what it asks for.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(f"it wants to import {wanted}")
        self.wanted = wanted


def shortened(key: Any) -> str:
    """Returns a key or name of a file for a message; anything else may be endless as text."""
    if isinstance(key, str | bytes):
        return str(key[:60])
    return str(key) if isinstance(key, int) and key.bit_length() <= 64 else type(key).__name__


class Ignored:
    """Stands for objects of other programs that hold no weights: settings, histories."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything and keeps nothing."""

    def __setstate__(self, state: Any) -> None:
        """Takes anything and keeps nothing."""


class _DType:
    """A type of numbers, or the note that the elements are something else."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        self.text = text.lstrip("<>=|") if isinstance(text, str) else ""  # a record
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
        raise RefusedPickle(f"the text encoding {shortened(encoding)}")
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


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuses keys that take long to hash: tuples within tuples, numbers of many digits."""
    for key in keys:
        if not isinstance(key, str | bytes | int):
            raise pickle.UnpicklingError(f"a key of a dict is a {type(key).__name__}")
        if isinstance(key, int) and key.bit_length() > 64:
            raise pickle.UnpicklingError("a key of a dict is a number of more than 64 bits")


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        _check_keys((key,))
        made[key] = value
    return made


_PLAIN = {
    "_codecs.encode": _Call(_encode),
    "builtins.bytes": _Call(lambda: b""),  # how Python 3 writes empty bytes for Python 2
    "builtins.frozenset": Ignored,
    "builtins.set": Ignored,
    "collections.OrderedDict": _Call(_ordered),
}


class _File:
    """A file that refuses to read more than it has, which would take the memory first."""

    def __init__(self, file: IO[bytes]) -> None:
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.file = file
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self.size:
            raise pickle.UnpicklingError(f"it claims {count} bytes of a file of {self.size}")
        return self.file.read(count)


class _Memo(dict[int, Any]):
    """The values that a pickle gives numbers to, in order to name them again."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __setitem__(self, number: int, value: Any) -> None:
        if number > self.size:
            raise pickle.UnpicklingError(f"it has a value {number} in a file of {self.size} bytes")
        super().__setitem__(number, value)


class _Unpickler(pickle._Unpickler):
    stack: list[Any]  # since the last mark
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: _File) -> None:
        super().__init__(file, encoding="latin1")
        self.memo = _Memo(file.size)
        self.left = 3 * file.size  # bytes that calls may be given; what is not said twice takes 2

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name, or raises RefusedPickle."""
        wanted = f"{module.replace('__builtin__', 'builtins')}.{name}"  # the name in Python 2
        try:
            return SAFE.get(wanted) or _PLAIN[wanted]
        except KeyError:
            raise RefusedPickle(shortened(wanted)) from None

    def spend(self, given: Any) -> None:
        """Refuses a file that has the same bytes copied again and again."""
        if isinstance(given, tuple | list):
            self.left -= sum(len(part) for part in given if isinstance(part, str | bytes))
        if self.left < 0:
            raise pickle.UnpicklingError("its arrays claim more bytes than it holds")

    def get_extension(self, code: int) -> None:
        """Refuses what is named by a number that only the program that wrote it knows."""
        raise RefusedPickle(f"an object of the number {code}")

    def load_additems(self) -> None:
        """Drops what goes into a set: no weights lie there, and hashing it may take for ever."""
        self.pop_mark()

    def load_empty_set(self) -> None:
        """Makes what stands for a set."""
        self.append(Ignored())

    def load_frozenset(self) -> None:
        """Makes what stands for a frozen set."""
        self.pop_mark()
        self.append(Ignored())

    def load_bytearray8(self) -> None:
        """Reads a bytearray, without making one of the claimed length first."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch |= {
        pickle.ADDITEMS[0]: load_additems,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def _guarded(guard: Callable[[Any], None], instruction: bytes) -> Callable[[Any], None]:
    then = _Unpickler.dispatch[instruction[0]]

    def run(reader: _Unpickler) -> None:
        guard(reader)
        then(reader)

    return run


_GUARDS: dict[bytes, Callable[[_Unpickler], None]] = {
    pickle.SETITEM: lambda reader: _check_keys(reader.stack[-2:-1]),
    pickle.SETITEMS: lambda reader: _check_keys(reader.stack[::2]),
    pickle.DICT: lambda reader: _check_keys(reader.stack[::2]),
    pickle.REDUCE: lambda reader: reader.spend(reader.stack[-1]),
    pickle.BUILD: lambda reader: reader.spend(reader.stack[-1]),
    pickle.INST: lambda reader: reader.spend(reader.stack),
    pickle.OBJ: lambda reader: reader.spend(reader.stack),
}
_Unpickler.dispatch |= {key[0]: _guarded(guard, key) for key, guard in _GUARDS.items()}


def load(file: IO[bytes]) -> Any:
    """Returns the object of a pickle, of Python 2 or 3.

    Args:
        file: Opened for reading bytes.

    Returns:
        Containers, numbers and text; `Array` for arrays; `Ignored` for sets.

    Raises:
        RefusedPickle: The file wants something imported that is not in `SAFE`.
        Exception: Of many types; the file is damaged.
    """
    try:
        return _Unpickler(_File(file)).load()
    except KeyError as error:
        raise pickle.UnpicklingError(f"there is no instruction {error}") from error
