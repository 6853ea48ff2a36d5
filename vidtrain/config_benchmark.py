"""The knobs of `vidtrain benchmark`; see `config`."""

from dataclasses import dataclass, field


@dataclass
class BenchmarkConfig:
    """Root of `vidtrain benchmark`.

    Attributes:
        what: What to measure: input, or step.
        files: Videos to use, a folder or a glob; null: clips generated on the spot. Input only.
        patterns: Ways of sampling to measure: 32x2, 8x8, tsn8, eval10x3. Input only.
        rounds: Measured rounds, after one to warm up.
        clips: Clips per round and pattern. Input only.
        peers: Programs to compare with: pytorchvideo, mmaction2. Input only.
        mmaction2_python: Python of the environment that MMAction2 is installed in.
        models: Models whose training step is measured. This and what follows: step only.
        batch_size: Clips per step.
        crop_size: Side of the clips, pixels; null: the model's own.
        num_frames: Frames of the clips; null: the model's own.
        dtype: Precision of ours and of the plain loop: fp32, bf16 or fp16.
        options: What to measure the gain of: channels_last, bf16, fp16, compile, or all: the first,
            the second and the last at once.
        device: auto, cpu, cuda or cuda:N.
        num_threads: CPU threads; null: torch's choice.
        output: Folder to write figures and a table to.
        seed: Seed of the clips' starts and crops, and of the order of turns.
    """

    what: str = "input"
    files: str | None = None
    patterns: list[str] = field(default_factory=lambda: ["32x2", "eval10x3"])
    rounds: int = 5
    clips: int = 16
    peers: list[str] = field(default_factory=lambda: ["pytorchvideo"])
    mmaction2_python: str | None = None
    models: list[str] = field(default_factory=lambda: ["x3d_xs"])
    batch_size: int = 4
    crop_size: int | None = None
    num_frames: int | None = None
    dtype: str = "fp32"
    options: list[str] = field(default_factory=lambda: ["channels_last", "bf16", "compile"])
    device: str = "auto"
    num_threads: int | None = None
    output: str = "runs/benchmark"
    seed: int = 0
