"""Packet tables kept from run to run: in this process, and in the data set's index file."""

import json
import zlib
from typing import Any

import numpy as np

from vidtrain.data.index_store import IndexStore

# Raise this when the content of a table changes; older index files are then made anew.
VERSION = 1
_store: IndexStore | None = None


def use_index(path: str | None) -> None:
    """Sets the index file of this process; None: tables are kept in memory only."""
    global _store
    if _store is not None:
        _store.close()
    _store = IndexStore(path, VERSION) if path is not None else None


def load(
    kind: str, path: str, size: int, mtime_ns: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns what `save` was given for this unchanged file, or None."""
    content = _store.get(f"{kind}:{path}", size, mtime_ns) if _store is not None else None
    if content is None:
        return None
    header, _, body = content.partition(b"\n")
    described = json.loads(header)
    raw, arrays, start = zlib.decompress(body), {}, 0
    for name, dtype, length in described["arrays"]:
        arrays[name] = np.frombuffer(raw, dtype=dtype, count=length, offset=start)
        start += arrays[name].nbytes
    return described["facts"], arrays


def save(
    kind: str, path: str, size: int, mtime_ns: int,
    facts: dict[str, Any], arrays: dict[str, np.ndarray],
) -> None:  # fmt: skip
    """Keeps JSON values and flat arrays about a file, if there is an index file."""
    if _store is None:
        return
    described = [[name, str(array.dtype), len(array)] for name, array in arrays.items()]
    header = json.dumps({"facts": facts, "arrays": described}).encode()
    body = zlib.compress(b"".join(array.tobytes() for array in arrays.values()), level=1)
    _store.put(f"{kind}:{path}", size, mtime_ns, header + b"\n" + body)
