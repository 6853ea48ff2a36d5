"""The folder of downloaded weights, and the digests of what lies in it.

It mirrors addresses as `wget -x` does: https://HOST/a/b.pyth lies at HOST/a/b.pyth. So a machine
without network is served by a folder that was filled elsewhere.
"""

import contextlib
import hashlib
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vidtrain.errors import InputError, UsageError

FOLDER_VARIABLE = "VIDTRAIN_WEIGHTS"


def cache_folder() -> Path:
    """Returns $VIDTRAIN_WEIGHTS, else `weights` in $VIDTRAIN_CACHE or ~/.cache/vidtrain."""
    own = os.environ.get(FOLDER_VARIABLE)
    cache = os.environ.get("VIDTRAIN_CACHE") or "~/.cache/vidtrain"
    return Path(own or f"{cache}/weights").expanduser()


def shown(url: str) -> str:
    """Returns an address without user and query, which may be secret, for messages and records."""
    return re.sub("//[^/?#]*@", "//", re.split("[?#]", url)[0], count=1)


def host_of(url: str) -> str:
    """Returns HOST or HOST:PORT of an address, as the name of one folder.

    Raises:
        UsageError: It is neither a name nor an IP address.
    """
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
        if ":" in name:
            name = f"[{ipaddress.ip_address(name)}]"
        else:
            name = name.encode("idna").decode()  # a ValueError for labels no network can look up
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", name, re.ASCII):
                raise ValueError("it has no host" if not name else f"{name} is no name of a host")
    except ValueError as error:
        raise UsageError(f"weights={shown(url)} is no address of a file: {error}") from error
    return name if port is None else f"{name}:{port}"


def cache_path(url: str) -> Path:
    """Returns where the cache keeps the file of an address https://HOST/PATH.

    Raises:
        UsageError: It has no proper host, or names no file.
    """
    host, parts = host_of(url), urlsplit(url)
    names = [name for name in unquote(parts.path).split("/") if name not in ("", ".", "..")]
    if not names:
        raise UsageError(f"{shown(url)} names no file")
    if not all(name.isprintable() for name in names):
        raise UsageError(f"{shown(url)} names no file: a name in it has control characters")
    if parts.query:  # of a presigned link it is secret, and longer than names may be
        names[-1] += (
            "?" + hashlib.sha256(parts.query.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        )
    return cache_folder().joinpath(host, *names)


def check(
    path: Path, *, published: str | None, typed: str | None = None, say: Callable[[str], None]
) -> str:
    """Returns the digest of a file of the cache.

    Args:
        path: The file.
        published: The digest its publisher states, or its first digits; None: the one that was
            noted when the file was first used.
        typed: The digest the user asks for.
        say: Told in a sentence what is done.

    Raises:
        InputError: It has another digest. Where that is not only the user's, it is removed.
    """
    found = sha256(path)
    stated = published or _noted(path)
    if stated and not found.startswith(stated.lower()):
        left = remove(path, path.with_name(f"{path.name}.sha256"))
        raise InputError(f"{other_digest(str(path), stated, found)}; {left}")
    if typed and found != typed.lower():
        raise InputError(
            f"{path} is not the file you ask for: #sha256= is {typed}, found {found}; it stays, "
            "since its publisher's digest may be another; if yours is right, remove the file"
        )
    if not stated:
        note(path, found, say)
    return found


def remove(path: Path, *more: Path) -> str:
    """Removes a file, and says what came of it: a cache may be one that can only be read."""
    with contextlib.suppress(OSError):
        for file in (path, *more):
            file.unlink(missing_ok=True)
    return "it could not be removed" if path.exists() else "it has been removed"


def _noted(path: Path) -> str | None:
    note = path.with_name(f"{path.name}.sha256")
    text = note.read_text("latin-1") if note.is_file() else ""
    found = re.match(r"[0-9a-fA-F]{64}(?!\S)", text)
    return found and found[0]


def note(path: Path, digest: str, say: Callable[[str], None]) -> None:
    """Writes a digest beside its file, in the form that `sha256sum -c` reads."""
    try:
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n", "utf-8")
    except OSError as error:
        say(f"the digest of {path} is not noted: {error.strerror}")


def other_digest(what: str, expected: str, found: str) -> str:
    """Returns what is said of a file with another digest."""
    return f"{what} is not the published file: expected sha256 {expected}, found {found}"


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
