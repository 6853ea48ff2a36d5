"""`profile=true`: shares against traces made by hand, and the same weights as without it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_state, vidtrain
from torch.profiler import record_function

from vidtrain.distributed import World
from vidtrain.report.step_trace import PARTS, REMEDIES, bottleneck, lines, summary
from vidtrain.running.profiling import RECORDED, SKIPPED, WARMED, watching
from vidtrain.training.host_memory import peak_rss

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def event(name: str, start: float, end: float, kind: str = "user_annotation",
          number: int | None = None) -> dict[str, Any]:  # fmt: skip
    """An event as `torch.profiler` writes it, in microseconds."""
    args = {} if number is None else {"correlation": number}
    return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": end - start, "args": args}


def ranges(**spans: tuple[float, float]) -> list[dict[str, Any]]:
    return [event(f"vidtrain.{name}", *span) for name, span in spans.items()]


def test_shares_of_a_step_on_a_cpu() -> None:
    found = summary([
        {"ph": "M", "name": "process_name"},
        event("ProfilerStep#7", 0, 100),
        *ranges(data=(0, 10), augment=(10, 15), forward=(20, 40), backward=(40, 80),
                optimizer=(80, 95)),
        # A part of a step that was not recorded.
        *ranges(data=(-50, -10)),
        event("aten::conv3d", 20, 40, "cpu_op"), event("aten::conv3d_backward", 40, 60, "cpu_op"),
        # 30 long: 10 beside the backward pass, 20 while nothing is computed.
        event("gloo:all_reduce", 50, 80),
        event("c10d::allreduce_", 50, 51, "cpu_op"),
    ])  # fmt: skip
    assert found["steps"] == 1 and found["seconds_per_step"] == pytest.approx(100e-6)
    assert found["shares"] == pytest.approx({
        "data": 0.10, "augment": 0.05, "forward": 0.20, "backward": 0.20, "optimizer": 0.15,
        "validate": 0, "communication": 0.20, "compile": 0, "rest": 0.10,
    })  # fmt: skip
    assert found["communication_busy"] == pytest.approx(0.3)
    assert found["device_busy"] is None and found["bottleneck"] == "communication"


def test_what_torch_compile_does_is_no_part_of_a_step() -> None:
    marks = [event("ProfilerStep#7", 0, 100), *ranges(forward=(0, 20), validate=(20, 95))]
    compiling = [event("_compile.compile_inner (dynamo_timed)", 25, 85, "cpu_op"),
                 event("async_compile.wait (dynamo_timed)", 40, 80, "cpu_op")]  # fmt: skip
    found = summary([*marks, *compiling])
    assert found["shares"]["compile"] == pytest.approx(0.60)
    assert found["shares"]["validate"] == pytest.approx(0.15)
    assert sum(found["shares"].values()) == pytest.approx(1) and found["bottleneck"] == "compile"
    # A GPU that computes meanwhile is not kept waiting by it.
    launched = [event("cudaLaunchKernel", 21, 22, "cuda_runtime", 1)]
    found = summary([*marks, *compiling, *launched, event("conv", 22, 65, "kernel", 1)])
    assert found["shares"]["compile"] == pytest.approx(0.20)
    assert found["shares"]["validate"] == pytest.approx(0.43)


def test_shares_of_a_step_on_a_gpu_go_by_kernels() -> None:
    found = summary([
        event("ProfilerStep#7", 0, 100),
        event("ProfilerStep#7", 30, 100, "gpu_user_annotation"),
        *ranges(data=(0, 25), forward=(25, 30), backward=(30, 36), optimizer=(36, 40)),
        # The last step's kernels go on for 10 while this step waits for data.
        event("cudaLaunchKernel", -5, -4, "cuda_runtime", 1), event("sgd", 0, 10, "kernel", 1),
        event("cudaLaunchKernel", 26, 27, "cuda_runtime", 2), event("conv", 27, 50, "kernel", 2),
        # Triton's kernels are launched by the driver's call; this one on another thread.
        event("cuLaunchKernel", 31, 32, "cuda_driver", 3), event("wgrad", 50, 80, "kernel", 3),
        event("cudaLaunchKernel", 33, 34, "cuda_runtime", 4),
        event("ncclDevKernel_AllReduce", 70, 86, "kernel", 4),
        event("cudaLaunchKernel", 37, 38, "cuda_runtime", 5), event("sgd", 86, 96, "kernel", 5),
    ])  # fmt: skip
    assert found["shares"] == pytest.approx({
        "data": 0.15, "augment": 0, "forward": 0.23, "backward": 0.30, "optimizer": 0.10,
        "validate": 0, "communication": 0.06, "compile": 0, "rest": 0.16,
    })  # fmt: skip
    assert found["communication_busy"] == pytest.approx(0.16)
    assert found["device_busy"] == pytest.approx(0.73) and found["bottleneck"] == "rest"


def test_the_bottleneck_has_a_remedy_and_small_parts_are_none() -> None:
    shares = dict.fromkeys(PARTS, 0.02) | {"forward": 0.4, "backward": 0.46}
    assert bottleneck(shares) == "model"
    for name in set(PARTS) - {"forward", "backward"}:
        assert bottleneck(shares | {name: 0.3}) == name
        assert REMEDIES[name]


def loop(
    folder: Path, *, steps: int, wanted: bool = True, then: BaseException | None = None
) -> list[str]:
    """A loop of a few steps under `watching`; returns what was said."""
    said: list[str] = []
    layer = torch.nn.Linear(64, 64)
    with watching(wanted, folder, say=said.append, world=ALONE, clips=8) as watch:
        for _ in range(steps):
            with record_function("vidtrain.forward"):
                loss = layer(torch.ones(8, 64)).sum()
            with record_function("vidtrain.backward"):
                loss.backward()
            watch.step()
        if then is not None:
            raise then
    return said


def test_a_trace_and_a_summary_are_written(tmp_path: Path) -> None:
    (said,) = loop(tmp_path, steps=SKIPPED + WARMED + RECORDED + 3)
    found = json.loads((tmp_path / "profile" / "summary.json").read_text("utf-8"))
    assert found["steps"] == RECORDED and sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["forward"] > 0 and found["shares"]["backward"] > 0
    assert found["shares"]["data"] == 0 and found["clips_per_second"] > 0
    assert 0 < found["peak_memory_gib"] == pytest.approx(peak_rss() / 2**30, rel=0.5)
    assert any(row["name"].startswith("aten::") for row in found["top"])
    shown = (tmp_path / "profile" / "summary.txt").read_text("utf-8")
    assert shown.splitlines() == lines(found) == said.splitlines()[:-1]
    assert f"bottleneck: {found['bottleneck']}. " in shown and len(shown.splitlines()) < 24
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event["name"] == "vidtrain.forward" for event in events) == RECORDED
    assert not [*(tmp_path / "profile").glob(".*")]


def test_short_trainings_and_unwatched_ones(tmp_path: Path) -> None:
    (said,) = loop(tmp_path, steps=SKIPPED + WARMED)
    assert "nothing was recorded in 6 steps" in said
    assert loop(tmp_path, steps=20, wanted=False) == []
    assert [*tmp_path.iterdir()] == []
    (said,) = loop(tmp_path, steps=SKIPPED + WARMED + 2)
    found = json.loads((tmp_path / "profile" / "summary.json").read_text("utf-8"))
    assert found["steps"] == 2
    few = f"too few to go by: {RECORDED} are meant to be recorded, so train for 4 steps more"
    assert few in said and few in (tmp_path / "profile" / "summary.txt").read_text("utf-8")
    assert "too few" not in loop(tmp_path, steps=SKIPPED + WARMED + RECORDED)[0]


def test_a_long_name_of_an_operation_is_cut_where_it_can_be_seen(tmp_path: Path) -> None:
    name = "void at::native::" + "vectorized_elementwise_kernel<" * 4 + "float>"

    def work() -> None:
        with record_function(name):
            sum(range(10**6))

    with watching(True, tmp_path, say=lambda _: None, world=ALONE, clips=8) as watch:
        for _ in range(SKIPPED + WARMED + RECORDED):
            work()
            watch.step()
    found = json.loads((tmp_path / "profile" / "summary.json").read_text("utf-8"))
    assert found["top"][0]["name"].startswith("void at::native::vec")
    assert found["top"][0]["name"].endswith("float>") and "…" in found["top"][0]["name"]
    assert found["top"][0]["name"] in (tmp_path / "profile" / "summary.txt").read_text("utf-8")


def test_an_interrupted_training_leaves_no_half_profile(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, steps=SKIPPED + WARMED + 2, then=KeyboardInterrupt())
    assert [*tmp_path.iterdir()] == []
    loop(tmp_path, steps=SKIPPED + WARMED + RECORDED)  # the profiler can start again
    assert (tmp_path / "profile" / "trace.json.gz").exists()


@pytest.mark.slow
def test_a_profiled_training_has_the_same_bits(
    cli: Callable[..., int], small_run: tuple[str, ...]
) -> None:
    assert cli("train", *small_run, "profile=true") == 0
    assert cli("train", *small_run, "name=plain") == 0
    same_state("runs/small", "runs/plain")
    found = json.loads(Path("runs/small/profile/summary.json").read_text("utf-8"))
    shares = found["shares"]
    assert all(
        shares[name] > 0 for name in PARTS if name not in ("communication", "validate", "compile")
    )
    assert not Path("runs/plain/profile").exists()


@pytest.mark.slow
def test_rank_0_of_two_reports_with_communication(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vidtrain")
    done = vidtrain("train", *small_run, "profile=true", cwd=tmp_path, prefix=launch)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("bottleneck: ") == 1
    found = json.loads((tmp_path / "runs/small/profile/summary.json").read_text("utf-8"))
    assert found["processes"] == 2 and found["communication_busy"] > 0
    assert 0 < found["shares"]["communication"] <= found["communication_busy"]
