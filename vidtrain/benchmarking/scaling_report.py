"""Tables, plain values and a picture of how a training step scales."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

from vidtrain.benchmarking.scaling_figures import (
    Check,
    Measured,
    Place,
    as_dict,
    assumptions,
)
from vidtrain.benchmarking.scaling_model import Network, Prediction, Step

# What programs of others reach with 2, 4 and 8 machines: how many times as fast as with one.
REFERENCE = {2: 1.6, 4: 3.2, 8: 6.0}
ROUNDS_TO_REPORT = 5
BUSY = 0.9  # less than this of its cores, and a process is not alone on the machine
WIDTH = 160
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


@dataclass(frozen=True)
class Found:
    """All that a report says.

    Attributes:
        title: The training in a few words.
        strong: Whether the batch is that of all processes together.
        batch: Clips of a process, or of all.
        place: Where it was measured.
        measured: By number of processes, ascending, the first of one.
        checks: The model held against these.
        link: What connects the processes here; None: there is one.
        step: That predictions are made from.
        network: That they are made for.
        predictions: By number of GPUs.
        given: Whether the time of the step was given.
    """

    title: str
    strong: bool
    batch: int
    place: Place
    measured: list[Measured]
    checks: list[Check]
    link: Network | None
    step: Step
    network: Network
    predictions: list[Prediction]
    given: bool


def results(found: Found) -> dict[str, Any]:
    """Returns everything as plain values."""
    one = found.measured[0]
    return {
        "title": found.title, "strong": found.strong, "batch_size": found.batch,
        "measured": [
            asdict(each) | {
                "efficiency": each.efficiency(one, strong=found.strong).values,
                "work": each.work(one, strong=found.strong).values,
                "exposed": each.exposed.values, "overlap": each.overlap,
            } for each in found.measured
        ],
        "link": asdict(found.link) if found.link else None,
        "checks": [asdict(check) for check in found.checks],
        "step": asdict(found.step), "step_given": found.given, "network": asdict(found.network),
        "predictions": [as_dict(prediction) for prediction in found.predictions],
        "assumptions": said(found), "reference_speedup": REFERENCE,
    }  # fmt: skip


def said(found: Found) -> list[str]:
    """Returns what the predictions rest on."""
    return assumptions(found.step, found.network, found.place, given=found.given)


def tables(found: Found) -> list[Table]:
    """Returns what was measured, and what is predicted."""
    return [_measured(found), _predicted(found)]


def _measured(found: Found) -> Table:
    kind = "strong: one batch for all" if found.strong else "weak: one batch for each process"
    table = Table(
        Column("processes", min_width=9), Column("step, s", no_wrap=True), "clips/s",
        "CPU s of\na process", Column("efficiency, %", no_wrap=True), "by CPU s\n%",
        "times\nas fast", Column("exchange\nnot covered, %", no_wrap=True), "exchange\nalone, s",
        "overlap\n%", "model, s", "error, %", title=f"Measured: {found.title}; {kind}",
    )  # fmt: skip
    one, cpu = found.measured[0], found.place.device == "cpu"
    checked = {check.processes: check for check in found.checks}
    for each in found.measured:
        number, middle = each.processes, median(each.seconds)
        good = each.efficiency(one, strong=found.strong)
        clips = found.batch * (1 if found.strong else number)
        check, several = checked.get(number), number > 1
        table.add_row(
            str(number), f"{middle:.3g} [{min(each.seconds):.3g}-{max(each.seconds):.3g}]",
            f"{clips / middle:.3g}", f"{median(each.cpu):.3g}", _percent(good.values),
            f"{100 * each.work(one, strong=found.strong).median:.0f}" if cpu else "-",
            f"{number * good.median:.2f}",
            _percent(each.exposed.values) if several else "-",
            f"{median(each.sums):.3g}" if several else "-",
            _overlap(each),
            f"{check.seconds:.3g}" if check else "-",
            f"{100 * check.error:+.0f}" if check else "-",
        )  # fmt: skip
    return table


def _predicted(found: Found) -> Table:
    table = Table(
        "GPUs", "step, s", "computing", "waiting", "exchange", "not covered", "efficiency, %",
        "uncovered, %", "times as fast",
        title="Predicted, not measured: seconds of a step; see the assumptions below",
    )  # fmt: skip
    for one in found.predictions:
        table.add_row(
            str(one.processes), f"{one.seconds:.4g}", f"{one.computing:.4g}",
            f"{one.waiting:.3g}", f"{one.exchange:.3g}", f"{one.exposed:.3g}",
            f"{100 * one.efficiency:.1f}", f"{100 * one.efficiency_uncovered:.1f}",
            f"{one.processes * one.efficiency:.1f}",
        )  # fmt: skip
    return table


def notes(found: Found, facts: dict[str, Any]) -> list[str]:
    """Returns how it was measured and what limits it, in sentences."""
    place, rounds = found.place, facts["rounds"]
    where = f"{place.cores} cores, {place.threads} thread(s) a process, gloo"
    if place.device == "cuda":
        where = f"{place.name}, one for each process, NCCL"
    lines = [
        f"{rounds} rounds in turns; {where}; load {facts['load_before'][0]:.1f} before, "
        f"{facts['load_after'][0]:.1f} after; medians [smallest-largest]",
    ]
    if any(each.inconclusive for each in found.measured):
        lines.append("?: rounds disagree on whether the exchange costs any time")
    had = place.had(found.measured[0])
    if had is not None and had < BUSY:
        lines.append(
            f"one process had {had:.0%} of its core: other programs were running, and what the "
            "clock says is about them too; `by CPU s` leaves them, and waiting, out"
        )
    for each in found.measured:
        slower = place.slowdown(each.processes)
        if slower > 1:
            lines.append(f"{each.processes} processes share {place.cores} cores: where nothing "
                         f"else runs, efficiency stays below {100 / slower:.0f} %")  # fmt: skip
    if found.link is not None:
        lines.append(
            f"model, s: from the step of one process and an exchange at "
            f"{found.link.node_bandwidth * 8e-9:.3g} Gbit/s, {1e6 * found.link.latency:.3g} us a "
            f"hop, as measured with {_fewest(found.measured)} processes"
            + "; on a CPU nothing of it is taken as covered"
            * (place.device == "cpu")
        )
    beaten = ", ".join(f"{times:g} with {number}" for number, times in REFERENCE.items())
    lines.append(f"for comparison, times as fast as one machine, by others: {beaten} machines")
    if rounds < ROUNDS_TO_REPORT:
        lines.append(f"fewer than {ROUNDS_TO_REPORT} rounds: a trial, not figures to report")
    return [*lines, "", "The prediction assumes:", *(f"- {line}" for line in said(found))]


def show(found: Found, facts: dict[str, Any], path: Path) -> None:
    """Prints tables and notes, and writes them to a file."""
    hidden = path.with_name(f".{path.name}.tmp")
    with open(hidden, "w", encoding="utf-8") as file:
        width = None if sys.stdout.isatty() else WIDTH
        for console in (Console(highlight=False, width=width), Console(file=file, width=WIDTH)):
            for part in (*tables(found), *notes(found, facts)):
                console.print(part, markup=False)
    os.replace(hidden, path)


def draw(found: Found, path: Path) -> None:
    """Draws efficiency over the number of processes, a PNG file."""
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.axhline(100, color=GREY, linewidth=1, label="ideal")
    axes.plot(list(REFERENCE), [100 * s / n for n, s in REFERENCE.items()], "s", color=GREEN,
              markersize=8, label="to beat: 1.6, 3.2, 6 times as fast")  # fmt: skip
    _draw_measured(axes, found)
    at = [one.processes for one in found.predictions]
    low = [100 * one.efficiency_uncovered for one in found.predictions]
    high = [100 * one.efficiency for one in found.predictions]
    gpus = "GPUs" if found.place.device == "cuda" or found.given else "such processes"
    axes.fill_between(at, low, high, color=ORANGE, alpha=0.2, linewidth=0,
                      label="predicted, down to: no exchange covered")  # fmt: skip
    axes.plot(at, high, "--o", color=ORANGE, label=f"predicted for {gpus}, not measured")
    axes.set_xscale("log", base=2)
    ticks = sorted({each.processes for each in found.measured} | {*at} | {*REFERENCE})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 110)
    axes.set_xlabel("processes")
    axes.set_ylabel("efficiency, % (clips/s per process, over those of one)")
    axes.set_title(f"{found.title}; {'strong' if found.strong else 'weak'} scaling", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, format="png")


def _draw_measured(axes: Any, found: Found) -> None:
    one, place = found.measured[0], found.place
    good = [each.efficiency(one, strong=found.strong) for each in found.measured]
    middle = [100 * each.median for each in good]
    below = [100 * (each.median - min(each.values)) for each in good]
    above = [100 * (max(each.values) - each.median) for each in good]
    at = [each.processes for each in found.measured]
    where = "GPU" if place.device == "cuda" else f"CPU processes, {place.cores} cores"
    axes.errorbar(at, middle, yerr=(below, above), fmt="-o", color=BLUE, capsize=4,
                  label=f"measured, median and range ({where})")  # fmt: skip
    if place.device == "cpu":
        work = [100 * each.work(one, strong=found.strong).median for each in found.measured]
        axes.plot(at, work, "o", color=BLUE, fillstyle="none", markersize=9,
                  label="measured in CPU seconds, without waiting")  # fmt: skip
    times = {each.processes: median(each.seconds) for each in found.measured}
    share = {n: 1 / n if found.strong else 1.0 for n in times}
    axes.plot(
        [c.processes for c in found.checks],
        [100 * share[c.processes] * times[1] / c.seconds for c in found.checks],
        "x", color=BLUE, markersize=9, label="the model for these processes",
    )  # fmt: skip
    if any(place.slowdown(n) > 1 for n in at):
        axes.plot(at, [100 / place.slowdown(n) for n in at], ":", color=BLUE,
                  label="limit of shared cores, nothing else running")  # fmt: skip


def _overlap(measured: Measured) -> str:
    if measured.overlap is None:
        return "-"
    return "?" if measured.inconclusive else f"{100 * measured.overlap:.0f}"


def _percent(values: Sequence[float]) -> str:
    low, middle, high = (100 * one for one in (min(values), median(values), max(values)))
    return f"{middle:.0f} [{low:.0f}-{high:.0f}]"


def _fewest(measured: Sequence[Measured]) -> int:
    return min(one.processes for one in measured if one.processes > 1)
