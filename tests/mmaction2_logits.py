# mypy: disable-error-code="import-not-found"
"""Runs a model of MMAction2 with random weights, in MMAction2's own environment.

    python mmaction2_logits.py CONFIG OPTIONS SHAPE OUT

CONFIG is a file below mmaction's configs/recognition, OPTIONS a JSON object of settings of its
backbone, SHAPE that of the clip (B, 3, T, H, W), in which frames come in runs of four: then the
first of four frames and frames spread from first to last are the same. OUT receives the state, the
clip and the logits.
"""

import importlib.metadata
import json
import sys
import types
from pathlib import Path
from typing import Any

# The wheel of MMAction2 1.2.0 lacks a localizer that it imports, and names this package, which
# came into Python, without needing it.
for missing in ("mmaction.models.localizers.drn", "mmaction.models.localizers.drn.drn"):
    sys.modules[missing] = types.ModuleType(missing)
sys.modules["mmaction.models.localizers.drn.drn"].DRN = None  # type: ignore[attr-defined]
sys.modules["importlib_metadata"] = importlib.metadata

import mmaction  # noqa: E402
import mmaction.models  # noqa: E402
import torch  # noqa: E402
from mmaction.registry import MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402


def build(config: str, options: dict[str, object]) -> Any:
    """The model of a config file, not pretrained."""
    init_default_scope("mmaction")
    folder = Path(mmaction.__file__).parent / ".mim/configs/recognition"
    settings = Config.fromfile(folder / config).model
    settings.backbone.update({"pretrained": None, **options})
    settings.data_preprocessor = None
    return MODELS.build(settings).eval()


def randomise(net: torch.nn.Module) -> None:
    """Random weights and batch norm statistics that keep features at about one size."""
    learned = {name for name, _ in net.named_parameters()}
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name in learned and tensor.ndim > 1 and "weight" in name:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif name in learned and name.endswith("weight"):
            tensor.uniform_(0.5, 1)
        elif name in learned:
            tensor.normal_(std=0.1)


@torch.no_grad()
def main(config: str, options: str, shape: str, out: str) -> None:
    """Writes state, clip and logits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build(config, json.loads(options))
    randomise(net)
    batch, channels, length, height, width = json.loads(shape)
    clip = torch.randn(batch, channels, -(-length // 4), height, width)
    clip = clip.repeat_interleave(4, 2)[:, :, :length]
    if type(net).__name__ == "Recognizer2D":
        logits = net.cls_head(net.backbone(clip.transpose(1, 2).flatten(0, 1)), length)
    else:
        logits = net.cls_head(net.backbone(clip))
    torch.save({"state": net.state_dict(), "clip": clip, "logits": logits}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
