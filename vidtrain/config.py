"""Every knob that vidtrain's own code reads, with its type, unit and default. No torch here.

Open nodes (`source`, `build`, samplers, optimizer, schedule, mix) are `Any`: they carry `_target_`
and plain arguments, and the signature of the target is their schema; `build` checks them.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vidtrain.config_data import (
    BenchmarkConfig,
    CheckConfig,
    DataConfig,
    IndexConfig,
    PrepareConfig,
    StatsConfig,
)
from vidtrain.config_model import FinetuneConfig, ModelConfig


@dataclass
class ClipSamplerConfig:
    """Nodes that pick frame indices, for training and for evaluation."""

    train: Any = MISSING
    eval: Any = MISSING


@dataclass
class PrecisionConfig:
    """Arithmetic of forward and backward.

    Attributes:
        dtype: fp32, bf16 (autocast) or fp16 (autocast with loss scaling).
        tf32: Whether CUDA may use TF32 for fp32 convolutions and matrix products.
    """

    dtype: str = "fp32"
    tf32: bool = False


@dataclass
class LoopConfig:
    """The training loop.

    Attributes:
        epochs: Passes over the training split.
        max_steps: Stop after so many optimizer steps; null: all epochs. The schedule keeps its
            full length.
        batch_size: Clips per optimizer step, over all processes and accumulated micro-batches.
        lr_batch: The batch_size that optimizer.lr is meant for: the rate is multiplied by
            batch_size / lr_batch (Goyal et al., 2017, section 2.1); null: optimizer.lr as it is.
        accumulate: Micro-batches per optimizer step.
        clip_grad_norm: Largest gradient norm; null: no clipping.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        ema_decay: Decay of the averaged weights per step; null: no average.
        no_decay_norm_bias: Leave norms and biases out of weight decay.
        log_every_steps: Steps between two rows of metrics.
        save_every_steps: Steps between two checkpoints; null: one per epoch.
    """

    epochs: int = 18
    max_steps: int | None = None
    batch_size: int = 16
    lr_batch: int | None = None
    accumulate: int = 1
    clip_grad_norm: float | None = None
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    no_decay_norm_bias: bool = True
    log_every_steps: int = 10
    save_every_steps: int | None = None


@dataclass
class EvalConfig:
    """Evaluation.

    Attributes:
        num_clips: Temporal views per video (constant clips).
        num_crops: Spatial views per clip: 1 centre, or 3 along the longer side.
        batch_size: Views per forward pass and process.
        every_epochs: Epochs between two validations while training.
    """

    num_clips: int = 1
    num_crops: int = 1
    batch_size: int = 32
    every_epochs: int = 1


@dataclass
class TrainConfig:
    """Root of `vidtrain train`.

    Attributes:
        name: Run name.
        runs: Folder of all runs.
        run_dir: Run folder, made from the two.
        seed: Seed of everything random.
        device: auto, cpu, cuda or cuda:N.
        num_threads: CPU threads per process; null: torch's choice.
        resume: Go on from the run folder's last checkpoint; false: refuse a folder that has one.
    """

    name: str = MISSING
    runs: str = "runs"
    run_dir: str = MISSING
    seed: int = 0
    device: str = "auto"
    num_threads: int | None = None
    resume: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    clip_sampler: ClipSamplerConfig = field(default_factory=ClipSamplerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    augment: Any = None
    mix: Any = None
    optimizer: Any = MISSING
    schedule: Any = MISSING
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class RunConfig:
    """What every stage that starts from a finished run shares.

    Attributes:
        run: Run folder.
        checkpoint: best, last, or the path of a checkpoint file.
        device: auto, cpu, cuda or cuda:N.
        num_threads: CPU threads per process; null: torch's choice.
    """

    run: str = MISSING
    checkpoint: str = "best"
    device: str = "auto"
    num_threads: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    clip_sampler: ClipSamplerConfig = field(default_factory=ClipSamplerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)


@dataclass
class EvalStageConfig(RunConfig):
    """Root of `vidtrain eval`."""

    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class ExportConfig(RunConfig):
    """Root of `vidtrain export`.

    Attributes:
        format: onnx, torch_export or torchscript.
        output: File to write; null: export/ in the run folder.
        tolerance: Largest allowed difference from eager, in standard deviations of the logits.
        num_videos: Videos of the validation split that parity is proved on.
    """

    format: str = "onnx"
    output: str | None = None
    tolerance: float = 1e-3
    num_videos: int = 4
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class ModelsConfig:
    """Root of `vidtrain models`.

    Attributes:
        pattern: Shell-style pattern of the names to list; plain text matches anywhere.
        json: Print JSON instead of a table (also --json).
        detail: Print a page on each model, with its layers (also --detail).
    """

    pattern: str = "*"
    json: bool = False
    detail: bool = False


@dataclass
class DoctorConfig:
    """Root of `vidtrain doctor`.

    Attributes:
        runs: Folder that runs would be written to.
    """

    runs: str = "runs"


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "eval": EvalStageConfig,
    "export": ExportConfig,
    "index": IndexConfig,
    "stats": StatsConfig,
    "check": CheckConfig,
    "prepare": PrepareConfig,
    "benchmark": BenchmarkConfig,
    "models": ModelsConfig,
    "doctor": DoctorConfig,
}
