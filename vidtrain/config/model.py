"""The model's part of config: its clip, its weights, and how it is fine-tuned. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class InputConfig:
    """The clip a model takes.

    Attributes:
        num_frames: Frames of a clip, T.
        sampling_rate: Distance of two frames of a clip, in source frames.
        target_fps: Rate at which sampling_rate counts; null: the video's own.
        crop_size: Side of the training crop, pixels.
        short_side: Smallest and largest short side of the training jitter, pixels.
        crop_area: Smallest and largest share of the frame of a random resized crop, which then
            takes the place of the jitter; null: the jitter.
        crop_aspect: Smallest and largest width over height of a random resized crop.
        eval_crop_size: Side of the evaluation crop, pixels.
        eval_short_side: Short side in evaluation, pixels.
        mean: Per-channel RGB mean, for values in [0, 1].
        std: Per-channel RGB standard deviation, for values in [0, 1].
    """

    num_frames: int = MISSING
    sampling_rate: int = MISSING
    target_fps: float | None = None
    crop_size: int = MISSING
    short_side: list[int] = MISSING
    crop_area: list[float] | None = None
    crop_aspect: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    eval_crop_size: int = MISSING
    eval_short_side: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING


@dataclass
class PublishedConfig:
    """A published result of a model, and the file of its weights.

    Attributes:
        dataset: Data set of the figures: K400, SSv2, IN1k ...
        top1: Top-1 accuracy, per cent; null: not published.
        top5: Top-5 accuracy, per cent; null: not published.
        views: Views of these figures, clips x crops; null: not published.
        url: https://..., or hf:ORG/REPO; null: the figure is known, a file is not.
        sha256: Digest of the file, or its first digits; null: none is published.
        num_classes: Classes of the file's head.
        source: Where the figures and the file come from.
        licence: Licence of the weights; null: not stated.
        note: What must be set for the figures to come out, or why they do not; null: nothing.
    """

    dataset: str = MISSING
    top1: float | None = None
    top5: float | None = None
    views: str | None = None
    url: str | None = None
    sha256: str | None = None
    num_classes: int = 400
    source: str = MISSING
    licence: str | None = None
    note: str | None = None


@dataclass
class ModelConfig:
    """Which network, and what it takes.

    Attributes:
        name: Short name, part of the run's name.
        family: Family of the network, for the table of models.
        build: Node whose target builds the network; `num_classes` comes from the data.
        weights: What it starts from: published, published:DATASET[:N], a file, a URL, or
            hf:ORG/REPO; null: random weights.
        published: Published results and weights, the first ones being `published`.
        channels_last: Keep tensors in channels-last order.
        checkpointing: Compute activations again in the backward pass in place of keeping them.
        compile: Let torch.compile make kernels.
        input: The clip it takes.
    """

    name: str = MISSING
    family: str = MISSING
    build: Any = MISSING
    weights: str | None = None
    published: list[PublishedConfig] = field(default_factory=list)
    channels_last: bool = False
    checkpointing: bool = False
    compile: bool = False
    input: InputConfig = field(default_factory=InputConfig)


@dataclass
class FinetuneConfig:
    """Which weights are trained, and at which rate.

    Attributes:
        train_layers: all; head: the classifier alone; N: it and the last N layers. What is not
            trained stays in eval mode: its batch-norm statistics and dropout are frozen too.
        layer_decay: Factor on the learning rate from each layer to the one before it, in (0, 1):
            the classifier has the full rate, the last layer decay, the one before decay^2;
            null: one rate.
        head_lr: Factor on the classifier's learning rate.
        freeze_norm: Keep the batch-norm statistics of trained layers as they are, too.
    """

    train_layers: int | str = "all"
    layer_decay: float | None = None
    head_lr: float = 1.0
    freeze_norm: bool = False
