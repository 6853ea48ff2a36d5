"""From a name of weights to a file on this machine, whose digest has been checked."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.models.weights import downloading
from vidtrain.models.weights.cache import cache_path, sha256, shown

FILES = "the path of a file, https://..., or hf:ORG/REPO[/FILE][@REVISION]"
FORMS = f"published, published:DATASET[:N], {FILES}"


@dataclass(frozen=True)
class Published:
    """A published result of a model.

    Attributes:
        dataset: Data set of the result: K400, SSv2 ...
        url: Where its weights are, https://... or hf:...; None: there is no file.
        sha256: Digest of the file, or its first digits; None: its publisher states none.
    """

    dataset: str
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A file of weights on this machine.

    Attributes:
        path: The file.
        sha256: Its whole digest.
        origin: Where it came from: an address without its query, or the path as it was given.
    """

    path: Path
    sha256: str
    origin: str


def fetch(
    weights: str, *, published: Sequence[Published] = (), say: Callable[[str], None]
) -> Fetched:
    """Finds the file of weights, downloading it where needed.

    Args:
        weights: published, published:DATASET[:N], a path, https://... (a digest may follow after
            `#sha256=`), or hf:ORG/REPO[/FILE][@REVISION].
        published: Published results of the model, the first one with a file being `published`.
        say: Told in a sentence what is done.

    Raises:
        UsageError: No such published weights, an address of another kind, or no proper digest.
        InputError: The file is missing, cannot be downloaded, or has another digest. In a cache it
            is removed where that is the published digest, or the one noted at its first use.
    """
    address, digest = weights, None
    if weights.partition(":")[0].lower() == "published":
        entry = _pick(weights.partition(":")[2], published)
        address, digest = entry.url or "", entry.sha256
        if digest is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", digest):
            raise UsageError(f"sha256: {digest} of {shown(address)} is no digest; give 8 to 64 hex "
                             "digits, or null")  # fmt: skip
    if address.startswith("hf:"):
        return Fetched(*downloading.from_hub(address, digest, say), address)
    scheme = address.partition(":")[0].lower()
    if scheme in ("http", "https"):
        address, mark, behind = address.partition("#")
        typed = _typed_digest(address, behind) if mark else None
        found = downloading.from_web(address, published=digest, typed=typed, say=say)
        return Fetched(*found, shown(address))
    if "://" in address:
        raise UsageError(f"weights={shown(weights)}: {scheme}:// is not known; give {FORMS}")
    try:
        path = Path(address).expanduser()
        if path.is_file():
            return Fetched(path, sha256(path), address)
        raise InputError(f"weights={weights}: {_whats_there(path)}; give {FORMS}")
    except (OSError, RuntimeError) as error:  # too long, not to be read, no such home
        raise InputError(f"weights={weights} cannot be read: {error}; give {FORMS}") from error


def cached(url: str) -> Path | None:
    """Returns the file of an address that is on this machine already; its digest is not checked.

    Args:
        url: https://... or hf:ORG/REPO[/FILE][@REVISION].
    """
    if url.startswith("hf:"):
        found = downloading.hub_file_here(url)
        return found and found[0]
    path = cache_path(url)
    try:
        return path if path.is_file() else None
    except OSError:
        return None


def spec_of(published: Sequence[Published], index: int) -> str | None:
    """Returns the shortest value of model.weights that picks a published result.

    Args:
        published: Published results of the model.
        index: Which of them.

    Returns:
        published, published:DATASET or published:DATASET:N; None: it has no file.
    """
    specs = _specs(published)
    first = next((spec for spec in specs if spec), None)
    return "published" if specs[index] and specs[index] == first else specs[index]


def _specs(published: Sequence[Published]) -> list[str | None]:
    """Returns the long form of each, published:DATASET for the first file of a data set."""
    counts: Counter[str] = Counter()
    specs: list[str | None] = []
    for entry in published:
        name = entry.dataset.lower()
        counts[name] += bool(entry.url)
        number = f":{counts[name]}" if counts[name] > 1 else ""
        specs.append(f"published:{entry.dataset}{number}" if entry.url else None)
    return specs


def _pick(wanted: str, published: Sequence[Published]) -> Published:
    """Returns the entry of DATASET, DATASET:N, or of nothing: the first with a file."""
    dataset, mark, number = wanted.partition(":")
    of_it = [entry for entry in published if entry.dataset.lower() == dataset.lower()]
    there = [entry for entry in (of_it if wanted else published) if entry.url]
    if there and not mark:
        return there[0]
    if there and re.fullmatch("[0-9]{1,9}", number) and 1 <= int(number) <= len(there):
        return there[int(number) - 1]
    names = ", ".join(spec for spec in _specs(published) if spec)
    remedy = f"there are {names}" if names else f"leave weights out, or give {FILES}"
    if there:
        raise UsageError(f"weights=published:{wanted}: {number or 'nothing'} is not a number from "
                         f"1 to {len(there)}; {remedy}")  # fmt: skip
    if of_it:
        raise UsageError(
            f"only figures of this model are published on {dataset}, no file; {remedy}"
        )
    raise UsageError(f"no weights of this model are published{f' on {dataset}' * bool(wanted)}; "
                     f"{remedy}")  # fmt: skip


def _typed_digest(address: str, behind: str) -> str:
    """Returns the digest behind the # of an address."""
    name, _, digits = behind.partition("=")
    if name != "sha256":
        wrong = f"#{name} is not known"
    elif len(digits) != 64:
        wrong = f"{digits or 'nothing'} has {len(digits)} digits"
    elif not re.fullmatch("[0-9a-fA-F]*", digits):
        wrong = f"{digits} is not hexadecimal"
    else:
        return digits.lower()
    raise UsageError(f"weights={shown(address)}: {wrong}; only #sha256=64_HEX_DIGITS may follow an "
                     "address")  # fmt: skip


def _whats_there(path: Path) -> str:
    if path.is_dir():
        files = sorted(found.name for found in path.iterdir() if found.is_file())[:5]
        return f"that is a folder (it holds {', '.join(files) or 'no files'})"
    try:
        hint = did_you_mean(path.name, [found.name for found in path.parent.iterdir()])
    except OSError:
        hint = f"there is no folder {path.parent}"
    return f"there is no such file{'; ' * bool(hint)}{hint}"
