"""The sizes of our models are the published ones; the table is printed (pytest -s)."""

import csv
import re

import pytest
import torch
from conftest import REPO
from test_zoo import NAMES, node_of
from torch import nn
from zoo_figures import FIGURES, NOT_HELD, UNPUBLISHED, Figure

from vidtrain.models.counting import count
from vidtrain.targets import component

REFERENCE = REPO.parent / "shared" / "data" / "zoo_reference.csv"


def built(figure: Figure) -> nn.Module:
    arguments = node_of(figure.name)["build"] | figure.build
    clip = {"num_frames": figure.num_frames, "crop_size": figure.crop_size}
    arguments |= {key: value for key, value in clip.items() if key in arguments}
    with torch.device("meta"):
        return component(arguments, "model.build", num_classes=figure.num_classes)


def norm_numbers(figure: Figure) -> int:
    """How many numbers all batch norms of a network return for one clip."""
    found = []
    net = built(figure).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            part.register_forward_hook(lambda _, inputs, output: found.append(output.numel()))
    net(torch.empty(1, 3, figure.num_frames, figure.crop_size, figure.crop_size, device="meta"))
    return sum(found)


@pytest.mark.parametrize(
    "figure", FIGURES, ids=lambda f: f"{f.name}-{f.num_frames}x{f.crop_size}-{f.num_classes}"
)
def test_size_is_the_published_one(figure: Figure) -> None:
    clip = {"num_frames": figure.num_frames, "crop_size": figure.crop_size}
    size = count(built(figure), **clip)
    mparams, gmacs = size.parameters / 1e6, size.gmacs
    print(f"{figure.name:20} {mparams:10.6f} M ({figure.mparams or '-'})  {gmacs:8.3f} GFLOPs "
          f"({figure.gflops or '-'})  {figure.source}")  # fmt: skip
    if figure.mparams is not None:
        digits = len(figure.mparams.partition(".")[2])
        assert f"{mparams:.{digits}f}" == figure.mparams
    if figure.gflops is not None:
        if figure.norm_macs:
            gmacs += figure.norm_macs * norm_numbers(figure) / 1e9
        assert gmacs == pytest.approx(float(figure.gflops), rel=0.003 if figure.norm_macs else 0.02)


def test_every_model_has_a_published_size_or_a_reason_why_not() -> None:
    assert {figure.name for figure in FIGURES} | UNPUBLISHED.keys() == set(NAMES)


def test_every_row_of_the_reference_table_that_we_build_is_held() -> None:
    """Each published size of our families stands in our table, or why it does not is known."""
    if not REFERENCE.is_file():
        pytest.skip(f"no {REFERENCE}")
    families = {"C2D", "I3D", "Slow", "SlowFast", "X3D", "CSN", "R(2+1)D", "MViT", "MViTv2", "R3D",
                "MC3", "R2Plus1D", "S3D", "Swin3D", "TSN", "TSM", "swin", "mvit"}  # fmt: skip
    sizes = {figure.mparams for figure in FIGURES}
    with REFERENCE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] in families]
    assert len(rows) > 100
    left = [
        text
        for row in rows
        if row["params_M"] and row["params_M"] not in sizes
        for text in [f"{row['variant']} {row['params_M']} {row['dataset']}"]
    ]
    assert not [t for t in left if not any(re.search(pattern, t) for pattern, _ in NOT_HELD)]
    assert not [p for p, _ in NOT_HELD if not any(re.search(p, text) for text in left)], "outdated"
