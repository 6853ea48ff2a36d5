"""What a section's measurements are compared for, and what the comparison should show."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from vidtrain.benchmarking.measuring import Measured, Ratio, Section, Stream, ratio

# Files of up to this short side, in pixels, are what the targets were set for.
SMALL = 360
LONG_GOP = 60
# Steps of the input path: the stream that ends with it, and the one that ends before it.
STEPS = (
    ("open", "open", None), ("demux", "demux", "open"), ("decode", "decode", "demux"),
    ("convert, crop, scale", "dataset", "decode"), ("loader, transport", "loader", "dataset"),
    ("to the model's input on the CPU", "on_cpu", "loader"),
    ("to the GPU and the model's input", "on_gpu", "loader"),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        what: In words.
        pattern: Name of the pattern.
        group: Name of the files' folder.
        ratio: CPU time of the first over that of the second.
        target: What the ratio should be, or None.
        at_most: Whether the ratio should be at most the target, not at least.
    """

    what: str
    pattern: str
    group: str
    ratio: Ratio
    target: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Met, missed, inconclusive, or a dash where there is no target."""
        if self.ratio.inconclusive and not self.at_most:
            return "inconclusive"
        if self.target is None:
            return "-"
        reached = (
            self.ratio.median <= self.target if self.at_most else self.ratio.median >= self.target
        )
        return "met" if reached else "missed"

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "what": self.what, "pattern": self.pattern, "files": self.group,
            "ratio": self.ratio.median, "rounds": list(self.ratio.values), "target": self.target,
            "target_is": "at most" if self.at_most else "at least", "verdict": self.verdict,
        }  # fmt: skip


def comparisons(section: Section) -> list[Comparison]:
    """Returns the lines of a measured section."""
    lines = []
    for name, group in section.groups.items():
        pattern = section.pattern
        stated = pattern.name in ("32x2", "eval10x3") and min(group.height, group.width) <= SMALL
        long = group.gop > LONG_GOP

        def target(for_long: float, for_short: float, stated: bool = stated,
                   long: bool = long) -> float | None:  # fmt: skip
            return (for_long if long else for_short) if stated else None

        by_name = {(s.program, s.name): m for s, m in section.measured.items() if s.group == name}

        def add(what: str, slower: tuple[str, str], faster: tuple[str, str], goal: float | None,
                at_most: bool = False, by_name: dict[tuple[str, str], Measured] = by_name,
                name: str = name) -> None:  # fmt: skip
            if slower in by_name and faster in by_name:
                found = ratio(by_name[slower], by_name[faster])
                lines.append(Comparison(what, section.pattern.name, name, found, goal, at_most))

        own, on_cpu = ("vidtrain", "loader"), ("vidtrain", "on_cpu")
        dataset, bare = ("vidtrain", "dataset"), ("vidtrain", "decode")
        ptv, mm = ("pytorchvideo", "loader"), ("mmaction2", "loader")
        if pattern.evaluation:
            add("PyTorchVideo / vidtrain, views cut on the device", ptv, own, target(10, 10))
            add("MMAction2 / vidtrain, views cut on the device", mm, own, target(3, 3))
            add("MMAction2 / vidtrain, views cut on the CPU", mm, on_cpu, None)
            add("dataset / bare decode", dataset, bare, None, True)
        else:
            add("PyTorchVideo / vidtrain, normalised on the device", ptv, own, target(3.5, 5))
            add("PyTorchVideo / vidtrain, both float32 on the CPU", ptv, on_cpu, target(2.5, 3.5))
            add("MMAction2 / vidtrain, both uint8", mm, own, target(1.6, 1.8))
            goal = 1.35 if pattern.name == "32x2" else None
            add("dataset / bare decode", dataset, bare, goal, True)
    return lines + list(_prepared(section))


def _prepared(section: Section) -> Iterator[Comparison]:
    for group in section.groups.values():
        if group.prepared in section.groups:
            original, copy = (
                section.measured[Stream("vidtrain", "loader", name)]
                for name in (group.name, group.prepared)
            )
            goal = 6.0 if section.pattern.name == "32x2" else None
            yield Comparison(
                "originals / prepared files", section.pattern.name, group.name,
                ratio(original, copy), goal,
            )  # fmt: skip


def step_seconds(section: Section, group: str) -> dict[str, float]:
    """Returns CPU seconds per sample of each step of vidtrain's path: what it adds, by round."""
    by_name = {
        stream.name: found
        for stream, found in section.measured.items()
        if (stream.group, stream.program) == (group, "vidtrain")
    }
    steps = {}
    for step, after, before in STEPS:
        if after in by_name and (before is None or before in by_name):
            earlier = by_name[before].cpu if before else [0.0] * len(by_name[after].cpu)
            steps[step] = median(a - b for a, b in zip(by_name[after].cpu, earlier, strict=True))
    return steps
