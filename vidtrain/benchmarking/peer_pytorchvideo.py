"""PyTorchVideo's own data set class and transforms, as its Kinetics recipe puts them together."""

import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
import torchvision.transforms._functional_tensor as functional_tensor
from torch.utils.data import DataLoader, SequentialSampler
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip

# The name that PyTorchVideo 0.1.5 imports it by; torchvision 0.17 put the underscore before it.
sys.modules.setdefault("torchvision.transforms.functional_tensor", functional_tensor)

from pytorchvideo.data import LabeledVideoDataset  # noqa: E402
from pytorchvideo.data.clip_sampling import (  # noqa: E402
    ClipInfo,
    ClipSampler,
    ConstantClipsPerVideoSampler,
)
from pytorchvideo.transforms import (  # noqa: E402
    ApplyTransformToKey,
    Div255,
    Normalize,
    RandomShortSideScale,
    ShortSideScale,
    UniformCropVideo,
    UniformTemporalSubsample,
)

from vidtrain.benchmarking.patterns import EVAL_CLIPS, EVAL_CROPS, Pattern, Sample  # noqa: E402

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)


class PinnedStart(ClipSampler):
    """One clip per entry of the list, at the start that all programs are given."""

    def __call__(
        self, last_clip_time: float, video_duration: float, annotation: dict[str, Any]
    ) -> ClipInfo:
        """Returns the clip that starts at annotation["start"] seconds."""
        start = annotation["start"]
        return ClipInfo(start, start + self._clip_duration, 0, 0, True)


def batches(pattern: Pattern, samples: list[Sample], *, batch: int) -> Iterator[dict[str, Any]]:
    """Endless batches from one loader process; float32 (B, 3, T, H, W), normalised."""
    span = Fraction(pattern.frames * pattern.stride) / Fraction(samples[0].fps)
    normalised = [
        UniformTemporalSubsample(pattern.frames), Div255(), Normalize(MEAN, STD),
    ]  # fmt: skip
    if pattern.evaluation:
        sampler: ClipSampler = ConstantClipsPerVideoSampler(span, EVAL_CLIPS, EVAL_CROPS)
        scaled = [*normalised, ShortSideScale(pattern.crop)]
        transform = Compose(
            [ApplyTransformToKey("video", Compose(scaled)), UniformCropVideo(pattern.crop)]
        )
        batch = EVAL_CROPS  # a batch is one clip's crops; whole videos would be 755 MB
    else:
        sampler = PinnedStart(span)
        scaled = [
            *normalised, RandomShortSideScale(256, 320), RandomCrop(pattern.crop),
            RandomHorizontalFlip(),
        ]  # fmt: skip
        transform = ApplyTransformToKey("video", Compose(scaled))
    listed = [
        (s.path, {"label": number, "start": Fraction(s.start or 0) / Fraction(s.fps)})
        for number, s in enumerate(samples)
    ]
    dataset = LabeledVideoDataset(
        listed, sampler, video_sampler=SequentialSampler, decode_audio=False,
        transform=Compose([transform, _without_start]),
    )  # fmt: skip
    loader = DataLoader(dataset, batch_size=batch, num_workers=1, persistent_workers=True)
    while True:
        yield from loader


def _without_start(sample: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what cannot be collated."""
    del sample["start"]
    return sample


def summary(batch: dict[str, Any]) -> dict[str, Any]:
    """What came, so that the program can be seen to do its work."""
    video: torch.Tensor = batch["video"]
    return {
        "samples": batch["label"].tolist(), "shape": list(video.shape[1:]),
        "dtype": str(video.dtype).removeprefix("torch."), "bytes": video.nbytes,
    }  # fmt: skip
