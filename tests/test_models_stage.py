"""`vidtrain models`, and the counting behind it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from rich.console import Console
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from vidtrain.models import counting
from vidtrain.models.weights.cache import cache_path
from vidtrain.report import model_pages as pages
from vidtrain.stages import models as stage

Cli = Callable[..., int]


class Attention(nn.Module):
    """One convolution to tokens, one attention with two heads, one classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, 24, (1, 4, 4), (1, 4, 4))
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))])
        self.head = nn.Linear(8, 5)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(video).flatten(2).transpose(1, 2)
        q, k, v = tokens.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.blocks[0](mixed).mean(1))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_products_are_counted_and_attention_among_them(device: str) -> None:
    net = Attention().to(device).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    size = counting.count(net, num_frames=2, crop_size=8)
    tokens = 2 * 2 * 2
    patches, attention, linear = tokens * 48 * 24, 2 * tokens * tokens * 8, tokens * 64
    assert size.gmacs * 1e9 == pytest.approx(patches + attention + linear + 40)
    assert size.parameters == 3 * 16 * 24 + 24 + 16 + 72 + 45
    assert net.training and not net._forward_hooks and next(net.parameters()).device.type == device
    if device == "cpu":
        assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())

    rows = counting.layers(net, num_frames=2, crop_size=8)
    assert [(row.name, row.kind, row.depth) for row in rows] == [
        ("patches", "Conv3d", 0), ("blocks.0", "Sequential", 0), ("blocks.0.0", "LayerNorm", 1),
        ("blocks.0.1", "Linear", 1), ("head", "Linear", 0),
    ]  # fmt: skip
    assert [row.output for row in rows] == [((24, 2, 2, 2),), *[((8, 8),)] * 3, ((5,),)]
    assert [round(row.gmacs * 1e9) for row in rows] == [patches, linear, 0, linear, 40]
    assert rows[0].share == pytest.approx(patches / (size.gmacs * 1e9))
    assert [row.name for row in counting.layers(net, num_frames=2, crop_size=8, max_rows=4)] == [
        "patches", "blocks.0", "head",
    ]  # fmt: skip


