"""Caffe2 files of PySlowFast's model zoo (.pkl) -> the names of PyTorchVideo."""

import re

from torch import Tensor

from vidtrain.models.weights import from_pyslowfast
from vidtrain.models.weights.renaming import Rules, renamed

# What the optimiser left behind.
_NO_WEIGHT = re.compile(r"_momentum$|^lr$|^model_iter$")
_RULES: Rules = (
    (r"^t_pool1_subsample(?=_)", "s1_fuse.conv_f2s"),
    (r"^t_res(\d)_\d+_branch2c_bn_subsample(?=_)", r"s\1_fuse.conv_f2s"),
    (r"^t_(res_)?conv1(?=_)", "s1.pathway1_stem.conv"),
    (r"^(res_)?conv1(?=_)", "s1.pathway0_stem.conv"),
    (r"^t_res(\d)_(\d+)_", r"s\1.pathway1_res\2."),
    (r"^res(\d)_(\d+)_", r"s\1.pathway0_res\2."),
    (r"\.branch2([abc])(?=_)", r".branch2.\1"),
    (r"^nonlocal_conv(\d)_(\d+)_(theta|phi|g|out)(?=_)", r"s\1.pathway0_nonlocal\2.conv_\3"),
    (r"^nonlocal_conv(\d)_(\d+)_bn(?=_)", r"s\1.pathway0_nonlocal\2.bn"),
    (r"^pred(?=_)", "head.projection"),
    (r"\.conv(_f2s)?_bn(?=_)", ".bn"),
    (r"bn_s$", "bn.weight"),
    (r"bn_b$", "bn.bias"),
    (r"bn_rm$", "bn.running_mean"),
    (r"bn_riv$", "bn.running_var"),  # the variance itself, in spite of the i
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)


def convert(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns the weights of C2D, I3D, Slow or SlowFast under the network's names.

    Args:
        state: The file's blobs, as tensors.
        own: Weights of the network they are for.

    Returns:
        The same tensors without the optimiser's; None where the names are not Caffe2's.

    Source: facebookresearch/SlowFast, slowfast/utils/c2_model_loading.py and checkpoint.py.
    """
    if "conv1_w" not in state:
        return None
    weights = {name: tensor for name, tensor in state.items() if not _NO_WEIGHT.search(name)}
    return from_pyslowfast.convert(renamed(weights, _RULES), own)
