"""Checkpoints of GluonCV's PyTorch models -> the names of PyTorchVideo and torchvision."""

from torch import Tensor

from vidtrain.models.weights import from_pyslowfast
from vidtrain.models.weights.from_images import BLOCK_PARTS, RESIDUAL
from vidtrain.models.weights.renaming import Rules, renamed

State = dict[str, Tensor]
_PATHWAY = {"slow": 0, "fast": 1}
# To the names of PySlowFast.
_SLOWFAST: Rules = (
    (r"^lateral_p1\.", "s1_fuse."),
    (r"^lateral_res(\d)\.", r"s\1_fuse."),
    (r"_fuse\.0\.", "_fuse.conv_f2s."),
    (r"_fuse\.1\.", "_fuse.bn."),
    (r"^(slow|fast)_conv1\.", lambda found: f"s1.pathway{_PATHWAY[found[1]]}_stem.conv."),
    (r"^(slow|fast)_bn1\.", lambda found: f"s1.pathway{_PATHWAY[found[1]]}_stem.bn."),
    (
        r"^(slow|fast)_res(\d)\.(\d+)\.",
        lambda found: f"s{found[2]}.pathway{_PATHWAY[found[1]]}_res{found[3]}.",
    ),
    *BLOCK_PARTS,
)
_R2PLUS1D: Rules = (
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1."),
    (r"\.conv(\d)\.conv1\.", r".conv\1.0.0."),
    (r"\.conv(\d)\.bn1\.", r".conv\1.0.1."),
    (r"\.conv(\d)\.conv2\.", r".conv\1.0.3."),
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^conv2\.", "stem.3."),
    (r"^bn2\.", "stem.4."),
)


def convert(state: State, own: State) -> State | None:
    """Returns the weights of a recogniser under the network's names.

    I3D ResNets, the slow pathway alone (i3d_slow) and R(2+1)D of 18 layers compute what they did
    there. So does SlowFast, but that its slow pathway got every alpha-th frame there, counted from
    the first, where `slowfast` spreads them from the first to the last.

    TSN ResNets have the names of torchvision's image models: `from_images` takes them.

    Args:
        state: Checkpoint of GluonCV 0.10.
        own: Weights of the network they are for.

    Returns:
        The same tensors; those that stand in the file under two names only once. None where the
        names are not GluonCV's, or where no network of this kind can take them.

    Source: dmlc/gluon-cv 0.10.5, gluoncv/torch/model_zoo/action_recognition.
    """
    if "first_stage.0.weight" in state:
        return {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith("head.1.") and ".nonlocal_block.W_bn." not in name
        }
    if "fast_conv1.weight" in state:
        return from_pyslowfast.convert(renamed(state, _SLOWFAST), own)
    if "layer1.0.conv1.conv1.weight" in state or "layer1.0.conv2.conv1.weight" in state:
        return renamed(state, _R2PLUS1D)
    stem = state.get("conv1.weight")
    if stem is not None and stem.ndim == 5 and "layer1.0.conv3.weight" in state:
        return from_pyslowfast.convert(renamed(state, RESIDUAL), own)
    return None
