"""What a trace of some training steps says: which part of a step takes how long, and why."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from vidtrain.report.terminal import counted

RANGES = ("data", "augment", "forward", "backward", "optimizer", "validate")
PARTS = (*RANGES, "communication", "compile", "rest")
LIMIT = 0.10  # a part other than the model's that takes more is called the bottleneck
COMMUNICATION = ("nccl", "gloo:", "mpi:", "ucc:")
COMPILES = "(dynamo_timed)"  # how the names of what torch.compile does end
LAUNCHES = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
# From, to, in microseconds.
Spans = list[tuple[float, float]]
REMEDIES = {
    "data": "raise data.num_workers as far as there are cores, or make the videos cheap to read "
            "with vidtrain prepare (data.prepared=); data.views_per_decode=2 halves the decoding",
    "augment": "take a lighter augment=; on CUDA it runs on the device, beside the loaders",
    "optimizer": "set optimizer.fused=true where the optimizer has it; larger micro-batches have "
                 "fewer updates per clip",
    "communication": "train.accumulate=2 or more has fewer exchanges per clip; or a faster network "
                     "between the processes",
    "validate": "validate.every= less often, or validate.num_clips=1 while training",
    "compile": "torch.compile was at work in these steps, as it is once for each kind of batch, a "
               "first validation's too; profile with validate.every='100 steps' or later",
    "rest": "the device waits for Python: larger micro-batches (train.accumulate=auto) or "
            "model.compile=true leave fewer calls per clip",
    "model": "precision=bf16, model.channels_last=true and model.compile=true, each on its own, "
             "where the device has them (docs/speed.md)",
}  # fmt: skip


def summary(events: Sequence[dict[str, Any]], *, max_steps: int | None = None) -> dict[str, Any]:
    """Returns what the recorded steps were spent on.

    On a CPU a part is the time between its marks. A GPU works behind the program: there a part is
    the time in which kernels ran that were launched between its marks; waiting for data counts
    where the GPU had nothing to do. Communication counts where no computing covers it, in either
    case, and not in the part it happened in; so does the making of kernels by torch.compile.

    Args:
        events: `traceEvents` of a trace in Chrome's format, as `torch.profiler` writes it.
        max_steps: Steps to count, from the first recorded one; None: all.

    Returns:
        steps, seconds_per_step (while recording), shares by part (of wall time; their sum is 1),
        communication_busy (share of wall time in which something was on its way, covered or not),
        device_busy (CUDA; share of wall time) and bottleneck.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    steps = [event for event in complete if event["name"].startswith("ProfilerStep#")
             and event.get("cat") == "user_annotation"]  # fmt: skip
    steps = sorted(steps, key=_span)[:max_steps]
    window = _union(_span(event) for event in steps)
    wall = _length(window)
    marked = {name: _intersect(window, _union(
        _span(event) for event in complete
        if event["name"] == f"vidtrain.{name}" and event.get("cat") == "user_annotation"
    )) for name in RANGES}  # fmt: skip
    kernels = [event for event in complete if event.get("cat") in ON_DEVICE]
    on_device = bool(kernels)
    work = kernels if on_device else [e for e in complete if e.get("cat") == "cpu_op"
                                      and e["name"].startswith("aten::")]  # fmt: skip
    sent = [event for event in (kernels if on_device else complete) if _communicates(event)]
    computing = _union(_span(event) for event in work if not _communicates(event))
    sending = _intersect(window, _union(_span(event) for event in sent))
    exposed = _subtract(sending, computing)
    parts = dict(marked)
    if on_device:
        parts = _launched(complete, [e for e in kernels if not _communicates(e)], marked)
        idle = _subtract(window, _union(_span(event) for event in kernels))
        parts["data"] = _union([*parts["data"], *_intersect(marked["data"], idle)])
    compiling = _subtract(_intersect(window, _union(
        _span(event) for event in complete if event["name"].endswith(COMPILES)
    )), _union([*exposed, *computing] if on_device else exposed))  # fmt: skip
    shares, taken = {}, _union([*exposed, *compiling])
    for name in RANGES:
        own = _subtract(_intersect(window, parts[name]), taken)
        shares[name], taken = _length(own) / wall, _union([*taken, *own])
    shares["communication"] = _length(exposed) / wall
    shares["compile"] = _length(compiling) / wall
    shares["rest"] = _length(_subtract(window, taken)) / wall
    return {
        "steps": len(steps),
        "seconds_per_step": wall / len(steps) / 1e6,
        "shares": shares,
        "communication_busy": _length(sending) / wall,
        "device_busy": _length(_intersect(window, computing)) / wall if on_device else None,
        "bottleneck": bottleneck(shares),
    }


