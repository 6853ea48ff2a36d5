"""Tables, results.json and a picture of what was measured."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from vidtrain.benchmarking.comparing import STEPS, comparisons, step_seconds
from vidtrain.benchmarking.measuring import Section

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#56B4E9", "#009E73", "#0072B2", "#D55E00", "#F0E442", "#CC79A7", "#CC79A7")
GREY = "#999999"


def tables(sections: Sequence[Section]) -> list[Table]:
    """Returns the ratios, what each stream took, and the steps of vidtrain's path."""
    return [_ratios(sections), _programs(sections), _steps(sections)]


def _ratios(sections: Sequence[Section]) -> Table:
    table = Table(
        "ratio of CPU time", "pattern", "files", "median [min-max]", "target", "",
        title="Ratios of CPU time, round by round",
    )  # fmt: skip
    for section in sections:
        for line in comparisons(section):
            target = "-"
            if line.target is not None:
                target = f"{'<=' if line.at_most else '>='} {line.target:g}"
            table.add_row(
                line.what, line.pattern, line.group, str(line.ratio), target, line.verdict
            )
    return table


def _programs(sections: Sequence[Section]) -> Table:
    table = Table(
        "program", "stream", "pattern", "files", "CPU ms", "samples/s/core", "delivers", "MB",
        "decoded/wanted",
        title="Per sample: a clip, or a video with all its views (medians)",
    )  # fmt: skip
    for section in sections:
        for stream, found in section.measured.items():
            cpu = median(found.cpu)
            shape = "x".join(map(str, found.shape))
            table.add_row(
                stream.program, stream.name, section.pattern.name, stream.group,
                f"{1000 * cpu:.1f}", f"{1 / cpu:.1f}" if cpu else "-",
                f"{found.dtype} {shape}".strip() or "-",
                f"{found.bytes / 1e6:.1f}" if found.bytes else "-",
                f"{found.decoded:.2f}" if found.decoded else "-",
            )  # fmt: skip
    return table


def _steps(sections: Sequence[Section]) -> Table:
    rows = [(section.pattern.name, group, step_seconds(section, group))
            for section in sections for group in section.groups]  # fmt: skip
    names = [name for name, _, _ in STEPS if any(name in steps for _, _, steps in rows)]
    table = Table(
        "pattern", "files", *names,
        title="vidtrain, CPU ms per sample: what each step adds (medians of differences)",
    )  # fmt: skip
    for pattern, group, steps in rows:
        cells = (f"{1000 * steps[name]:.1f}" if name in steps else "-" for name in names)
        table.add_row(pattern, group, *cells)
    return table


def results(sections: Sequence[Section]) -> dict[str, Any]:
    """Returns everything measured as plain values."""
    return {
        "comparisons": [c.as_dict() for section in sections for c in comparisons(section)],
        "sections": [
            {
                "pattern": section.pattern.name,
                "files": {name: asdict(group) for name, group in section.groups.items()},
                "samples": {name: [asdict(s) for s in samples]
                            for name, samples in section.samples.items()},
                "streams": {stream.key: asdict(found)
                            for stream, found in section.measured.items()},
                "steps_cpu_seconds": {name: step_seconds(section, name) for name in section.groups},
                "versions": section.versions,
            }
            for section in sections
        ],
    }  # fmt: skip


def draw_steps(sections: Sequence[Section], path: Path) -> None:
    """Draws the steps of vidtrain's path and the totals of the others as bars, a PNG file."""
    figure = Figure(figsize=(10, 1.9 * len(sections) + 1), dpi=120, layout="constrained")
    handles: dict[str, Any] = {}
    for axes, section in zip(figure.subplots(len(sections), squeeze=False)[:, 0], sections,
                             strict=True):  # fmt: skip
        names = []
        for group in section.groups:
            names.append(f"vidtrain\n{group}" if len(section.groups) > 1 else "vidtrain")
            left, steps = 0.0, step_seconds(section, group)
            for (step, stream, _), colour in zip(STEPS, COLOURS, strict=True):
                # The model's input is made on the CPU or on the GPU.
                if step not in steps or (stream == "on_cpu" and "on_gpu" in _streams(section)):
                    continue
                width = max(0.0, 1000 * steps[step])
                handles[step] = axes.barh(len(names) - 1, width, left=left, color=colour)
                left += width
        for other, found in section.measured.items():
            if other.program != "vidtrain":
                names.append(other.program)
                bars = axes.barh(len(names) - 1, 1000 * median(found.cpu), color=GREY)
                handles["all steps of another program"] = bars
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        kind = "video with all its views" if section.pattern.evaluation else "clip"
        axes.set_xlabel(f"CPU ms per {kind}")
        axes.set_title(f"{section.pattern.name}, {next(iter(section.groups))}", fontsize=10)
    figure.legend(handles.values(), handles.keys(), fontsize=8, ncols=4, loc="outside lower center")
    figure.savefig(path, format="png")


def _streams(section: Section) -> set[str]:
    return {stream.name for stream in section.measured}
