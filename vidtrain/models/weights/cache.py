"""The folder of downloaded weights, and the digests of what lies in it.

It mirrors addresses as `wget -x` does: https://HOST/a/b.pyth lies at HOST/a/b.pyth. So a machine
without network is served by a folder that was filled elsewhere.
"""

import contextlib
import hashlib
import os
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


def cache_path(url: str) -> Path:
    """Returns where the cache keeps the file of an address https://HOST/PATH."""
    parts = urlsplit(url)
    names = [name for name in unquote(parts.path).split("/") if name not in ("", ".", "..")]
    if not names:
        raise UsageError(f"{url} names no file")
    if parts.query:
        names[-1] += "?" + parts.query.replace("/", "%2F")
    return cache_folder().joinpath(parts.netloc.rpartition("@")[2], *names)


def check(path: Path, digest: str | None, say: Callable[[str], None]) -> str:
    """Returns the digest of a file of the cache, and removes a file that has another than stated.

    Where its publisher states none, it is the one that was noted when the file was first used.
    """
    found = sha256(path)
    noted = path.with_name(f"{path.name}.sha256")
    if digest is None and noted.is_file():
        digest = next(iter(noted.read_text("utf-8").split()), None)
    if digest is None:
        note(path, found, say)
    elif not found.startswith(digest.lower()):
        with contextlib.suppress(OSError):  # a cache that may only be read
            path.unlink()
            noted.unlink(missing_ok=True)
        left = " and could not be removed" * path.exists() or "; it has been removed"
        raise InputError(other_digest(str(path), digest, found) + left)
    return found


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
