"""`vidtrain benchmark input`: what is measured, that it is measured right, and what it says."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, noise, write_video
from encoding import encode

from vidtrain.benchmarking import encoding, floor, own_streams
from vidtrain.benchmarking.comparing import Comparison, comparisons, step_seconds
from vidtrain.benchmarking.measuring import (
    Measured,
    Ratio,
    Section,
    Stream,
    measure,
    plan_sections,
    turns,
)
from vidtrain.benchmarking.patterns import (
    PATTERNS,
    draw_samples,
    find_groups,
    wanted_frames,
)
from vidtrain.benchmarking.processes import Host, check_platform
from vidtrain.data.clip_samplers import ConstantClips
from vidtrain.data.packets import packet_table
from vidtrain.errors import InputError, UsageError

try:
    check_platform()
except UsageError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of two videos of 80 frames, the second as if prepared from the first."""
    root = tmp_path_factory.mktemp("clips")
    for group in ("big", "big_prepared"):
        for number in range(2):
            write_video(root / group / f"{number}.mp4", noise(number, 100, 80))
    return root


def test_groups_and_samples_are_alike_for_all(clips: Path) -> None:
    big, prepared = find_groups(str(clips))
    assert (big.name, big.prepared) == ("big", prepared.name)
    assert (big.height, big.width) == (40, 64) and 10 <= big.gop <= 12
    assert [g.name for g in find_groups(str(clips / "big*" / "0.mp4"))] == [big.name, prepared.name]
    drawn = [
        [s.start for s in draw_samples(group, PATTERNS["32x2"], count=40, seed=seed)]
        for group, seed in ((big, 3), (prepared, 3), (big, 4))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) <= set(range(80 - 64 + 1)) and len(set(drawn[0])) > 10
    write_video(clips.parent / "short.mp4", noise(0, 90, 20))
    (short,) = find_groups(str(clips.parent / "short.mp4"))
    with pytest.raises(InputError, match="needs 64 frames"):
        draw_samples(short, PATTERNS["8x8"], count=1, seed=0)


def test_a_group_is_compared_with_its_copies_or_with_the_peers(clips: Path) -> None:
    patterns = [PATTERNS["32x2"], PATTERNS["tsn8"], PATTERNS["eval10x3"]]

    def plan(files: Path) -> list[Section]:
        return plan_sections(find_groups(str(files)), patterns, ["pytorchvideo"],
                             clips=8, seed=0, gpu=False)  # fmt: skip

    both, alone = plan(clips), plan(clips / "big")
    assert [s.pattern.name for s in both] == ["32x2", "tsn8"]
    assert all(len(s.groups) == 2 for s in both)
    peers = [[s.program for s in section.streams].count("pytorchvideo") for section in alone]
    assert peers == [1, 0, 1]
    assert [len(s.samples["big"]) for s in alone] == [8, 8, 1]


def test_wanted_frames_are_those_of_the_samplers(clips: Path) -> None:
    (group,) = find_groups(str(clips / "big"))
    (sample,) = draw_samples(group, PATTERNS["eval10x3"], count=1, seed=0)
    views = ConstantClips(32, 2, num_clips=10)(80, 25.0, np.random.default_rng())
    assert wanted_frames(PATTERNS["eval10x3"], sample).tolist() == np.unique(views).tolist()
    (sample,) = draw_samples(group, PATTERNS["32x2"], count=1, seed=0)
    start = sample.start
    assert start is not None
    wanted = wanted_frames(PATTERNS["32x2"], sample).tolist()
    assert wanted == list(range(start, start + 63, 2))


def test_own_streams_deliver_the_samples_they_were_given(clips: Path) -> None:
    (group,) = find_groups(str(clips / "big"))
    for name, shape in (("32x2", [32, 224, 224, 3]), ("tsn8", [8, 224, 224, 3])):
        samples = draw_samples(group, PATTERNS[name], count=4, seed=0)
        stream = own_streams.batches("dataset", PATTERNS[name], samples, batch=2, seed=0)
        batches = list(itertools.islice(stream, 4))
        assert [batch["samples"] for batch in batches] == [[0, 1], [2, 3]] * 2
        assert batches[0]["shape"] == shape and batches[0]["bytes"] == 2 * np.prod(shape)


