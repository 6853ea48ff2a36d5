"""train, eval and export on real small videos: what they write, how they resume, how they fail."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, loaded, noise, same_state, write_video
from PIL import Image

Cli = Callable[..., int]
FULL = (
    "mix=mixup_cutmix", "average=ema", "average.decay=0.9", "train.accumulate=2",
    "train.clip_grad_norm=1.0", "task.label_smoothing=0.1", "model.build.dropout=0.3",
)  # fmt: skip


def rows(run: str | Path = "runs/small") -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_train_eval_export_from_one_run_folder(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run) == 0
    said = capsys.readouterr().err
    assert "best val top-1" in said and "ETA" in said and "data wait" in said
    run = Path("runs/small")
    found = {p.name for p in run.iterdir()}
    assert found >= {"config.yaml", "run.json", "metrics.jsonl", "tensorboard", "checkpoints",
                     "curves.png", "confusion_matrix.png", "inputs.png"}  # fmt: skip
    for name in ("curves.png", "confusion_matrix.png", "inputs.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100
    kinds = [row["kind"] for row in rows()]
    assert kinds.count("train") == 12 and kinds.count("val") == 2
    assert {"loss", "lr", "grad_norm"} <= rows()[0].keys()
    speed = json.loads((run / "speed.jsonl").read_text().splitlines()[0])
    assert {"clips_per_second", "wait_share"} <= speed.keys()
    assert "${" not in (run / "config.yaml").read_text()

    assert cli("eval", "run=runs/small", "eval.num_clips=2", "eval.num_crops=3") == 0
    out = capsys.readouterr().out
    assert "78 views" in out and all(name in out for name in CLASSES)
    results = json.loads((run / "eval" / "results.json").read_text())
    confusion = np.array(results["confusion"])
    assert confusion.sum() == results["num_videos"] == 13
    predictions = [json.loads(s) for s in (run / "eval/predictions.jsonl").read_text().splitlines()]
    assert sum(p["label"] == p["prediction"] for p in predictions) == results["correct"]

    # The best checkpoint's figure is the one that training reported.
    assert cli("eval", "run=runs/small") == 0
    again = json.loads((run / "eval" / "results.json").read_text())
    assert again["top1"] == loaded(run, "best")["progress"]["best"][0]["value"]

    assert cli("export", "run=runs/small", "format=torch_export", "num_videos=3") == 0
    out = capsys.readouterr().out
    assert "max abs logit difference" in out
    beside = json.loads((run / "export" / "model.pt2.json").read_text())
    assert beside["labels"] == list(CLASSES) and beside["input"]["num_frames"] == 4


@pytest.mark.parametrize("format_and_suffix", [("onnx", "onnx"), ("torchscript", "pt")])
def test_other_export_formats(
    cli: Cli, small_run: tuple[str, ...], format_and_suffix: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name, suffix = format_and_suffix
    assert cli("train", *small_run, "train.max_steps=1") == 0
    assert cli("export", "run=runs/small", f"format={name}", f"output=out/m.{suffix}") == 0
    assert Path(f"out/m.{suffix}").stat().st_size > 1000 and Path(f"out/m.{suffix}.json").is_file()
    capsys.readouterr()
    # A file that differs is refused and not left behind; only TorchScript runs eager's own kernels.
    code = cli("export", "run=runs/small", f"format={name}", "output=no.x", "tolerance=1e-12")
    said = capsys.readouterr()
    assert code == ("logit difference 0.00e+00" not in said.out) == (not Path("no.x").exists())
    assert code == 0 or "tolerance" in said.err
    assert cli("export", "run=runs/small", "format=onx") == 2
    assert "use one of onnx, torch_export, torchscript" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_and_ten_steps_equal_twenty_bit_for_bit(
    cli: Cli, small_run: tuple[str, ...], workers: int
) -> None:
    settings = (*small_run, *FULL, "train.epochs=4", f"data.num_workers={workers}")
    assert cli("train", *settings, "name=whole", "data.num_workers=0", "train.max_steps=20") == 0
    assert cli("train", *settings, "name=parts", "train.max_steps=10") == 0
    assert loaded("runs/parts")["step"] == 10  # 6 per epoch
    assert cli("train", *settings, "name=parts", "train.max_steps=20") == 0
    same_state("runs/whole", "runs/parts")
    whole, parts = rows("runs/whole"), rows("runs/parts")
    # The run in parts also validated where it stopped.
    assert [row for row in parts if row["kind"] == "train"] == [
        row for row in whole if row["kind"] == "train"
    ]


def test_kill_minus_nine_then_the_same_command(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*small_run, *FULL, "train.epochs=3", "save.every='2 steps'")
    assert cli("train", *settings, "name=whole") == 0
    command = [sys.executable, "-m", "vidtrain", "train", *settings, "name=killed"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        last = tmp_path / "runs/killed/checkpoints/last"
        while process.poll() is None and not last.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert cli("train", *settings, "name=killed") == 0
    same_state(tmp_path / "runs/whole", tmp_path / "runs/killed")
    assert rows(tmp_path / "runs/whole") == rows(tmp_path / "runs/killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_code_75(
    small_run: tuple[str, ...], tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "vidtrain", "train", *small_run, "train.epochs=500"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "runs/small/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "stopped and saved at step" in said and "the same command goes on" in said
    step = loaded(tmp_path / "runs/small")["step"]
    assert f"step {step} of 3000" in said


def test_a_signal_to_the_whole_group_saves_too(small_run: tuple[str, ...], tmp_path: Path) -> None:
    # As launchers send it. Many micro-batches: the step under way needs the loader process.
    settings = (*small_run, "train.epochs=500", "data.num_workers=1", "train.batch_size=16",
                "train.accumulate=8")  # fmt: skip
    command = [sys.executable, "-m", "vidtrain", "train", *settings]
    with (
        open(tmp_path / "said.txt", "w") as said,
        subprocess.Popen(command, cwd=tmp_path, stderr=said, start_new_session=True) as process,
    ):
        metrics = tmp_path / "runs/small/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
    words = (tmp_path / "said.txt").read_text()
    assert process.returncode == 75, words
    assert loaded(tmp_path / "runs/small")["step"] > 0


def test_a_finished_run_is_left_alone_and_a_changed_one_refused(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run) == 0
    files = sorted(Path("runs/small/checkpoints").rglob("*"))
    before = [path.stat().st_mtime_ns for path in files]
    assert cli("train", *small_run, "data.num_workers=1") == 0
    assert "done: step 12 of 12" in capsys.readouterr().err
    assert cli("train", *small_run, "optimizer.lr=0.5", "train.epochs=9") == 2
    error = capsys.readouterr().err
    assert "optimizer.lr: 0.001 -> 0.5" in error and "train.epochs: 2 -> 9" in error
    assert "name=" in error
    assert cli("train", *small_run, "resume=false") == 2
    assert "resume=false, but" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in files] == before


def test_best_is_written_when_validation_and_saving_fall_apart(
    cli: Cli, small_run: tuple[str, ...]
) -> None:
    settings = (*small_run, "train.epochs=3", "save.every='7 steps'")
    assert cli("train", *settings) == 0
    best = loaded("runs/small", "best")
    assert best["step"] == best["progress"]["best"][0]["step"]
    vals = [row for row in rows() if row["kind"] == "val"]
    assert best["progress"]["best"][0]["value"] == max(row["top1"] for row in vals)


def test_worker_count_does_not_change_a_bit(cli: Cli, small_run: tuple[str, ...]) -> None:
    for workers in (0, 1, 2, 4):
        settings = (*small_run, *FULL, f"data.num_workers={workers}", f"name=w{workers}")
        assert cli("train", *settings, "train.max_steps=4") == 0
    for workers in (1, 2, 4):
        same_state("runs/w0", f"runs/w{workers}")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_on_the_cpu_or_is_refused(
    cli: Cli, small_run: tuple[str, ...], precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli("train", *small_run, f"precision={precision}", "train.max_steps=3")
    if code:
        assert code == 2 and f"precision={precision} cannot train" in capsys.readouterr().err
        return
    losses = [row["loss"] for row in rows() if row["kind"] == "train"]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)


def test_a_sweep_trains_one_run_per_value(cli: Cli, small_run: tuple[str, ...]) -> None:
    settings = (*small_run[:-1], "name=sweep", "train.max_steps=1", "train.epochs=2")
    assert cli("train", "-m", *settings, "optimizer.lr=0.1,0.2") == 0
    found = sorted(p.parent.name for p in Path("runs/sweep").glob("*/config.yaml"))
    assert found == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert cli("eval", "run=runs/sweep/optimizer.lr=0.1") == 0


def test_decord_and_frame_folders_train_too(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    assert cli("train", *small_run, "data.decoder=decord", "train.max_steps=1", "name=d") == 0
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for index in range(count):
            if index % 2:
                write_video(tmp_path / f"mixed/{split}{index}.mp4", noise(index, 90))
                lines.append(f"{split}{index}.mp4 {index % 2}")
            else:
                folder = tmp_path / f"mixed/{split}{index}"
                folder.mkdir(parents=True)
                for number, frame in enumerate(noise(index, 150, 9)):
                    Image.fromarray(frame).save(folder / f"img_{number + 1:05d}.jpg")
                lines.append(f"{split}{index} 9 {index % 2}")
        (tmp_path / f"mixed/{split}.txt").write_text("\n".join(lines))
    settings = [s for s in small_run if not s.startswith(("data", "train.batch_size", "name"))]
    assert cli(
        "train", *settings, "data=list_file", "data.root=mixed", "data.train=train.txt",
        "data.val=val.txt", "train.batch_size=2", "data.num_workers=0", "name=mixed",
    ) == 0  # fmt: skip


def test_tensorboard_holds_scalars_and_the_input_grid(cli: Cli, small_run: tuple[str, ...]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli("train", *small_run, "train.max_steps=2") == 0
    events = EventAccumulator("runs/small/tensorboard").Reload()
    assert {"train/loss", "train/lr", "val/top1"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"inputs", "confusion_matrix", "worst_errors"}
    assert "config/text_summary" in events.Tags()["tensors"]
