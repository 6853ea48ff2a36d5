"""The knobs of a training; see `config`.

Lengths of time read "5 epochs", "500 steps", "1e6 samples"; a bare number is epochs.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vidtrain.config.data import DataConfig
from vidtrain.config.model import FinetuneConfig, ModelConfig
from vidtrain.config.parallel import ParallelConfig


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
        lr_batch: The batch_size that optimizer.lr is meant for; null: optimizer.lr as it is.
        lr_rule: How the rate follows batch_size / lr_batch: linear or sqrt.
        accumulate: Micro-batches per optimizer step; auto: as few as memory allows.
        micro_batch: Clips of one forward pass of one process; accumulate follows from it, whatever
            the number of processes. null: what accumulate leaves.
        clip_grad_norm: Largest gradient norm; null: no clipping.
        clip_grad_agc: Adaptive clipping: largest gradient norm of a unit over the norm of its
            weights, 0.01 to 0.1; null: none.
        no_decay_norm_bias: Leave norms, biases, tokens and position embeddings out of weight
            decay.
        log_every_steps: Steps between two rows of metrics.
        patience: Validations without a better one after which training ends; null: never.
        precise_bn: Batches that batch-norm statistics are taken over before each validation;
            0: the running ones.
        sync_bn: Batch norm over the clips of all processes (CUDA).
        skip_nonfinite: Steps that may be left out because loss or gradient is not finite.
        dry_run: Build everything, take one step on generated clips, report memory and speed.
    """

    epochs: int = 18
    max_steps: int | None = None
    batch_size: int = 16
    lr_batch: int | None = None
    lr_rule: str = "linear"
    accumulate: Any = 1
    micro_batch: int | None = None
    clip_grad_norm: float | None = None
    clip_grad_agc: float | None = None
    no_decay_norm_bias: bool = True
    log_every_steps: int = 10
    patience: int | None = None
    precise_bn: int = 0
    sync_bn: bool = False
    skip_nonfinite: int = 3
    dry_run: bool = False


@dataclass
class SaveConfig:
    """Checkpoints.

    Attributes:
        every: Time between two checkpoints.
        keep_last: Newest checkpoints that are kept.
        keep_best: Best checkpoints that are kept besides.
        metric: Figure of a validation that "best" goes by; null: the task's own. Higher is better,
            except for loss.
        background: Write while training goes on.
    """

    every: str = "1 epoch"
    keep_last: int = 2
    keep_best: int = 1
    metric: str | None = None
    background: bool = True


@dataclass
class EvalConfig:
    """Evaluation: the full protocol.

    Attributes:
        num_clips: Temporal views per video (constant clips).
        num_crops: Spatial views per clip: 1 centre, or 3 along the longer side.
        batch_size: Views per forward pass and process.
    """

    num_clips: int = 1
    num_crops: int = 1
    batch_size: int = 32


@dataclass
class ValidateConfig:
    """Evaluation while training.

    Attributes:
        every: Time between two validations; there is one at the end in any case.
        num_clips: Temporal views per video; null: as in eval.
        num_crops: Spatial views per clip; null: as in eval.
    """

    every: str = "1 epoch"
    num_clips: int | None = None
    num_crops: int | None = None


@dataclass
class LogConfig:
    """Where figures go besides metrics.jsonl and metrics.csv.

    Attributes:
        to: Any of tensorboard, wandb, mlflow.
        worst: Videos of the worst errors whose clips are drawn after a best validation.
    """

    to: list[str] = field(default_factory=lambda: ["tensorboard"])
    worst: int = 4


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
        repro: default, or strict: only deterministic kernels, pinned threads, no TF32.
        profile: Record some steps, and write a trace and a summary to profile/.
        teacher: The model that task=distillation learns from, where it is not a run:
            model@teacher=NAME teacher.weights=published.
    """

    name: str = MISSING
    runs: str = "runs"
    run_dir: str = MISSING
    seed: int = 0
    device: str = "auto"
    num_threads: int | None = None
    resume: bool = True
    repro: str = "default"
    profile: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    clip_sampler: ClipSamplerConfig = field(default_factory=ClipSamplerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    task: Any = None
    teacher: ModelConfig | None = None
    multigrid: Any = None
    augment: Any = None
    mix: Any = None
    optimizer: Any = MISSING
    schedule: Any = MISSING
    average: Any = None
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    log: LogConfig = field(default_factory=LogConfig)
