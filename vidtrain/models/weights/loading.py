"""From a checkpoint's tensors to a network: names, shapes, the head, and a report of all three."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vidtrain.errors import InputError
from vidtrain.models import anatomy
from vidtrain.models.weights import (
    from_caffe2,
    from_gluoncv,
    from_hiera,
    from_huggingface,
    from_images,
    from_mmaction2,
    from_pyslowfast,
)
from vidtrain.models.weights.looks import looks_like
from vidtrain.models.weights.reshaping import reshaped

State = dict[str, torch.Tensor]
# Share of the network without its head, by tensors and by numbers, that a checkpoint must fill.
SMALLEST_MATCH = 0.8
# Weights of an image model cannot hold what a video model adds to it: non-local blocks, say.
SMALLEST_IMAGE_MATCH = 0.6
IMAGES = "image model"
# Share of a checkpoint's numbers that may have no place where nothing is trained afterwards. What
# publishers leave in their files, as V-JEPA 2's predictor, is below it.
LARGEST_REST = 0.1
MOST_NAMED = 4


def _same_names(state: State, own: State) -> State:
    del own
    return state


# Each turns a checkpoint's names into the network's, or returns None where they are not of its
# origin. The one that fits most tensors is taken.
MAPS: Mapping[str, Callable[[State, State], State | None]] = {
    "the network's own": _same_names,
    "PySlowFast": from_pyslowfast.convert,
    "Caffe2": from_caffe2.convert,
    "MMAction2": from_mmaction2.convert,
    "GluonCV": from_gluoncv.convert,
    "Hiera": from_hiera.convert,
    "Hugging Face": from_huggingface.convert,
    IMAGES: from_images.convert,
}


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint filled.

    Attributes:
        origin: Where the checkpoint came from.
        naming: Whose names its tensors have.
        matched: Tensors of the network, without its head, that were filled.
        total: Tensors of the network without its head.
        missing: Tensors of the network that stay as they were built, without its head.
        unexpected: Tensors of the checkpoint that the network has no place for.
        reshaped: Tensors that were fitted to another shape, each with how.
        head: What became of the classifier.
    """

    origin: str
    naming: str
    matched: int
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    head: str

    def lines(self) -> list[str]:
        """Returns the report as lines for a person."""
        found = [f"weights: {self.origin}",
                 f"  {self.matched} of {self.total} tensors matched ({self.naming} names); "
                 f"{self.head}"]  # fmt: skip
        for what, names in (("missing, stay random", self.missing),
                            ("unexpected, not used", self.unexpected),
                            ("reshaped", self.reshaped)):  # fmt: skip
            if names:
                found.append(f"  {len(names)} {what}: {_named(names)}")
        return found


def load_weights(net: nn.Module, state: State, *, origin: str, keep_head: bool) -> LoadReport:
    """Loads a checkpoint into a network in place.

    Tensors that only differ in shape are fitted (see `reshaping`). A head of another number of
    classes stays as it was built.

    Args:
        net: The network, on the CPU.
        state: Flat tensors of the checkpoint, as `reading.read_weights` returns them.
        origin: Where they came from, for messages.
        keep_head: Refuse a checkpoint that leaves anything as it was built, the head too.

    Raises:
        InputError: Too little of the network is matched; the message says what the checkpoint
            looks like. Or it is of a larger network. Or something is left as it was built, or too
            much of the checkpoint has no place, and `keep_head`.
    """
    own = net.state_dict()
    heads = set(anatomy.head(net))
    naming, fitted, notes, left = _best(state, own, net)
    body = [key for key in own if key not in heads and not key.endswith("num_batches_tracked")]
    filled = [key for key in body if key in fitted]
    _check_share(filled, body, own, state=state, origin=origin, naming=naming)
    unexpected = {key: size for key, size in left.items() if key not in own}
    _check_rest(unexpected, fitted, origin=origin, keep_head=keep_head)
    head = _head_word(heads, fitted, left, own)
    missing = tuple(key for key in body if key not in fitted)
    if keep_head and (missing or not heads <= fitted.keys()):
        lacks = f"it lacks {_named(missing)}" if missing else head
        raise InputError(
            f"{origin} does not fill the network: {lacks}; without training, weights must fit "
            "wholly, with the classes of the data they were trained on"
        )
    net.load_state_dict(fitted, strict=False)
    return LoadReport(
        origin=origin, naming=naming, matched=len(filled), total=len(body),
        missing=missing,
        unexpected=tuple(sorted(key for key in left if key not in heads)),
        reshaped=tuple(notes), head=head,
    )  # fmt: skip


def _best(state: State, own: State, net: nn.Module) -> tuple[str, State, list[str], dict[str, int]]:
    """Returns the naming that fits most, its tensors as the network takes them, and what is left.

    What is left, with how many numbers, has another name, or a shape that does not fit.
    """
    results = []
    for naming, convert in MAPS.items():
        renamed = convert(state, own)
        if renamed is None:
            continue
        fitted: State = {}
        notes = []
        for key in own.keys() & renamed.keys():
            result = reshaped(renamed[key], own[key], key=key, net=net)
            if result is not None:
                fitted[key], how = result
                notes += [f"{key} ({how})"] if how else []
        left = {key: tensor.numel() for key, tensor in renamed.items() if key not in fitted}
        results.append((naming, fitted, sorted(notes), left))
    # Of two that fit alike, the one that has less left knows the names better.
    return max(results, key=lambda result: (len(result[1]), -len(result[3])))


def _check_share(
    filled: list[str], body: list[str], own: State, *, state: State, origin: str, naming: str
) -> None:
    numbers = sum(own[key].numel() for key in filled) / max(1, sum(own[k].numel() for k in body))
    share = min(len(filled) / max(1, len(body)), numbers)
    least = SMALLEST_IMAGE_MATCH if naming == IMAGES else SMALLEST_MATCH
    if share >= least:
        return
    lost = [key for key in body if key not in filled]
    raise InputError(
        f"{origin} fills {len(filled)} of the network's {len(body)} tensors ({share:.0%}, at least "
        f"{least:.0%} are needed; by {naming} names); it looks like {looks_like(state)}. "
        f"Not there: {_named(lost)}. Choose the model that it was made with"
    )


def _check_rest(
    unexpected: Mapping[str, int], fitted: State, *, origin: str, keep_head: bool
) -> None:
    """Refuses what is left of a larger network of the same family, since its parts work together.

    Such are further blocks: their names differ from those of the network by a number.
    """
    known = {re.sub(r"\d+", "#", key) for key in fitted}
    further = [key for key in unexpected if re.sub(r"\d+", "#", key) in known]
    if further:
        raise InputError(
            f"{origin} is of a larger network of this family: it has {len(further)} tensors more, "
            f"such as {_named(sorted(further))}. Choose the model that it was made with"
        )
    numbers = sum(unexpected.values())
    share = numbers / max(1, numbers + sum(tensor.numel() for tensor in fitted.values()))
    if keep_head and share > LARGEST_REST:
        raise InputError(
            f"{origin} does not fit: {share:.0%} of its numbers have no place in the network, such "
            f"as {_named(sorted(unexpected))}; without training, weights must fit wholly"
        )


def _head_word(heads: set[str], fitted: State, left: Mapping[str, int], own: State) -> str:
    if heads <= fitted.keys():
        return "head taken over"
    weight = next((key for key in heads if key.endswith("weight")), "")
    classes = own[weight].shape[0] if weight else 0
    if heads & left.keys():
        return f"head replaced by a new one of {classes} classes"
    return f"no head in it, a new one of {classes} classes"


def _named(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