def bottleneck(shares: dict[str, float]) -> str:
    """Returns the largest part beside forward and backward, or "model" if each is small."""
    others = {name: share for name, share in shares.items() if name not in ("forward", "backward")}
    worst = max(others, key=lambda name: others[name])
    return worst if others[worst] > LIMIT else "model"


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the figures of a summary as a table for a person."""
    per_step = found["seconds_per_step"]
    said = [f"profile: {counted(found['steps'], 'step')} of {per_step:.3g} s while recording"]
    if found.get("seconds_per_step_unrecorded"):
        said[0] += f" ({found['seconds_per_step_unrecorded']:.3g} s before)"
    missing = found.get("steps_wanted", 0) - found["steps"]
    if missing > 0:
        said.append(f"  too few to go by: {found['steps_wanted']} are meant to be recorded, so "
                    f"train for {counted(missing, 'step')} more")  # fmt: skip
    for name in PARTS:
        share = found["shares"][name]
        if share or name not in ("validate", "communication", "compile"):
            said.append(f"  {name:<14}{share:>6.1%}  {'#' * round(40 * share)}")
    if found["communication_busy"]:
        said.append(f"  communication goes on for {found['communication_busy']:.1%} of the time; "
                    "above is what no computing covers")  # fmt: skip
    if found.get("device_busy") is not None:
        said.append(f"  the GPU computes for {found['device_busy']:.1%} of the time")
    if found.get("clips_per_second"):
        said.append(f"  {found['clips_per_second']:.4g} clips/s before recording")
    if "peak_memory_gib" in found:
        said.append(f"  peak memory {found['peak_memory_gib']:.2f} GiB {found['memory']}")
    said += [f"  {row['share']:>6.1%}  {row['name']}  x {row['calls']}"
             for row in found.get("top", [])]  # fmt: skip
    worst = found["bottleneck"]
    return [*said, f"bottleneck: {worst}. {REMEDIES[worst]}"]


def _launched(
    events: Sequence[dict[str, Any]], kernels: Sequence[dict[str, Any]], marked: dict[str, Spans]
) -> dict[str, Spans]:
    """Returns for each part when kernels ran that were launched in it, by whichever thread."""
    launches = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    spans: dict[str, Spans] = {name: [] for name in RANGES}
    for kernel in kernels:
        at = launches.get(kernel.get("args", {}).get("correlation"))
        for name in RANGES:
            if at is not None and any(start <= at < end for start, end in marked[name]):
                spans[name].append(_span(kernel))
    return {name: _union(found) for name, found in spans.items()}


def _communicates(event: dict[str, Any]) -> bool:
    return event["name"].lower().startswith(COMMUNICATION)


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _union(spans: Iterable[tuple[float, float]]) -> Spans:
    """Returns the same times as spans that are apart and in order."""
    joined: Spans = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _intersect(first: Spans, second: Spans) -> Spans:
    """Returns the times that lie in both; both as `_union` returns them."""
    found, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            found.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def _subtract(first: Spans, second: Spans) -> Spans:
    """Returns the times of the first that are not in the second."""
    edges = [(float("-inf"), float("-inf")), *second, (float("inf"), float("inf"))]
    gaps = [(a[1], b[0]) for a, b in pairwise(edges)]
    return _intersect(first, gaps)


def _length(spans: Spans) -> float:
    return sum(end - start for start, end in spans)
