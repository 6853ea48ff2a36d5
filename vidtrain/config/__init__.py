"""Every knob that vidtrain's own code reads, with its type, unit and default. No torch here.

Open nodes (`source`, `build`, samplers, optimizer, schedule, mix) are `Any`: they carry `_target_`
and plain arguments, and the signature of the target is their schema; `build` checks them.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vidtrain.config.benchmark import BenchmarkConfig
from vidtrain.config.data import (
    CheckConfig,
    DataConfig,
    IndexConfig,
    PrepareConfig,
    StatsConfig,
)
from vidtrain.config.doctor import DoctorConfig
from vidtrain.config.launch import LaunchConfig
from vidtrain.config.model import ModelConfig
from vidtrain.config.plot import PlotConfig
from vidtrain.config.repro import ReproConfig
from vidtrain.config.train import (
    ClipSamplerConfig,
    EvalConfig,
    PrecisionConfig,
    TrainConfig,
)


@dataclass
class RunConfig:
    """What every stage that starts from a finished run shares.

    Attributes:
        run: Run folder.
        checkpoint: best, last, or the path of a checkpoint's folder.
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
    task: Any = None


@dataclass
class EvalStageConfig(RunConfig):
    """Root of `vidtrain eval`."""

    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class ExportConfig(RunConfig):
    """Root of `vidtrain export`.

    Attributes:
        format: onnx, torch_export, torchscript, or safetensors: the weights alone.
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


RANKED = ("train", "eval", "export", "doctor")  # stages that torchrun may start several times

SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "eval": EvalStageConfig,
    "export": ExportConfig,
    "index": IndexConfig,
    "stats": StatsConfig,
    "check": CheckConfig,
    "prepare": PrepareConfig,
    "benchmark": BenchmarkConfig,
    "repro": ReproConfig,
    "plot": PlotConfig,
    "models": ModelsConfig,
    "doctor": DoctorConfig,
    "launch": LaunchConfig,
}
