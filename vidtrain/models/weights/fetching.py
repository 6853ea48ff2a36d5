"""From a name of weights to a file on this machine, whose digest has been checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.models.weights import downloading
from vidtrain.models.weights.cache import cache_path, sha256

FILES = "the path of a file, https://..., or hf:ORG/REPO[/FILE][@REVISION]"
FORMS = f"published, published:DATASET, {FILES}"


@dataclass(frozen=True)
class Published:
    """A published result of a model.

    Attributes:
        dataset: Data set of the result: K400, SSv2 ...
        url: Where its weights are, https://... or hf:...; None: there is no file.
        sha256: Digest of the file, or its first digits; None: its publisher states none.
        num_classes: Classes of its head.
    """

    dataset: str
    url: str | None = None
    sha256: str | None = None
    num_classes: int = 400


@dataclass(frozen=True)
class Fetched:
    """A file of weights on this machine.

    Attributes:
        path: The file.
        sha256: Its whole digest.
        origin: Where it came from: an address, or the path as it was given.
    """

    path: Path
    sha256: str
    origin: str


def fetch(
    weights: str, *, published: Sequence[Published] = (), say: Callable[[str], None]
) -> Fetched:
    """Finds the file of weights, downloading it where needed.

    Args:
        weights: published, published:DATASET, a path, https://... (a digest may follow after
            `#sha256=`), or hf:ORG/REPO[/FILE][@REVISION].
        published: Published results of the model, the first one with a file being `published`.
        say: Told in a sentence what is done.

    Raises:
        UsageError: No such published weights, or an address of another kind.
        InputError: The file is missing, cannot be downloaded, or has another digest, in which case
            it is removed from the cache.
    """
    address, digest = weights, None
    if weights.partition(":")[0].lower() == "published":
        entry = _pick(weights.partition(":")[2], published)
        address, digest = entry.url or "", entry.sha256
    if address.startswith("hf:"):
        return Fetched(*downloading.from_hub(address, digest, say), address)
    scheme = urlsplit(address).scheme
    if scheme in ("http", "https"):
        address, _, stated = address.partition("#sha256=")
        return Fetched(*downloading.from_web(address, digest or stated or None, say), address)
    if "://" in address:
        raise UsageError(f"weights={weights}: {scheme}:// is not known; give {FORMS}")
    path = Path(address).expanduser()
    if not path.is_file():
        raise InputError(f"weights={weights}: {_whats_there(path)}; give {FORMS}")
    return Fetched(path, sha256(path), address)


def cached(url: str) -> Path | None:
    """Returns the file of an address that is on this machine already; its digest is not checked.

    Args:
        url: https://... or hf:ORG/REPO[/FILE][@REVISION].
    """
    if not url.startswith("hf:"):
        path = cache_path(url)
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    repo, files, revision = downloading.parse_hub(url)
    for name in files:
        path = cache_path(downloading.hub_url(repo, name, revision))
        if path.is_file():
            return path
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _pick(dataset: str, published: Sequence[Published]) -> Published:
    there = [entry for entry in published if entry.url]
    wanted = [entry for entry in there if not dataset or entry.dataset.lower() == dataset.lower()]
    if wanted:
        return wanted[0]
    names = ", ".join(dict.fromkeys(f"published:{entry.dataset}" for entry in there))
    remedy = f"there are {names}" if names else f"leave weights out, or give {FILES}"
    if any(entry.dataset.lower() == dataset.lower() for entry in published):
        raise UsageError(
            f"only figures of this model are published on {dataset}, no file; {remedy}"
        )
    raise UsageError(f"no weights of this model are published{f' on {dataset}' * bool(dataset)}; "
                     f"{remedy}")  # fmt: skip


def _whats_there(path: Path) -> str:
    if path.is_dir():
        files = sorted(found.name for found in path.iterdir() if found.is_file())[:5]
        return f"that is a folder (it holds {', '.join(files) or 'no files'})"
    try:
        hint = did_you_mean(path.name, [found.name for found in path.parent.iterdir()])
    except OSError:
        hint = f"there is no folder {path.parent}"
    return f"there is no such file{'; ' * bool(hint)}{hint}"
