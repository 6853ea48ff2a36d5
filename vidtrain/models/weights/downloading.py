"""Downloads of weights, from the web or the Hugging Face hub: whole and checked, or not at all."""

import contextlib
import hashlib
import http.client
import os
import re
import string
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

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
    host_of,
    note,
    other_digest,
    remove,
    sha256,
    shown,
)
from vidtrain.models.weights.reading import what_it_is_instead

HUB = "https://huggingface.co"
HUB_FORM = "hf:ORG/REPO[/FILE][@REVISION]"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that a repository has
TIMEOUT_SECONDS = 30  # without a byte
CHUNK = 2**20


def from_web(
    url: str, *, published: str | None, typed: str | None, say: Callable[[str], None]
) -> tuple[Path, str]:
    """Returns the file of an address and its whole digest, from the cache if it lies there.

    Args:
        url: https://... without a fragment.
        published: SHA-256 that the publisher states, or its first digits; None: the one that is
            noted beside the file.
        typed: SHA-256 that the user asks for.
        say: Told in a sentence what is done.

    Raises:
        UsageError: No proper address, or http:// without a whole digest.
        InputError: It cannot be downloaded, is no file of weights, or has another digest.
    """
    path = cache_path(url)
    digest = published or typed
    _refuse_open_http(url, digest)
    try:
        if path.is_file():
            return path, check(path, published=published, typed=typed, say=say)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: several processes may download at once, and each renames a whole file.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            part = Path(file.name)
            try:
                say(f"downloading {shown(url)} to {path}")
                found = _download(url, digest, file, path)
                part.chmod(0o644)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    except InputError:
        raise
    except (http.client.HTTPException, OSError, ValueError) as error:  # of addresses it is sent to
        raise InputError(_no_download(url, path, error)) from error
    if published is None:
        note(path, found, say)
    return path, found


def _refuse_open_http(url: str, digest: str | None) -> None:
    """Over http:// anybody on the way can exchange the file, unless its digest is known."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not local and len(digest or "") < 64:
        raise UsageError(
            f"weights from {shown(url)} could be exchanged on the way; use https://, or put the "
            "file's digest behind the address: #sha256=64_HEX_DIGITS"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows an answer that sends it on, if every address on the way may be asked."""

    def __init__(self, digest: str | None) -> None:
        self.digest = digest

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        """Takes (request, answer, status, reason, headers, new address)."""
        _refuse_open_http(args[-1], self.digest)
        return super().redirect_request(*args)


def _request(url: str) -> urllib.request.Request:
    """Returns the request for an address as it is typed, with spaces and other letters."""
    parts = urlsplit(url)
    path, query = (quote(text, safe=string.punctuation) for text in (parts.path, parts.query))
    encoded = urlunsplit((parts.scheme, host_of(url), path, query, ""))
    return urllib.request.Request(encoded, headers={"User-Agent": "vidtrain"})


def _download(url: str, digest: str | None, file: IO[bytes], path: Path) -> str:
    """Writes what an address holds to a file, checks it, and returns its digest."""
    opener = urllib.request.build_opener(_Redirects(digest))
    with opener.open(_request(url), timeout=TIMEOUT_SECONDS) as answer:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        hashed, done, head = hashlib.sha256(), 0, b""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
                   DownloadColumn(), TransferSpeedColumn(), TextColumn("ETA"),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        ) as progress:
            task = progress.add_task(path.name, total=total)
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
        raise InputError(f"{shown(url)} did not answer with weights: what came is {instead}")
    found = hashed.hexdigest()
    if digest and not found.startswith(digest.lower()):
        raise InputError(other_digest(shown(url), digest, found))
    return found


def _no_download(url: str, path: Path, error: Exception) -> str:
    """Returns what is said when an address cannot be had: why, and where to put its file."""
    if isinstance(error, urllib.error.HTTPError):
        reason = f"the server answers {error.code} {error.reason}"
    else:
        reason = str(getattr(error, "reason", None) or error or type(error).__name__)
    reason = re.sub(r"\?\S*", "?...", reason)  # an address in it may have a secret query
    return (
        f"{shown(url)} cannot be downloaded: {reason}; without network, fetch it on another "
        f"machine and put it at {path.absolute()} (another folder with {FOLDER_VARIABLE})"
    )


