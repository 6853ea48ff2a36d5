"""What is known of the files of a data set, kept in one SQLite file that all processes share.

The file is a cache: it may be deleted, cut or full of rubbish at any time, and nobody who reads
videos notices more than the time to look at them again.
"""

import errno
import fcntl
import hashlib
import os
import random
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path
from typing import TypeVar

APPLICATION_ID = 0x76747831  # marks a file as ours: bytes 68 to 71 of its header
BATCH_ROWS = 64
BATCH_SECONDS = 2.0
MAX_WAITING_ROWS = 4096
BUSY_SECONDS = 0.25
BUSY_SECONDS_AT_END = 5.0
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

T = TypeVar("T")
# One for all stores, and held while the process forks: a child never finds SQLite half way
# through something that its parent does.
_lock = threading.RLock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)
# Connections taken over by a fork. SQLite wants them neither used nor closed in the child.
_inherited: list[object] = []


def default_path(name: str, root: str) -> Path:
    """Index file of a data set: in $VIDTRAIN_CACHE or ~/.cache/vidtrain, one for each root."""
    place = os.path.abspath(os.path.expanduser(root))
    cache = Path(os.environ.get("VIDTRAIN_CACHE") or "~/.cache/vidtrain").expanduser()
    return cache / "index" / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}.sqlite"


class IndexStore:
    """Bytes by key, valid for one size and time of change of the file that they are about.

    It may be forked, pickled and used by any number of processes and threads at once. Rows are
    written in batches: after 64 rows or 2 seconds (looked at when the store is used), at `flush`,
    `close` and the end of the process. Nothing here raises: where the file cannot be read or
    written, the store says so once on standard error and goes on without.

    Args:
        path: The SQLite file; made with its folder where missing. What is there and is not a
            whole index of this version is replaced; a file of another kind is left alone.
        version: Of the values; a file of another version is made anew.
    """

    def __init__(self, path: str, version: int) -> None:
        self._path, self._version = os.path.abspath(os.path.expanduser(path)), version
        self._open: _Opened | None = None

    def get(self, key: str, size: int, mtime_ns: int) -> bytes | None:
        """Returns the value; None if there is none, or it is of another size or time of change."""
        return self._here().get(key, size, mtime_ns)

    def put(self, key: str, size: int, mtime_ns: int, value: bytes) -> None:
        """Keeps a value, in place of an earlier one of the same key."""
        self._here().put(key, size, mtime_ns, value)

    def flush(self) -> None:
        """Writes what waits to be written."""
        self._here().flush(last=True)

    def close(self) -> None:
        """Writes what waits and closes the file; the next use opens it again."""
        if self._open is not None and self._open.pid == os.getpid():
            self._open.close()
        self._open = None

    def _here(self) -> "_Opened":
        """The open file of this very process."""
        found = self._open
        if found is None or found.pid != os.getpid():
            if found is not None:
                _inherited.append(found)
            found = self._open = _Opened(self._path, self._version)
        return found

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}


