"""Losses of the first steps of three models, to four digits: a refactor must not move them.

After a change that is meant to move them: VIDTRAIN_UPDATE_GOLDEN=1 make test ARGS='-k golden',
and say in the commit why they moved.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TESTS, noise
from PIL import Image

GOLDEN = TESTS / "golden" / "losses.json"
MODELS = {
    "c3d_small": (),
    "x3d_xs": ("model.input.crop_size=64", "model.input.short_side=[64,72]",
               "model.input.eval_crop_size=64", "model.input.eval_short_side=64",
               "model.input.sampling_rate=2"),
    "tsn_resnet50": ("model.build.backbone=resnet18", "model.input.num_frames=3",
                     "model.input.crop_size=64", "model.input.short_side=[64,72]",
                     "model.input.eval_crop_size=64", "model.input.eval_short_side=64"),
}  # fmt: skip


@pytest.fixture(scope="module")
def frame_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of PNG frame folders: the same pixels whatever codecs are installed."""
    root = tmp_path_factory.mktemp("frames")
    for split, count in (("train", 16), ("val", 2)):
        for index in range(count):
            folder = root / split / f"class{index % 2}" / f"v{index:02d}"
            folder.mkdir(parents=True)
            for number, frame in enumerate(noise(index, 80 + 90 * (index % 2), 9)):
                Image.fromarray(frame).save(folder / f"{number:03d}.png")
    return root


@pytest.mark.parametrize("model", MODELS)
def test_losses_are_golden(cli: Callable[..., int], frame_folders: Path, model: str) -> None:
    assert cli(
        "train", f"model={model}", *MODELS[model], "data=folder", f"data.root={frame_folders}",
        "data.num_workers=0", "num_threads=1", "device=cpu", "mix=mixup_cutmix",
        "train.batch_size=4", "train.epochs=1", "train.max_steps=4",
        "average=ema", "average.decay=0.9",
        "train.log_every_steps=1", "optimizer.lr=0.001", "schedule.warmup=0.5",
        "name=golden",
    ) == 0  # fmt: skip
    rows = [json.loads(line) for line in Path("runs/golden/metrics.jsonl").read_text().splitlines()]
    found = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(found) == 4
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("VIDTRAIN_UPDATE_GOLDEN"):
        GOLDEN.write_text(
            json.dumps(golden | {model: [round(v, 6) for v in found]}, indent=2) + "\n"
        )
        return
    # Kernels differ between processors and torch releases in the last digits.
    assert found == pytest.approx(golden[model], rel=2e-4)