def parse_hub(weights: str) -> tuple[str, tuple[str, ...], str]:
    """Returns repository, the files to try, and revision of hf:ORG/REPO[/FILE][@REVISION].

    Raises:
        UsageError: Another form, or a part of it is no name that the hub could have.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([^@]+))?", weights)
    if not found:
        raise UsageError(f"weights={weights} is not of the form {HUB_FORM}")
    repo, name, revision = found[1], found[2], found[3] or "main"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(
            f"weights={weights}: {repo} is no name of a repository; give {HUB_FORM}"
        ) from error
    for what, text in (("file", name or HUB_FILES[0]), ("revision", revision)):
        if not text.isprintable() or {"", ".", ".."} & set(text.split("/")):
            raise UsageError(f"weights={weights}: {text} is no name of a {what}; give {HUB_FORM}")
    return repo, (name,) if name else HUB_FILES, revision


def hub_url(repo: str, name: str, revision: str) -> str:
    """Returns the address of a file of the hub, under which our cache keeps it."""
    return f"{HUB}/{repo}/resolve/{quote(revision)}/{quote(name)}"


def hub_file_here(weights: str) -> tuple[Path, bool] | None:
    """Returns a file of the hub that is on this machine, and whether it lies in our own cache.

    Args:
        weights: hf:ORG/REPO[/FILE][@REVISION].
    """
    from huggingface_hub import try_to_load_from_cache

    repo, files, revision = parse_hub(weights)
    with contextlib.suppress(OSError):
        for path in (cache_path(hub_url(repo, name, revision)) for name in files):
            if path.is_file():
                return path, True
        for name in files:
            found = try_to_load_from_cache(repo, name, revision=revision)
            if isinstance(found, str):
                return Path(found), False
    return None


def from_hub(weights: str, digest: str | None, say: Callable[[str], None]) -> tuple[Path, str]:
    """Returns a file of the hub and its whole digest.

    A file that lies in our cache or in that of huggingface_hub is taken, whichever of the names it
    has; otherwise huggingface_hub downloads one into its own.

    Args:
        weights: hf:ORG/REPO[/FILE][@REVISION].
        digest: SHA-256, or its first digits; None: the one that the hub states, if it does.
        say: Told in a sentence what is done.

    Raises:
        UsageError: Another form.
        InputError: No such file or repository, no network, or another digest.
    """
    try:
        here = hub_file_here(weights)
        if here and here[1]:
            return here[0], check(here[0], published=digest, say=say)
        return _check_hub_file(here[0] if here else _from_hub(weights, say), digest)
    except OSError as error:
        raise InputError(f"weights={weights} cannot be read: {error}") from error


def _check_hub_file(file: Path, digest: str | None) -> tuple[Path, str]:
    found = sha256(file)
    # The hub's own digest is the name of the file that the cache's link leads to.
    stated = file.resolve().name
    for expected in (digest, stated if re.fullmatch("[0-9a-f]{64}", stated) else None):
        if expected and not found.startswith(expected.lower()):
            left = remove(file.resolve(), file)
            raise InputError(f"{other_digest(str(file), expected, found)}; {left}")
    return file, found


def _from_hub(weights: str, say: Callable[[str], None]) -> Path:
    """Lets huggingface_hub get the first file that the repository has."""
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    repo, files, revision = parse_hub(weights)
    if not sys.stderr.isatty():
        disable_progress_bars()
    unreached: InputError | None = None
    for name in files:
        url = hub_url(repo, name, revision)
        try:
            say(f"looking for {weights}: {name}")
            return Path(hf_hub_download(repo, name, revision=revision))
        except errors.RemoteEntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise InputError(
                f"weights={weights}: {HUB}/{repo} has no revision {revision}, does not exist, or "
                "is closed to you; log in with `hf auth login` if you were given access"
            ) from error
        except errors.LocalEntryNotFoundError as error:  # no network, and this name is not here
            unreached = unreached or InputError(_no_download(url, cache_path(url), error))
        except Exception as error:  # huggingface_hub lets those of its HTTP library through
            raise InputError(_no_download(url, cache_path(url), error)) from error
    raise unreached or InputError(
        f"weights={weights}: the repository has none of {', '.join(files)}; name a file of it: "
        "hf:ORG/REPO/FILE"
    )