class _Opened:
    """The store as one process has it open."""

    def __init__(self, path: str, version: int) -> None:
        self.pid = os.getpid()
        self._path, self._version = path, version
        self._waiting: dict[str, tuple[int, int, bytes]] = {}
        self._due = 0.0
        self._db: sqlite3.Connection | None = None
        self._inode = -1
        self._busy_until = 0.0
        self._reads = self._writes = True
        self._replaced = self._said = False
        # Also run in forked and spawned workers, where `atexit` is not.
        self._at_exit = util.Finalize(None, self.close, exitpriority=10)

    def get(self, key: str, size: int, mtime_ns: int) -> bytes | None:
        with _lock:
            if self._waiting and time.monotonic() > self._due:
                self.flush()
            row = self._waiting.get(key)
            if row is None and self._reads:
                row = self._try(lambda db: self._select(db, key))
        return row[2] if row is not None and row[:2] == (size, mtime_ns) else None

    def put(self, key: str, size: int, mtime_ns: int, value: bytes) -> None:
        with _lock:
            if not self._writes:
                return
            if not self._waiting:
                self._due = time.monotonic() + BATCH_SECONDS
            self._waiting[key] = (size, mtime_ns, value)
            full = len(self._waiting) % BATCH_ROWS == 0
            if full or time.monotonic() > self._due:
                self.flush()

    def flush(self, *, last: bool = False) -> None:
        with _lock:
            if self._waiting and self._writes:
                patience = BUSY_SECONDS_AT_END if last else BUSY_SECONDS
                if last:
                    self._busy_until = 0.0
                if self._db is not None and _inode(self._path) != self._inode:
                    self._disconnect()  # deleted or replaced by somebody
                if self._try(lambda db: self._write(db, patience)):
                    self._waiting.clear()
                # Others were writing: not at the same moment again.
                self._due = time.monotonic() + BATCH_SECONDS * random.uniform(1, 2)
            if len(self._waiting) >= MAX_WAITING_ROWS:
                self._waiting.clear()
                self._say("is busy all the time; some of what is learnt will not be kept")

    def close(self) -> None:
        with _lock:
            self.flush(last=True)
            self._disconnect()
        self._at_exit.cancel()

    def _select(self, db: sqlite3.Connection, key: str) -> tuple[int, int, bytes] | None:
        query = "SELECT size, mtime_ns, value, crc FROM entries WHERE key = ?"
        row = db.execute(query, (_bytes(key),)).fetchone()
        whole = row is not None and row[3] == _checksum(key, row[0], row[1], row[2])
        return row[:3] if whole else None

    def _write(self, db: sqlite3.Connection, patience: float) -> bool:
        rows = [(_bytes(k), *row, _checksum(k, *row)) for k, row in self._waiting.items()]
        try:
            db.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            db.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
        return True

    def _try(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Does something with the file: once more on a fresh one where it is damaged."""
        error: Exception = sqlite3.Error("it is damaged again and again")
        for _ in range(2):
            if time.monotonic() < self._busy_until:
                return None
            try:
                if self._db is None:
                    self._inode = _inode(self._path)
                    self._db = _connect(self._path, self._version)
                    self._inode = _inode(self._path)
                return action(self._db)
            except (sqlite3.Error, OSError) as problem:
                error = problem
            code = getattr(error, "sqlite_errorcode", -1) & 0xFF
            if code in BUSY:
                self._busy_until = time.monotonic() + BATCH_SECONDS
                return None
            if not (isinstance(error, _NotOursError) or code in DAMAGED):
                break
            try:
                if not self._replace():
                    break
            except OSError as problem:
                error = problem
                break
        self._give_up(error)
        return None

    def _replace(self) -> bool:
        """Puts a damaged file out of the way, unless another process has done so already.

        Returns:
            Whether to try again: once per process, since a bad disk would damage each new file.
        """
        self._disconnect()
        if not os.path.exists(self._path):
            return True
        with open(self._path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not self._inode == os.fstat(file.fileno()).st_ino == _inode(self._path):
                return True
            if self._replaced:
                return False
            self._replaced = True
            header = os.pread(file.fileno(), 72, 0)
            if header and header[68:] != APPLICATION_ID.to_bytes(4, "big"):
                raise OSError(errno.EEXIST, "this is another file, no video index")
            if os.path.exists(f"{self._path}-journal"):
                os.unlink(f"{self._path}-journal")
            os.unlink(self._path)
        return True

    def _give_up(self, error: Exception) -> None:
        """Goes on without writing, and the second time without reading too."""
        self._reads = self._db is not None and self._writes
        self._writes = False
        self._waiting.clear()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        kept = "what it holds is used, nothing is added" if self._reads else "it is not used"
        self._say(f"{reason}; {kept}. Give another place with data.index or VIDTRAIN_CACHE")

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            print(f"vidtrain: video index {self._path}: {text}", file=sys.stderr, flush=True)


class _NotOursError(sqlite3.DatabaseError):
    """A good SQLite file that is not an index of this version."""


def _connect(path: str, version: int) -> sqlite3.Connection:
    """Opens the file; makes what is missing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if _marks(db) == (0, 0, 0):  # looked at again when nobody else can write
            db.execute("BEGIN IMMEDIATE")
            if _marks(db) == (0, 0, 0):
                db.execute(
                    "CREATE TABLE entries (key BLOB PRIMARY KEY, size INTEGER, "
                    "mtime_ns INTEGER, value BLOB, crc INTEGER)"
                )
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {version}")
            db.execute("COMMIT")
        if _marks(db)[:2] != (APPLICATION_ID, version):
            raise _NotOursError("not a video index of this version")
        # What a power cut can lose is a cache; a killed process loses nothing.
        db.execute("PRAGMA synchronous = OFF")
    except BaseException:
        db.close()
        raise
    return db


def _marks(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Application, version and number of tables of a file."""
    names = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    application, version, tables = (db.execute(name).fetchone()[0] for name in names)
    return application, version, tables


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return -1


def _bytes(key: str) -> bytes:
    """File names need not be text."""
    return key.encode("utf-8", "surrogateescape")


def _checksum(key: str, size: int, mtime_ns: int, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(f"{size} {mtime_ns} ".encode() + _bytes(key)))
