"""The knobs of `vidtrain plot`; see `config`."""

from dataclasses import dataclass, field


@dataclass
class PlotConfig:
    """Root of `vidtrain plot`.

    Attributes:
        folders: Run folders, folders of a sweep, or shell-style patterns of them.
        output: PNG file to write.
        x: What the curves are drawn over: step or epoch.
        metric: Figure of the validations to draw and to compare by; null: top1, or mAP where no run
            has it.
        smoothing: Share of the curve so far in each value of a smoothed curve, as in TensorBoard:
            0 (as it is) to below 1. Validations are never smoothed.
        log: Logarithmic axes for losses, learning rate and gradient norm.
    """

    folders: list[str] = field(default_factory=list)
    output: str = "plot.png"
    x: str = "step"
    metric: str | None = None
    smoothing: float = 0.6
    log: bool = False
