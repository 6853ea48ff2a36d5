"""The knobs of `vidtrain repro`; see `config`."""

from dataclasses import dataclass, field


@dataclass
class ReproConfig:
    """Root of `vidtrain repro`.

    Attributes:
        folders: One run folder, whose first steps are run again; or two to compare.
        steps: Optimizer steps to run again: up to the last digest of the weights at or before this
            step; null: up to the first digest.
        tolerance: Largest difference of two figures, relative to the larger one, that counts as
            none; weights are then not compared. 0: every bit.
        keep: Folder for the run that is made again; null: it is removed.
    """

    folders: list[str] = field(default_factory=list)
    steps: int | None = None
    tolerance: float = 0.0
    keep: str | None = None
