"""The knobs of `vidtrain benchmark`; see `config`."""

from dataclasses import dataclass, field

from vidtrain.config.train import TrainConfig


@dataclass
class BenchmarkConfig(TrainConfig):
    """Root of `vidtrain benchmark`; the settings of a training count for scaling.

    Attributes:
        what: What to measure: input, step, or scaling.
        files: Videos to use, a folder or a glob; null: clips generated on the spot. Input only.
        patterns: Ways of sampling to measure: 32x2, 8x8, tsn8, eval10x3. Input only.
        rounds: Measured rounds, after one to warm up.
        clips: Clips per round and pattern. Input only.
        peers: Programs to compare with: pytorchvideo, mmaction2. Input only.
        mmaction2_python: Python of the environment that MMAction2 is installed in.
        models: Models whose training step is measured. Step only.
        batch_size: Clips per step; scaling: of each process, or of all with strong=true.
        crop_size: Side of the clips, pixels; null: the model's own. Step only.
        num_frames: Frames of the clips; null: the model's own. Step only.
        dtype: Precision of ours and of the plain loop: fp32, bf16 or fp16. Step only.
        options: What to measure the gain of: channels_last, bf16, fp16, compile, or all: the first,
            the second and the last at once. Step only.
        processes: Numbers of processes to measure; 1 is always among them. This and what follows:
            scaling only.
        strong: Split batch_size over the processes, in place of giving it to each.
        gpus: Numbers of GPUs to predict.
        bandwidth_gbps: Network of a node, in and out at once, all its GPUs together, Gbit/s.
        node_bandwidth_gbps: Links of one GPU to the others of its node, in and out at once, Gbit/s.
        latency_us: Time of the smallest message from node to node, microseconds.
        gpus_per_node: GPUs of a node.
        step_seconds: Time of a step of batch_size clips on one GPU, measured elsewhere; null: as
            measured here.
        jitter: Spread of the time of a step, over that time; null: as measured here.
        output: Folder to write figures and a table to.
        given: The settings on the command line.
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
    processes: list[int] = field(default_factory=lambda: [1, 2, 4])
    strong: bool = False
    gpus: list[int] = field(default_factory=lambda: [8, 64, 512])
    bandwidth_gbps: float = 100.0
    node_bandwidth_gbps: float = 2400.0
    latency_us: float = 14.0
    gpus_per_node: int = 8
    step_seconds: float | None = None
    jitter: float | None = None
    output: str = "runs/benchmark"
    given: list[str] = field(default_factory=list)
