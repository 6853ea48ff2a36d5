"""`vidtrain plot`, on folders as a training writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidtrain.command.run_folders import here_are
from vidtrain.errors import InputError
from vidtrain.report.run_plots import smoothed
from vidtrain.stages.plot import found_runs, named


def write_run(folder: Path, *, num_steps: int = 60, best: float = 0.5, metric: str = "top1",
              scale: float = 1.0) -> Path:  # fmt: skip
    """A run folder whose metric rises to `best` at two thirds, and falls."""
    rows: list[dict[str, Any]] = []
    for step in range(10, num_steps + 1, 10):
        place = {"step": step, "epoch": step / 20}
        loss = scale * float(np.exp(-step / num_steps))
        rows.append({"kind": "train", **place, "loss": loss, "grad_norm": 2 * loss, "lr": 0.1})
        if step % 20 == 0:
            value = best - abs(step - 2 * num_steps // 3) / 1000
            rows.append({"kind": "val", **place, "num_videos": 12, metric: value, "loss": loss})
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_runs_are_drawn_and_listed(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs/one", best=0.625)
    write_run(tmp_path / "runs/two", best=0.75, num_steps=120)
    assert cli("plot", "runs/one", "runs/two", "output=both.png") == 0
    one, two = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert one == ["one", "60", "3", "0.3679", "0.6250", "40", "0.6050", "0.3679"]
    assert two == ["two", "120", "6", "0.3679", "0.7500", "80", "0.7100", "0.3679"]
    assert cli("plot", "runs/one") == 0
    alone, both = pixels("plot.png"), pixels("both.png")
    assert alone.shape == both.shape
    orange, blue = (np.array([213, 94, 0]), np.array([0, 114, 178]))  # of the second run, the first
    assert (both == orange).all(2).sum() > 300 > (alone == orange).all(2).sum()
    assert (alone == blue).all(2).sum() > 300


@pytest.mark.parametrize("other", [0.5, 0.45])
def test_averaged_and_plain_weights_validated_once_are_two_marks(
    other: float, cli: Callable[..., int], tmp_path: Path
) -> None:
    rows = (write_run(tmp_path / "one", num_steps=20) / "metrics.jsonl").read_text()
    assert cli("plot", "one", "output=alone.png") == 0
    val = json.loads(rows.splitlines()[-1])
    raw = json.dumps(val | {"kind": "val_raw", "top1": other})
    (tmp_path / "one/metrics.jsonl").write_text(f"{rows}{raw}\n")
    assert cli("plot", "one", "output=both.png") == 0
    top = [pixels(name)[:480].astype(int) for name in ("alone.png", "both.png")]
    blue = [(picture[..., 2] - picture[..., 0] > 60).sum() for picture in top]
    assert blue[1] > blue[0] + 60, "a ring around each of the two dots"


@pytest.mark.parametrize("option", ["x=epoch", "smoothing=0", "log=true", "metric=loss"])
def test_each_option_changes_the_picture(
    option: str, cli: Callable[..., int], tmp_path: Path
) -> None:
    write_run(tmp_path / "one")
    assert cli("plot", "one", "output=plain.png") == 0
    assert cli("plot", "one", option, "output=other.png") == 0
    assert cli("plot", "one", "output=again.png") == 0
    plain = pixels("plain.png")
    assert not np.array_equal(plain, pixels("other.png"))
    assert np.array_equal(plain, pixels("again.png"))


def test_a_pattern_a_sweep_and_a_run_that_goes_on(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in ("1e-3", "3e-4"):
        write_run(tmp_path / f"runs/sweep/optimizer.lr={rate}")
    going = write_run(tmp_path / "runs/going") / "metrics.jsonl"
    going.write_text(going.read_text()[:-25])  # its last line is being written
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/new").mkdir()
    (tmp_path / "runs/new/metrics.jsonl").touch()
    assert cli("plot", "runs/*") == 0
    shown = capsys.readouterr()
    names = [line.split()[0] for line in shown.out.splitlines()[1:-1]]
    assert names == ["going", "sweep/optimizer.lr=1e-3", "sweep/optimizer.lr=3e-4"]
    assert "new has no figures yet" in shown.err


def test_folders_are_found_once_and_named_by_what_differs(tmp_path: Path) -> None:
    both = write_run(tmp_path / "a/x"), write_run(tmp_path / "b/x")
    assert found_runs([str(both[0]), str(tmp_path / "*")]) == list(both)
    assert list(named(list(both))) == ["a/x", "b/x"]
    assert list(named([both[0]])) == ["x"]
    above = write_run(tmp_path / "a")  # a run, and the folder of a sweep too
    assert list(named(found_runs([str(above)]))) == ["a", "x"]


def test_multi_label_runs_are_compared_by_their_own_figure(
    cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one", metric="mAP", best=0.25)
    assert cli("plot", "one") == 0
    head, line = capsys.readouterr().out.splitlines()[:2]
    assert "best mAP" in head and "0.2500" in line.split()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "takes run folders; here are runs/one"),
        (("runs/on",), 1, "there is no folder runs/on; here are runs/one"),
        (("empty",), 1, "no run in empty: a run folder holds a metrics.jsonl"),
        (("runs/x*",), 1, "no folder of a run matches runs/x*"),
        (("runs/one", "x=steps"), 2, "x=steps must be step or epoch"),
        (("runs/one", "smoothing=1"), 2, "smoothing=1.0 must be from 0 to below 1"),
        (("runs/one", "output=a.pdf"), 2, "output=a.pdf must end in .png"),
        (("runs/one", "output=not/there.png"), 1, "cannot write not/there.png"),
        (("runs/one", "metric=top2"), 2, "metric=top2 is no figure of these runs; did you mean"),
    ],
)
def test_what_is_wrong_is_said(
    words: tuple[str, ...], code: int, said: str, cli: Callable[..., int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_run(tmp_path / "runs/one")
    (tmp_path / "empty").mkdir()
    assert cli("plot", *words) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_the_runs_that_are_there_are_named_the_most_alike_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert here_are("runs/nix") == "" == here_are()
    for name in (*(f"a{number}" for number in range(8)), "nxi", "sweep/lr=1"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs/notes").mkdir()
    assert here_are("runs/nix").startswith("; here are runs/nxi, runs/")
    assert here_are("runs/sweep/lr=2").startswith("; here are runs/sweep/lr=1, runs/")
    assert here_are().endswith(" and 2 more") and here_are().count("runs/") == 8
    write_run(tmp_path / "elsewhere/mine")
    assert here_are("elsewhere/mien").startswith("; here are elsewhere/mine, runs/")


@pytest.mark.parametrize("command", [("repro",), ("plot",), ("repro", "runs/one")])
def test_a_run_that_is_not_there_is_answered_with_those_that_are(
    command: tuple[str, ...], cli: Callable[..., int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("one", "nixe"):
        folder = write_run(tmp_path / "runs" / name)
        (folder / "config.yaml").write_text("{}")
        (folder / "run.json").write_text("{}")
    assert cli(*command, "runs/nix") == 1
    assert "runs/nix; here are runs/nixe, runs/one" in capsys.readouterr().err.replace(
        " is not a run folder: there is no runs/nix/config.yaml", ""
    )


def test_runs_without_any_figure_are_an_error(tmp_path: Path, cli: Callable[..., int]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/metrics.jsonl").touch()
    assert cli("plot", "new") == 1
    with pytest.raises(InputError, match="there is no folder"):
        found_runs([str(tmp_path / "nothing")])


def test_smoothing_against_a_table_made_by_hand() -> None:
    # Weights of 4, 2, 8 under a share of 0.5: 1/2 of the newest, 1/4, 1/8, over their sum.
    found = smoothed(np.array([4.0, np.nan, 2.0, 8.0]), 0.5)
    expected = [4.0, np.nan, (2 / 2 + 4 / 4) / (3 / 4), (8 / 2 + 2 / 4 + 4 / 8) / (7 / 8)]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(smoothed(np.array([1.0, 3.0]), 0.0), [1.0, 3.0])