def test_the_floor_decodes_what_is_needed_and_no_more(tmp_path: Path) -> None:
    options = {"g": "30", "bf": "2", "sc_threshold": "0"}
    path = str(encode(tmp_path / "a.mp4", frames=120, options=options))
    table = packet_table(path)
    every = np.arange(120)
    assert floor.walk(path, every, "open") == floor.walk(path, every, "demux") == 0
    assert floor.walk(path, every, "decode") == 120
    # One frame in the last group: decoding starts at its keyframe and leaves the B-frames out.
    droppable = np.sort(table.pts[table.droppable])
    shown = np.sort(table.pts)
    behind = [i for i in range(90, 115) if shown[i] not in droppable]
    assert 1 < floor.walk(path, np.array([behind[-1]]), "decode") < behind[-1] - 90 + 3
    far = floor.walk(path, np.array([0, 119]), "decode")
    assert far < 35, "two far frames are reached by two seeks"


HOST = """
import json, subprocess, sys, time
def burn():
    end = time.process_time() + 0.2
    while time.process_time() < end: pass
for line in sys.stdin:
    order = json.loads(line)
    if "open" in order:
        print(json.dumps({"versions": {}}), flush=True)
    elif order.get("run") == "fail":
        print(json.dumps({"error": "no such file"}), flush=True)
    elif order.get("run") == "die":
        sys.exit("out of memory")
    else:
        child = None
        if order.get("run") == "child":
            code = "import time\\nend=time.process_time()+0.2\\n"
            code += "while time.process_time() < end: pass\\ntime.sleep(9)"
            quiet = subprocess.DEVNULL
            child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=quiet)
        answer = {"batches": [{"samples": [0], "bytes": 1}] * order.get("batches", 0)}
        print(json.dumps(answer), flush=True)
        if order.get("run") == "after": burn()
"""


def test_cpu_time_of_a_host_and_its_processes_counts_even_after_the_answer() -> None:
    with Host("some", [sys.executable, "-S", "-c", HOST]) as host:
        for key, least, most in (("after", 0.2, 0.3), ("child", 0.2, 0.4), ("nothing", 0, 0.05)):
            seconds, batches = host.run(key, 1)
            assert least <= seconds <= most, key
            assert len(batches) == 1
        with pytest.raises(InputError, match="some failed to run: no such file"):
            host.run("fail", 1)
        with pytest.raises(InputError, match="out of memory"):
            host.run("die", 1)
    with (
        pytest.raises(InputError, match=r"no mmcv.*mmaction2_env.sh"),
        Host("mmaction2", [sys.executable, "-S", "-c", "raise SystemExit('no mmcv')"]) as host,
    ):
        host.order(open="a", more="x" * 100_000)


def test_a_program_that_leaves_samples_out_is_caught(clips: Path) -> None:
    (section,) = plan_sections(
        find_groups(str(clips / "big")), [PATTERNS["32x2"]], [], clips=4, seed=0, gpu=False
    )
    section.streams = section.streams[:2]
    with (
        Host("some", [sys.executable, "-S", "-c", HOST]) as host,
        pytest.raises(InputError, match="delivered 1 of 4 samples of big"),
    ):
        measure(section, {"vidtrain": host}, rounds=1, seed=0, advance=lambda name: None)


def test_ratios_and_verdicts() -> None:
    ratio = Ratio((0.9, 1.3, 1.2))
    assert ratio.median == 1.2 and ratio.inconclusive and str(ratio) == "1.20 [0.90-1.30]"

    def verdict(*values: float, target: float | None = 2.0, at_most: bool = False) -> str:
        return Comparison("a / b", "32x2", "big", Ratio(values), target, at_most).verdict

    assert verdict(1.9, 2.1, 2.2) == "met"
    assert verdict(1.8, 1.9, 2.2) == "missed"
    assert verdict(0.9, 3.0, 3.0) == "inconclusive"
    assert verdict(0.9, 1.1, 1.2, at_most=True) == "met"
    assert verdict(2.0, 3.0, 3.0, target=None) == "-"


def test_comparisons_and_steps_follow_from_the_measurements(clips: Path) -> None:
    (section,) = plan_sections(
        find_groups(str(clips / "big")), [PATTERNS["32x2"]], ["pytorchvideo", "mmaction2"],
        clips=4, seed=0, gpu=False,
    )  # fmt: skip
    seconds = {"open": 1.0, "demux": 2.0, "decode": 10.0, "dataset": 12.0, "loader": 14.0,
               "on_cpu": 20.0, "pytorchvideo": 100.0, "mmaction2": 21.0}  # fmt: skip
    for stream in section.streams:
        key = stream.name if stream.program == "vidtrain" else stream.program
        section.measured[stream] = Measured(cpu=[seconds[key], 1.1 * seconds[key]])
    found = {c.what.partition(" / ")[0] + c.what[-3:]: c for c in comparisons(section)}
    assert [round(c.ratio.median, 2) for c in found.values()] == [7.14, 5.0, 1.5, 1.2]
    assert [c.target for c in found.values()] == [5, 3.5, 1.8, 1.35]  # of short GOPs
    assert [c.verdict for c in found.values()] == ["met", "met", "missed", "met"]
    steps = step_seconds(section, "big")
    assert list(steps.values()) == pytest.approx([1.05, 1.05, 8.4, 2.1, 2.1, 6.3])
    assert turns(section, rounds=5) == 6 * 8
    assert Stream("vidtrain", "loader", "big").key == "big/vidtrain/loader"


