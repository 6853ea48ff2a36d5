"""The data set's knobs, and those of the stages that look at one; see `config`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class PublishedDataConfig:
    """The official counts of a data set: what a dry run goes by where the videos are not there.

    Attributes:
        num_classes: Classes.
        num_train: Videos of the training split.
        num_val: Videos of the validation split.
    """

    num_classes: int = MISSING
    num_train: int = MISSING
    num_val: int = MISSING


@dataclass
class DataConfig:
    """Which videos, and how they are read.

    Attributes:
        name: Short name, part of the run's name.
        root: Folder that holds the data set.
        train: Split to train on, in the source's own terms (sub-folder, list file).
        val: Split to validate and evaluate on.
        classes: Text file with one class name a line; null: the source finds the names.
        horizontal_flip: Whether a mirrored video keeps its label.
        source: Node whose target returns the list of videos.
        decoder: Decoder back end: pyav, decord or torchcodec; frame folders are read as images.
        frame_folder_fps: Frames per second of frame folders; null: unknown.
        num_workers: Loader processes per rank; 0 decodes in the training process.
        prefetch_batches: Batches each worker keeps ready.
        timeout_seconds: A loader that gives no batch for so long stops the run, and the video it
            hangs at is named; 0 waits forever.
        views_per_decode: Clips that are cut from each decoded video in training, each with its own
            crop, flip and augmentation (repeated augmentation); they count as clips of the batch.
        class_balance: How far the classes of a skewed set are evened out, 0 to 1: videos are drawn
            in proportion to (videos of their class)^-class_balance; 0: each once an epoch.
        published: The official counts.
        index: File that the packet index is kept in; null: one for each root in the cache folder.
        prepared: Folder that `vidtrain prepare` wrote; null: the originals are read.
        quarantine: File that `vidtrain check` wrote; training leaves the videos in it out.
        max_bad_fraction: Share of the training videos that may turn out unreadable and be replaced
            by others before training stops.
    """

    name: str = MISSING
    root: str = MISSING
    train: str = "train"
    val: str = "val"
    classes: str | None = None
    horizontal_flip: bool = True
    source: Any = MISSING
    decoder: str = "pyav"
    frame_folder_fps: float | None = None
    num_workers: int = 2
    prefetch_batches: int = 2
    timeout_seconds: float = 300.0
    views_per_decode: int = 1
    class_balance: float = 0.0
    published: PublishedDataConfig | None = None
    index: str | None = None
    prepared: str | None = None
    quarantine: str | None = None
    max_bad_fraction: float = 0.001


@dataclass
class DataStageConfig:
    """What the stages that look at a data set share.

    Attributes:
        splits: Parts to look at: train, val or both.
        workers: Processes; null: one per core.
    """

    data: DataConfig = field(default_factory=DataConfig)
    splits: list[str] = field(default_factory=lambda: ["train", "val"])
    workers: int | None = None


@dataclass
class IndexConfig(DataStageConfig):
    """Root of `vidtrain index`."""


@dataclass
class StatsConfig(DataStageConfig):
    """Root of `vidtrain stats`.

    Attributes:
        output: Folder to write stats.json and stats.png to.
    """

    output: str = MISSING


@dataclass
class CheckConfig(DataStageConfig):
    """Root of `vidtrain check`.

    Attributes:
        output: Folder to write results.jsonl, summary.json and quarantine.jsonl to.
        timeout_seconds: A file that takes longer to decode is killed and counted as hanging.
        memory_gib: Memory that decoding one file may take, GiB.
        sums: File of the SHA-256 sums that the files should have, as `sha256sum` writes it or the
            results.jsonl of an earlier check; null: the content is not compared.
    """

    output: str = MISSING
    timeout_seconds: float = 600.0
    memory_gib: float = 2.0
    sums: str | None = None


@dataclass
class PrepareConfig(DataStageConfig):
    """Root of `vidtrain prepare`.

    Attributes:
        output: Folder to write to; must not lie inside data.root.
        short_side: Short side of the new files, pixels; smaller videos keep their size.
        gop: Frames from one keyframe to the next.
        crf: Quality of x264: lower is better and larger.
        preset: Speed of x264.
        timeout_seconds: A file that takes longer is killed and reported.
    """

    output: str = MISSING
    short_side: int = 320
    gop: int = 16
    crf: int = 20
    preset: str = "medium"
    timeout_seconds: float = 3600.0
