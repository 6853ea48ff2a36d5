"""The knobs of `vidtrain doctor`; see `config`."""

from dataclasses import dataclass, field

from vidtrain.config.train import TrainConfig


@dataclass
class DoctorConfig(TrainConfig):
    """Root of `vidtrain doctor`: what it looks at, and the training that it is asked for.

    Attributes:
        json: Print JSON instead of a table (also --json).
        dry_step: Take a training step on generated clips; null: if a setting of a training
            other than of its data is on the command line.
        limit_seconds: Time that a process has for each part of the examination before it is named
            as not answering; the dry step has ten times as long.
        sizes_mb: Sizes of the sums over all processes that are timed, MB.
        min_gbps: Slowest acceptable connection between two nodes, Gbit/s; null: only nodes and
            connections that are slow beside the others are named.
        given: The settings on the command line.
    """

    json: bool = False
    dry_step: bool | None = None
    limit_seconds: float = 60.0
    sizes_mb: list[float] = field(default_factory=lambda: [1.0, 16.0, 64.0])
    min_gbps: float | None = None
    given: list[str] = field(default_factory=list)
