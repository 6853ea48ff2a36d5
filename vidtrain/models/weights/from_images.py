"""Checkpoints of image models (torchvision and timm names) -> the names of the video networks."""

from torch import Tensor

from vidtrain.models.weights import from_pyslowfast
from vidtrain.models.weights.renaming import Rules, rename, renamed

State = dict[str, Tensor]
# Parts of a ResNet's blocks, to the names of PySlowFast.
BLOCK_PARTS: Rules = (
    (r"\.downsample\.0\.", ".branch1."),
    (r"\.downsample\.1\.", ".branch1_bn."),
    (r"\.conv([123])\.", lambda found: f".branch2.{'abc'[int(found[1]) - 1]}."),
    (r"\.bn([123])\.", lambda found: f".branch2.{'abc'[int(found[1]) - 1]}_bn."),
    (r"^fc\.", "head.projection."),
)
RESIDUAL: Rules = (
    (r"^conv1\.", "s1.pathway0_stem.conv."),
    (r"^bn1\.", "s1.pathway0_stem.bn."),
    (r"^layer(\d)\.(\d+)\.", lambda found: f"s{int(found[1]) + 1}.pathway0_res{found[2]}."),
    *BLOCK_PARTS,
)
_I3D: Rules = (
    (r"^conv1\.", "first_stage.0."),
    (r"^bn1\.", "first_stage.1."),
    (r"^layer(\d)\.", lambda found: f"res_layers.{int(found[1]) - 1}."),
)
_R3D: Rules = (
    (r"^(layer\d\.\d+)\.conv(\d)\.", r"\1.conv\2.0."),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1."),
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
)
_GOOGLENET: Rules = (
    (r"^conv1\.", "Conv3d_1a_7x7."),
    (r"^conv2\.", "Conv3d_2b_1x1."),
    (r"^conv3\.", "Conv3d_2c_3x3."),
    # The letters count layers, of which the pool before them is one.
    (r"^inception(\d)([a-e])\.", lambda found: f"Mixed_{found[1]}{chr(ord(found[2]) + 1)}."),
    (r"\.branch1\.", ".b0."),
    (r"\.branch([23])\.([01])\.", lambda found: f".b{int(found[1]) - 1}{'ab'[int(found[2])]}."),
    (r"\.branch4\.1\.", ".b3b."),
    (r"\.conv\.", ".conv3d."),
    (r"^fc\.", "logits.conv3d."),
)
_FRAMES: Rules = (
    (r"^classifier\.0\.", "pre_logits.fc1."),  # torchvision's VGG; timm has convolutions there
    (r"^classifier\.3\.", "pre_logits.fc2."),
    (r"^(?!(fc|head|head\.fc|classifier|classifier\.6)\.(weight|bias)$)", "backbone."),
    (r"^(fc|head|head\.fc|classifier|classifier\.6)\.(?=(weight|bias)$)", "head."),
)


def convert(state: State, own: State) -> State | None:
    """Returns the weights of an image model under the names of a network for videos.

    Kernels stay 2-D; `loading` inflates them. TSN and TSM take any model of timm under timm's
    names, and ResNet, GoogLeNet, Inception v3 and VGG under torchvision's. ResNets also fit C2D,
    I3D, Slow, the slow pathway of SlowFast, R3D and MC3, and GoogLeNet fits I3D on Inception v1.
    I3D on Inception v3 needs no map: its names are those of the image model.

    Args:
        state: Checkpoint of an image model.
        own: Weights of the network they are for.

    Returns:
        The same tensors, but VGG's first linear layer as a kernel. None where the names are those
        of no such model, or where the network takes none.

    Source: torchvision.models and timm.models.
    """
    if any(tensor.ndim == 5 for tensor in state.values()):
        return None
    if "Conv3d_1a_7x7.conv3d.weight" in own and "inception3a.branch1.conv.weight" in state:
        return renamed(state, _GOOGLENET)
    if any(key.startswith("backbone.") for key in own):
        return _frames(state, own)
    if "layer1.0.conv1.weight" not in state:
        return None
    if "first_stage.0.weight" in own:
        return renamed(state, _I3D)
    if "layer1.0.conv1.0.weight" in own:
        return renamed(state, _R3D)
    return from_pyslowfast.convert(renamed(state, RESIDUAL), own)


def _frames(state: State, own: State) -> State | None:
    given = {}
    for name, tensor in state.items():
        ours = rename(name, _FRAMES)
        given[ours if ours in own else name] = tensor
    if not given.keys() & own.keys() - {"head.weight", "head.bias"}:
        return None
    kernel = "backbone.pre_logits.fc1.weight"
    if kernel in given and kernel in own and given[kernel].numel() == own[kernel].numel():
        given[kernel] = given[kernel].reshape(own[kernel].shape)
    return given
