"""The layers of any network in the order of depth, and its classifier: read from its structure.

No model registers anything. A container is told from a block by its structure: in it, parts of one
class stand several times in an nn.ModuleList or nn.Sequential, and each holds several weights.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidtrain.errors import UsageError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PATHWAYS = "multipathway_blocks"  # PyTorchVideo's name for what lies side by side


@dataclass(frozen=True)
class Layer:
    """One step of a network's depth.

    Attributes:
        name: Path of its block; `stem` for what stands before the first one.
        parts: Paths of the modules it consists of, dropout and activations included.
        blocks: Those parts that hold several weights; empty in a plain chain of convolutions.
        parameters: Names of its parameters.
    """

    name: str
    parts: tuple[str, ...]
    blocks: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class _Unit:
    """What is not taken apart: modules side by side, or parameters that a container owns itself.

    Attributes:
        paths: One module, or one of each pathway; none for a container's own parameters.
        weights: Matrices and kernels in it, in the pathway that has most of them.
        parameters: Names of its parameters.
    """

    paths: tuple[str, ...]
    weights: int
    parameters: tuple[str, ...]


def layers(net: nn.Module) -> list[Layer]:
    """Returns the layers from the input to the classifier; every parameter is in exactly one.

    First the stem: all before the first block, embeddings too. Then each residual, inception or
    transformer block, with what leads to it (patch merging, fusion of pathways). The last one is
    the classifier alone. A norm belongs to what it follows, so a final norm to the last block;
    other weights between the last block and the classifier are one layer. Blocks of the same number
    in SlowFast's two pathways are one layer. Where there are no blocks (C3D, VGG), each convolution
    is a layer.

    Args:
        net: A network whose last module with a weight is its classifier; on any device.

    Raises:
        UsageError: It has no module with a weight.
    """
    end = _classifier(net)
    names = {name for name, _ in net.named_parameters()}
    units = list(_units(net, "", end, names, most=_num_weights(net) // 2))
    (head,) = (unit for unit in units if unit.paths == (end,))
    units.remove(head)
    num_below = 1 + max((i for i, unit in enumerate(units) if unit.parameters), default=-1)
    in_blocks = sum(unit.weights for unit in units if unit.weights > 1)
    least = 2 if 2 * in_blocks > sum(unit.weights for unit in units) else 1
    groups: list[list[_Unit]] = []
    waiting: list[_Unit] = []  # for the block that follows
    for unit in units[:num_below]:
        if unit.weights >= least:
            if waiting and not groups:
                groups.append(waiting)
                waiting = []
            groups.append([*waiting, unit])
            waiting = []
        elif unit.weights or not unit.paths or waiting or not groups:
            waiting.append(unit)
        else:  # a norm, an activation, dropout, a pool
            groups[-1].append(unit)
    if waiting:
        groups.append(waiting)
    groups.append([head, *units[num_below:]])
    return [_layer(group, first=not i, has_blocks=least == 2) for i, group in enumerate(groups)]


def head(net: nn.Module) -> tuple[str, ...]:
    """Returns the names of the classifier's parameters.

    Raises:
        UsageError: The network has no module with a weight.
    """
    return layers(net)[-1].parameters


def freeze(net: nn.Module, *, train_layers: int) -> None:
    """Leaves the classifier and the last layers below it to be trained, in place.

    Frozen parameters need no gradient. Frozen parts stay in eval mode whatever `net.train()` says:
    their batch-norm statistics do not move and their dropout is off.

    Args:
        net: Any network.
        train_layers: How many layers below the classifier are trained; 0: none.

    Raises:
        UsageError: The network has no more layers than that.
    """
    found = layers(net)
    if not 0 <= train_layers < len(found) - 1:
        raise UsageError(
            f"finetune.train_layers={train_layers} freezes nothing: the network has "
            f"{len(found) - 1} layers below its classifier; give less, or all"
        )
    parameters = dict(net.named_parameters())
    for layer in found[: -1 - train_layers]:
        for name in layer.parameters:
            parameters[name].requires_grad_(False)
        for path in layer.parts:
            _stay_in_eval(net.get_submodule(path))


def freeze_norms(net: nn.Module) -> None:
    """Keeps the statistics of every batch norm as they are; its scale and shift are still trained.

    Raises:
        UsageError: No batch norm would be trained otherwise.

    Source: `norm_eval` in MMAction2's fine-tuning configs.
    """
    norms = [part for part in net.modules() if isinstance(part, _BatchNorm)]
    trained = [norm for norm in norms if "train" not in vars(norm)]
    if not any(p.requires_grad for norm in trained for p in norm.parameters()):
        raise UsageError(
            "finetune.freeze_norm=true freezes nothing: no layer that is trained has batch norm; "
            "leave it false"
        )
    for norm in trained:
        _stay_in_eval(norm)


def learning_rates(net: nn.Module, *, layer_decay: float, head_lr: float) -> dict[str, float]:
    """Returns the factor on the learning rate for each parameter that is trained, by name.

    Args:
        net: Any network, frozen in part or not.
        layer_decay: Factor from each layer to the one before it; 1: none.
        head_lr: The classifier's factor.

    Raises:
        UsageError: A decay, but only the classifier is trained.

    Source: Clark et al., ELECTRA, ICLR 2020, and Bao et al., BEiT, ICLR 2022 (layer-wise decay).
    """
    found = layers(net)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    if layer_decay != 1 and trained <= {*found[-1].parameters}:
        raise UsageError(
            f"finetune.layer_decay={layer_decay:g} has no effect: only the classifier is trained; "
            "leave it null, or raise finetune.train_layers"
        )
    factors = dict.fromkeys(found[-1].parameters, head_lr)
    for distance, layer in enumerate(reversed(found[:-1]), 1):
        factors |= dict.fromkeys(layer.parameters, layer_decay**distance)
    return {name: factor for name, factor in factors.items() if name in trained}


def _stay_in_eval(part: nn.Module) -> None:
    part.eval()
    part.train = partial(_no_training, part)  # type: ignore[method-assign]


def _no_training(part: nn.Module, mode: bool = True) -> nn.Module:
    return part


def _layer(group: list[_Unit], *, first: bool, has_blocks: bool) -> Layer:
    largest = max(group, key=lambda unit: unit.weights)
    is_stem = first and has_blocks and largest.weights < 2
    return Layer(
        name="stem" if is_stem else largest.paths[0],
        parts=tuple(path for unit in group for path in unit.paths),
        blocks=tuple(
            path for unit in group if has_blocks and unit.weights > 1 for path in unit.paths
        ),
        parameters=tuple(name for unit in group for name in unit.parameters),
    )


def _classifier(net: nn.Module) -> str:
    found = [
        path
        for path, part in net.named_modules()
        if isinstance(getattr(part, "weight", None), nn.Parameter) and not any(part.children())
    ]
    if not found:
        raise UsageError(
            f"{type(net).__name__} has no layer with a weight, so nothing can be trained"
        )
    return found[-1]


def _units(net: nn.Module, path: str, end: str, names: set[str], most: int) -> Iterator[_Unit]:
    """Yields what lies below a path, in order; `names` loses the parameters that were found.

    What holds more than `most` weights is no block, nor what holds several blocks.
    """
    part = net.get_submodule(path)
    holds_end = path != end and end.startswith(f"{path}." if path else "")
    large = _num_weights(part) > most and any(part.children())
    if not (holds_end or large or type(part) in _CONTAINERS or _is_stage(part)):
        yield _Unit((path,), _num_weights(part), _take(names, path, part, recurse=True))
        return
    own = _take(names, path, part, recurse=False)
    if own:
        yield _Unit((), 0, own)
    for name, child in part.named_children():
        below = f"{path}.{name}" if path else name
        if name == _PATHWAYS:
            paths = [f"{below}.{pathway}" for pathway, _ in child.named_children()]
            pathways = [list(_units(net, path, end, names, most)) for path in paths]
            yield from (_side_by_side(units) for units in zip_longest(*pathways))
        else:
            yield from _units(net, below, end, names, most)


def _side_by_side(units: tuple[_Unit | None, ...]) -> _Unit:
    there = [unit for unit in units if unit is not None]
    return _Unit(
        paths=tuple(path for unit in there for path in unit.paths),
        weights=max(unit.weights for unit in there),
        parameters=tuple(name for unit in there for name in unit.parameters),
    )


def _take(names: set[str], path: str, part: nn.Module, *, recurse: bool) -> tuple[str, ...]:
    found = [name for name, _ in part.named_parameters(path, recurse=recurse) if name in names]
    names.difference_update(found)
    return tuple(found)


def _is_stage(part: nn.Module) -> bool:
    if hasattr(part, _PATHWAYS):
        return True
    for container in part.modules():
        if isinstance(container, _CONTAINERS):
            counts = Counter(
                type(child)
                for child in container.children()
                if type(child) not in _CONTAINERS and _num_weights(child) > 1
            )
            if any(count > 1 for count in counts.values()):
                return True
    return False


def _num_weights(part: nn.Module) -> int:
    return sum(
        name.endswith("weight") and weight.ndim > 1 for name, weight in part.named_parameters()
    )
