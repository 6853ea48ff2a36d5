"""PyTorchVideo's definitions, imported without the warnings of a library below it.

What the builder files make of them returns a network with forward((B, 3, T, H, W) float32) ->
(B, num_classes) logits, alike in train and eval, freshly initialised. The state_dict keys are those
of PyTorchVideo's model zoo (`blocks.0. ...`). All builders work under `torch.device("meta")`.
"""

import warnings

with warnings.catch_warnings():  # it compiles TorchScript at import, which is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from pytorchvideo.layers.swish import Swish
    from pytorchvideo.models import hub
    from pytorchvideo.models.csn import create_csn
    from pytorchvideo.models.head import ResNetBasicHead, VisionTransformerBasicHead
    from pytorchvideo.models.r2plus1d import create_r2plus1d
    from pytorchvideo.models.resnet import create_bottleneck_block
    from pytorchvideo.models.slowfast import PoolConcatPathway, create_slowfast
    from pytorchvideo.models.x3d import ProjectedPool

__all__ = [
    "PoolConcatPathway",
    "ProjectedPool",
    "ResNetBasicHead",
    "Swish",
    "VisionTransformerBasicHead",
    "create_bottleneck_block",
    "create_csn",
    "create_r2plus1d",
    "create_slowfast",
    "hub",
]
