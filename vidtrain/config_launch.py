"""The knobs of `vidtrain launch`; see `config`."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class LaunchConfig:
    """Root of `vidtrain launch`.

    Attributes:
        engine: What starts the processes: slurm, kubernetes or torchrun.
        command: The stage and its overrides, as after `vidtrain`.
        dry_run: Print what would be submitted, and submit nothing (also --dry-run).
    """

    engine: str = MISSING
    command: list[str] = field(default_factory=list)
    dry_run: bool = False