def printed(rows: list[dict[str, Any]], width: int, *, page: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    if page:
        pages.print_page(console, rows[0])
    else:
        pages.print_table(console, rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def listed(cli: Cli, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    def run(*args: str) -> list[dict[str, Any]]:
        cli("models", *args, "--json")
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return rows

    return run


def write_model(folder: Path, name: str, text: str) -> None:
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / f"{name}.yaml").write_text(text)


PUBLISHED = """
published:
  - {dataset: K400, top1: 71.5, top5: 89.25, views: 10 x 3, url: "https://w.org/k/a.pth",
     num_classes: 7, source: the paper of a group with a very long name, licence: MIT}
  - {dataset: SSv2, top1: 33, source: another paper, note: set model.input.num_frames=16}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model `mine`, two results of which are published."""
    monkeypatch.setenv("VIDTRAIN_WEIGHTS", str(tmp_path / "weights"))
    text = (Path(TINY[1]) / "model" / "tiny.yaml").read_text().replace("name: tiny", "name: mine")
    write_model(tmp_path / "conf", "mine", text + PUBLISHED)
    return tmp_path / "conf"


def test_json_has_everything(listed: Any, mine: Path) -> None:
    args = ("--config-dir", str(mine), "mine")
    (row,) = listed(*args)
    assert row["name"] == "mine" and row["file"] == str(mine / "model" / "mine.yaml")
    assert row["build"]["_target_"].startswith("my_models.") and row["num_classes"] == 7
    # 3x3x3 convolutions of 3 -> 8 -> 16 channels, two norms, 16 -> 7
    assert row["params_M"] * 1e6 == 648 + 16 + 3456 + 32 + 16 * 7 + 7
    frames, side = row["input"]["num_frames"], row["input"]["eval_crop_size"] // 2
    first = 648 * frames * side**2
    second = 3456 * -(-frames // 2) * (side // 2) ** 2
    assert row["gflops"] * 1e9 == pytest.approx(first + second + 16 * 7)
    kinetics, something = row["published"]
    assert kinetics["top5"] == 89.25 and kinetics["licence"] == "MIT" and not kinetics["cached"]
    assert something["url"] is None and something["cached"] is None
    assert (kinetics["note"], something["note"]) == (None, "set model.input.num_frames=16")
    assert "layers" not in row

    path = cache_path("https://w.org/k/a.pth")
    path.parent.mkdir(parents=True)
    path.touch()
    (row,) = listed(*args, "--detail")
    assert row["published"][0]["cached"] == str(path)
    assert [part["kind"] for part in row["layers"]][:2] == ["Conv3d", "BatchNorm3d"]


def test_the_table_fits_the_terminal(listed: Any, mine: Path) -> None:
    rows = listed("--config-dir", str(mine), "mine")
    wide = printed(rows, 200)
    assert "source" in wide[0] and "a very long name" in wide[2] and "published" in wide[2]
    assert "SSv2" in wide[3] and "33.00" in wide[3] and "mine" not in wide[3]
    assert "a wider terminal" not in "".join(wide)
    for width in (120, 100, 80):
        lines = printed(rows, width)
        assert max(map(len, lines)) <= width
        for word in ("model", "clip", "Mparams", "GFLOPs", "data set", "top-1", "weights"):
            assert word in lines[0], (width, word)
        assert "a wider terminal also shows: source" in "\n".join(lines)
        assert "…" not in "".join(lines)


def test_a_page_on_one_model(
    cli: Cli, mine: Path, listed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(mine, "mine_too", (mine / "model" / "mine.yaml").read_text())
    assert cli("models", "--detail", "mine", "--config-dir", str(mine)) == 0
    text = capsys.readouterr().out
    assert "mine_too" not in text
    for fact in ("https://w.org/k/a.pth (not on this machine)", "no file is published", "num_fram",
                 "none is published", "top-1 71.50, top-5 89.25, 10 x 3 views", "MIT", "Conv3d",
                 "BatchNorm3d", "top-1 33.00, top-5 ?, unknown views",
                 f"{'note':16} set model.input.num_frames=16"):  # fmt: skip
        assert fact in text, fact
    assert text.count("  note ") == 1
    lines = printed(listed("mine", "--config-dir", str(mine), "--detail"), 80, page=True)
    assert max(map(len, lines)) <= 80


def test_parts_are_named_within_their_part() -> None:
    console = Console(file=io.StringIO(), width=100)
    row = {
        "kind": "Block",
        "output": [[2, 3], [4]],
        "parameters": 1234,
        "gmacs": 0.5,
        "share": 0.25,
    }
    names = [("a", 0), ("a.blocks.0", 1), ("a.blocks.0.conv", 2), ("b", 0)]
    pages._print_layers(console, [{**row, "name": name, "depth": depth} for name, depth in names])
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()[2:6]
    assert [line.split("Block")[0].rstrip() for line in lines] == [
        "a",
        "  blocks.0",
        "    conv",
        "b",
    ]
    assert lines[0].split() == ["a", "Block", "2x3", "+", "4", "1,234", "0.500", "25.0%"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: [", "line 1, column 8"),
        ("family: X", "model.name"),
        ("modle: broken", "Key 'modle'"),
        ("name: broken\nfamily: X\nbuild: {_target_: os.system}\n", "model.input.crop_size"),
        ("name: 3\nfamily: [X]", "full_key: model.family"),
        ("name: broken\nfamily: X\nbuild: {_target_: my_models.tiny, breadth: 8}\n", "model.input"),
    ],
)
def test_a_broken_file_names_itself_and_hides_nothing(
    cli: Cli, mine: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    write_model(mine, "broken", text)
    assert cli("models", "[bm]*[en]", "--config-dir", str(mine)) == 1
    out, error = capsys.readouterr()
    assert "mine" in out and "71.50" in out and "broken" not in out
    assert f"1 of 2 models do not work:\n  {mine / 'model' / 'broken.yaml'}: " in error
    assert reason in error and "Traceback" not in error
    assert cli("models", "[bm]*[en]", "--config-dir", str(mine), "--json") == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["broken", "mine"] and rows[0]["error"]


FUSSY = """
from torch import nn

class Fussy(nn.Linear):
    def forward(self, video):
        return super().forward(video.mean() if video.sum() > 0 else video)

def fussy(*, num_classes, width, dropout):
    return Fussy(width, num_classes)
"""


def test_a_network_that_cannot_run_without_values_is_listed(
    listed: Any, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fussy_models.py").write_text(FUSSY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VIDTRAIN_ALLOW_TARGETS", "fussy_models")
    text = (
        (mine / "model" / "mine.yaml").read_text().replace("my_models.tiny", "fussy_models.fussy")
    )
    write_model(mine, "fussy", text)
    (row,) = listed("fussy", "--config-dir", str(mine))
    assert row["gflops"] is None and row["not_counted"] and row["params_M"] == 63e-6
    assert any("fussy: the cost is not counted" in line for line in printed([row], 120))


def test_processes_list_what_one_does(
    listed: Any, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (mine / "model" / "mine.yaml").read_text()
    for index in range(5):
        write_model(mine, f"mine{index}", text)
    args = ("mine*", "--config-dir", str(mine))
    monkeypatch.setattr(stage, "FEW", 100)
    alone = listed(*args)
    monkeypatch.setattr(stage, "FEW", 2)
    monkeypatch.setattr(stage.survey, "num_processes", lambda _: 2)
    assert listed(*args) == alone and len(alone) == 6


@pytest.mark.slow
def test_every_shipped_model_is_listed(listed: Any) -> None:
    rows = listed()
    assert not [(row["name"], row["error"]) for row in rows if "error" in row]
    assert not [(row["name"], row["not_counted"]) for row in rows if "not_counted" in row]
    assert all(row["gflops"] > 0 for row in rows)
