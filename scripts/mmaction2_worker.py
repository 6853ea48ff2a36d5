# mypy: disable-error-code="import-not-found"
"""Runs MMAction2's own input pipelines for `vidtrain benchmark input`, which starts this file.

It runs in MMAction2's environment (scripts/mmaction2_env.sh) and reads one JSON object a line:

    {"open": KEY, "stream": NAME, "pattern": PATTERN, "clips": [{"path", "start"}], "batch": SIZE}
    {"run": KEY, "batches": NUMBER}
    {"close": KEY}

and answers each with one line. Pipelines come unchanged from the config files that MMAction2's
wheel carries, and so does everything about the loader but what is set in `loader`. One transform is
put in after the one that draws the clip's start: it puts the start that all programs are given in
its place. Time is measured from outside.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import cv2
import mmaction
import mmcv
import mmengine
import torch
from mmaction.datasets import VideoDataset  # noqa: F401  registers data sets and transforms
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

# The published config of each pattern, and which of its loaders.
CONFIGS = {
    "32x2": ("slowfast/slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb.py", "train_dataloader"),
    "8x8": ("slowonly/slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb.py", "train_dataloader"),
    "tsn8": (
        "tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.py", "train_dataloader",
    ),
    "eval10x3": ("slowfast/slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb.py", "test_dataloader"),
}  # fmt: skip


@TRANSFORMS.register_module()
class PinStart(BaseTransform):
    """Moves the frames of a clip to the start that the benchmark drew for it."""

    def __init__(self, starts):
        self.starts = starts

    def transform(self, results):
        start = self.starts[results["label"]]
        results["frame_inds"] = results["frame_inds"] - results["frame_inds"].min() + start
        return results


def loader(pattern, clips, batch):
    """The published loader of a pattern over these clips, in their order, with one process."""
    file, part = CONFIGS[pattern]
    published = Config.fromfile(
        Path(mmaction.__file__).parent / ".mim" / "configs" / "recognition" / file
    )[part]
    pipeline = list(published.dataset.pipeline)
    if clips[0]["start"] is not None:
        place = [step["type"] for step in pipeline].index("SampleFrames") + 1
        pipeline.insert(place, {"type": "PinStart", "starts": [clip["start"] for clip in clips]})
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "list.txt"
        listed.write_text("".join(f"{clip['path']}\t{i}\n" for i, clip in enumerate(clips)))
        dataset = published.dataset | {
            "ann_file": str(listed), "data_prefix": {"video": ""}, "delimiter": "\t",
            "pipeline": pipeline,
        }  # fmt: skip
        changed = {
            "dataset": dataset, "batch_size": batch, "num_workers": 1,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        }  # fmt: skip
        return Runner.build_dataloader(dict(published) | changed, seed=0)


def forever(batches):
    """Batches of one epoch after the other."""
    while True:
        yield from batches


def summary(batch):
    """What came: clips, values and bytes, so that every program can be seen to do its work."""
    return {
        "samples": [int(sample.gt_label) for sample in batch["data_samples"]],
        "shape": list(batch["inputs"][0].shape),
        "dtype": str(batch["inputs"][0].dtype).removeprefix("torch."),
        "bytes": sum(clip.nbytes for clip in batch["inputs"]),
    }


def answer(order, streams):
    if "open" in order:
        streams[order["open"]] = forever(loader(order["pattern"], order["clips"], order["batch"]))
        return {"versions": {
            "mmaction2": mmaction.__version__, "mmengine": mmengine.__version__,
            "mmcv-lite": mmcv.__version__, "torch": torch.__version__,
        }}  # fmt: skip
    if "run" in order:
        return {"batches": [summary(next(streams[order["run"]])) for _ in range(order["batches"])]}
    del streams[order["close"]]
    return {}


def main():
    warnings.filterwarnings("ignore")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    init_default_scope("mmaction")
    streams: dict = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), streams)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
