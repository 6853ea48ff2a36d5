"""Downloads of weights, from the web or the Hugging Face hub: whole and checked, or not at all."""

import hashlib
import http.client
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from vidtrain.errors import InputError, UsageError
from vidtrain.models.weights.cache import (
    FOLDER_VARIABLE,
    cache_path,
    check,
    note,
    other_digest,
    sha256,
)
from vidtrain.models.weights.reading import what_it_is_instead

HUB = "https://huggingface.co"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that a repository has
TIMEOUT_SECONDS = 30  # without a byte
CHUNK = 2**20


def from_web(url: str, digest: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    """Returns the file of an address and its whole digest, from the cache if it lies there.

    Args:
        url: https://...
        digest: SHA-256, or its first digits; None: the one that is noted beside the file.
        say: Told in a sentence what is done.

    Raises:
        UsageError: http:// without a digest.
        InputError: It cannot be downloaded, is no file of weights, or has another digest.
    """
    _refuse_open_http(url, digest)
    path = cache_path(url)
    if path.is_file():
        return path, check(path, digest, say)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: several processes may download at once, and each renames a whole file.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            part = Path(file.name)
            try:
                say(f"downloading {url} to {path}")
                found = _download(url, digest, file, path)
                part.chmod(0o644)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    except (http.client.HTTPException, OSError) as error:
        raise InputError(_no_download(url, path, error)) from error
    if digest is None:
        note(path, found, say)
    return path, found


def _refuse_open_http(url: str, digest: str | None) -> None:
    """Over http:// anybody on the way can exchange the file, unless its digest is known."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not local and len(digest or "") < 64:
        raise UsageError(
            f"weights from {url} could be exchanged on the way; use https://, or state the file's "
            f"digest: {url}#sha256=64_HEX_DIGITS"
        )


def _download(url: str, digest: str | None, file: IO[bytes], path: Path) -> str:
    """Writes what an address holds to a file, checks it, and returns its digest."""
    request = urllib.request.Request(url, headers={"User-Agent": "vidtrain"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        _refuse_open_http(answer.url, digest)  # it may have been sent on
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        hashed, done, head = hashlib.sha256(), 0, b""
        console = Console(stderr=True)
        columns = (TextColumn(path.name), BarColumn(bar_width=24), DownloadColumn(),
                   TransferSpeedColumn(), TextColumn("ETA"), TimeRemainingColumn())  # fmt: skip
        with Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        ) as progress:
            task = progress.add_task("", total=total)
            while chunk := answer.read(CHUNK):
                head = head or chunk[:512]
                file.write(chunk)
                hashed.update(chunk)
                done += len(chunk)
                progress.update(task, completed=done)
    file.flush()
    os.fsync(file.fileno())
    if total is not None and done != total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
    instead = what_it_is_instead(head)
    if instead:
        raise InputError(f"{url} did not answer with weights: what came is {instead}")
    found = hashed.hexdigest()
    if digest and not found.startswith(digest.lower()):
        raise InputError(other_digest(url, digest, found))
    return found


def _no_download(url: str, path: Path, error: Exception) -> str:
    """Returns what is said when an address cannot be had: why, and where to put its file."""
    if isinstance(error, urllib.error.HTTPError):
        reason = f"the server answers {error.code} {error.reason}"
    else:
        reason = str(getattr(error, "reason", None) or error or type(error).__name__)
    return (
        f"{url} cannot be downloaded: {reason}; without network, fetch it on another machine and "
        f"put it at {path.absolute()} (another folder with {FOLDER_VARIABLE})"
    )


def parse_hub(weights: str) -> tuple[str, tuple[str, ...], str]:
    """Returns repository, the files to try, and revision of hf:ORG/REPO[/FILE][@REVISION]."""
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([^@]+))?", weights)
    if not found:
        raise UsageError(f"weights={weights} is not of the form hf:ORG/REPO[/FILE][@REVISION]")
    return found[1], (found[2],) if found[2] else HUB_FILES, found[3] or "main"


def hub_url(repo: str, name: str, revision: str) -> str:
    """Returns the address of a file of the hub, under which our cache keeps it."""
    return f"{HUB}/{repo}/resolve/{revision}/{name}"


def from_hub(weights: str, digest: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    """Returns a file of the hub and its whole digest.

    A file that lies in our cache is taken; otherwise huggingface_hub keeps one in its own.

    Args:
        weights: hf:ORG/REPO[/FILE][@REVISION].
        digest: SHA-256, or its first digits; None: the one that the hub states, if it does.
        say: Told in a sentence what is done.

    Raises:
        UsageError: Another form.
        InputError: No such file or repository, no network, or another digest.
    """
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    repo, files, revision = parse_hub(weights)
    paths = {name: cache_path(hub_url(repo, name, revision)) for name in files}
    for path in paths.values():
        if path.is_file():
            return path, check(path, digest, say)
    if not sys.stderr.isatty():
        disable_progress_bars()
    for name, path in paths.items():
        url = hub_url(repo, name, revision)
        try:
            say(f"looking for {weights}: {name}")
            file = Path(hf_hub_download(repo, name, revision=revision))
        except errors.RemoteEntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise InputError(
                f"weights={weights}: {HUB}/{repo} has no revision {revision}, does not exist, or "
                "is closed to you; log in with `hf auth login` if you were given access"
            ) from error
        except Exception as error:  # huggingface_hub lets those of its HTTP library through
            raise InputError(_no_download(url, path, error)) from error
        found = sha256(file)
        # The hub's own digest is the name of the file that the cache's link leads to.
        stated = file.resolve().name
        for expected in (digest, stated if re.fullmatch("[0-9a-f]{64}", stated) else None):
            if expected and not found.startswith(expected.lower()):
                file.resolve().unlink()
                file.unlink(missing_ok=True)
                raise InputError(other_digest(str(file), expected, found) + "; it has been removed")
        return file, found
    raise InputError(f"weights={weights}: the repository has none of {', '.join(files)}; name a "
                     "file of it: hf:ORG/REPO/FILE")  # fmt: skip