def test_generated_clips_and_their_prepared_copies(tmp_path: Path) -> None:
    frames = itertools.islice(encoding.generated(0, height=336, width=352), 40)
    source = tmp_path / "scene.mp4"
    encoding.encode(source, frames, encoding.Encoding(gop=250, preset="ultrafast"))
    table = packet_table(str(source))
    assert table.fast and len(table.pts) == 40 and (table.height, table.width) == (336, 352)
    assert np.flatnonzero(table.keyframe).tolist() == [0], "no cut in it, so one group"
    encoding.prepare(source, tmp_path / "copy.mp4")
    table = packet_table(str(tmp_path / "copy.mp4"))
    assert len(table.pts) == 40 and (table.height, table.width) == (320, 336)
    assert np.flatnonzero(table.keyframe).tolist() == [0, 16, 32]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.mp4", "scene.mp4"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["peers=[pytorchvido]"], 2, "did you mean pytorchvideo"),
        (["patterns=[32x3]"], 2, "did you mean 32x2"),
        (["output"], 2, "only the input path"),
        (["clips=2"], 2, "at least one batch"),
        (["rounds=0"], 2, "rounds=0"),
        (["peers=[mmaction2]"], 2, "mmaction2_env.sh"),
        (["files=nowhere"], 1, "files=nowhere holds no video"),
    ],
)
def test_wrong_settings(
    cli: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int,
    said: str,
) -> None:  # fmt: skip
    assert cli("benchmark", *arguments) == code
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_stage_measures_and_writes(cli: Callable[..., int], clips: Path) -> None:
    assert cli("benchmark", "input", f"files={clips / 'big'}", "rounds=2", "clips=4",
               "output=out") == 0  # fmt: skip
    found = json.loads(Path("out/results.json").read_text())
    by_name = {(c["what"], c["pattern"]): c for c in found["comparisons"]}
    against = by_name["PyTorchVideo / vidtrain, normalised on the device", "32x2"]
    assert min(against["rounds"]) > 1 and len(against["rounds"]) == 2
    training, evaluation = found["sections"]
    streams = {key.removeprefix("big/"): value for key, value in training["streams"].items()}
    assert streams["vidtrain/loader"]["shape"] == [32, 224, 224, 3]
    assert streams["pytorchvideo/loader"]["shape"] == [3, 32, 224, 224]
    assert 1 <= streams["vidtrain/decode"]["decoded"] < 3
    assert evaluation["streams"]["big/pytorchvideo/loader"]["shape"] == [3, 32, 256, 256]
    assert 0 <= found["training"]["wait_share"] <= 1
    assert "PyTorchVideo / vidtrain" in Path("out/table.txt").read_text()
    assert Path("out/steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_script_makes_clips_out_of_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", noise(0, 90, 20))
    script = [sys.executable, str(REPO / "scripts/benchmark_clips.py"), str(tmp_path / "out")]
    done = subprocess.run([*script, str(tmp_path / "a.mp4"), "--sizes", "256"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "40 pixels high: scaled up to 256" in done.stderr
    groups = find_groups(str(tmp_path / "out"))
    assert [g.name for g in groups] == ["340x256_g250", "340x256_g12"] and groups[1].gop == 12
    table = packet_table(groups[1].files[0])
    assert (len(table.pts), table.fps, table.height, table.width) == (300, 30, 256, 340)
    wrong = subprocess.run([*script, "/nowhere.mp4"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "/nowhere.mp4" in wrong.stderr


@pytest.mark.slow
def test_mmaction2_delivers_the_samples_it_was_given(clips: Path) -> None:
    python = os.environ.get("VIDTRAIN_MMACTION2_PYTHON")
    if python is None:
        pytest.skip("VIDTRAIN_MMACTION2_PYTHON names no environment with MMAction2")
    (section,) = plan_sections(
        find_groups(str(clips / "big")), [PATTERNS["32x2"]], ["mmaction2"],
        clips=8, seed=0, gpu=False,
    )  # fmt: skip
    section.streams = section.streams[-1:]
    with Host("mmaction2", [python, str(REPO / "scripts/mmaction2_worker.py")]) as host:
        measure(section, {"mmaction2": host}, rounds=1, seed=0, advance=lambda name: None)
    (found,) = section.measured.values()
    assert found.shape == [1, 3, 32, 224, 224] and found.dtype == "uint8"
