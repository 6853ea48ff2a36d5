import hashlib
import importlib.metadata
import json

import pytest
import torch
from torch import nn

import vidtrain
from vidtrain.errors import InputError
from vidtrain.export.formats import load_torchscript, replacing, to_torchscript
from vidtrain.export.parity import check, compare, parity_batches
from vidtrain.export.sidecar import Preprocessing, write_sidecar

NUM_CLASSES, NUM_FRAMES = 5, 4


@pytest.fixture(scope="module")
def clips():
    brightness = torch.linspace(-1, 1, 4).view(4, 1, 1, 1, 1)
    noise = torch.randn(4, 3, NUM_FRAMES, 16, 16, generator=torch.Generator().manual_seed(0))
    return brightness + noise


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, NUM_CLASSES),
    ).eval()


def test_a_difference_at_only_the_longer_length_is_seen(model, clips):
    def exported(video):
        return model(video) + (0.1 if video.shape[2] > NUM_FRAMES else 0.0)

    check(compare(model, exported, parity_batches(clips, dynamic_time=False)))
    parity = compare(model, exported, parity_batches(clips, dynamic_time=True))
    assert parity.max_abs == pytest.approx(0.1, rel=1e-3)
    with pytest.raises(InputError):
        check(parity)


def test_comparisons_that_would_prove_nothing_are_refused(model, clips):
    def constant(video):
        return torch.zeros(len(video), NUM_CLASSES)

    def broken(video):
        return model(video) * float("nan")

    def narrow(video):
        return model(video)[:, :1]

    with pytest.raises(InputError, match="two clips or more"):
        parity_batches(clips[:1], dynamic_time=False)
    with pytest.raises(InputError, match="prove nothing"):
        compare(constant, constant, [clips])
    with pytest.raises(InputError, match="exported model returns logits that are not finite"):
        compare(model, broken, [clips])
    with pytest.raises(InputError, match=r"returns shape \(4, 1\) instead of \(4, 5\)"):
        compare(model, narrow, [clips])


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "new folder" / "model.onnx"
    with replacing(path) as temporary:
        temporary.write_text("old")
        assert temporary.suffix == ".onnx"
        assert not path.exists()

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise InputError("parity")

    with pytest.raises(InputError, match="parity"):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot write"), replacing(path / "below a file"):
        pass


def test_sidecar_says_what_a_consumer_needs(model, clips, tmp_path):
    path = tmp_path / "model.pt"
    report = to_torchscript(model, clips[:2], path, dynamic_time=True)
    batches = parity_batches(clips, dynamic_time=True)
    parity = compare(model, load_torchscript(path), batches)
    preprocessing = Preprocessing(
        num_frames=4, sampling_rate=2, short_side=18, crop_size=16,
        mean=[0.45, 0.45, 0.45], std=[0.225, 0.225, 0.225],
    )  # fmt: skip
    sidecar = write_sidecar(
        path, exported=report, parity=parity, preprocessing=preprocessing,
        class_names=("walk", "run", "sit", "jump", "stå"), run="my_run", checkpoint="best.pt",
    )  # fmt: skip
    assert sidecar == path.with_name("model.pt.json")
    content = json.loads(sidecar.read_text("utf-8"))
    assert content == {
        "file": "model.pt",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": len(path.read_bytes()),
        "format": "torchscript",
        "opset": None,
        "dynamic_axes": ["batch", "time"],
        "note": None,
        "input": {
            "name": "video",
            "layout": "B,3,T,H,W RGB float32 normalised",
            "num_frames": 4,
            "sampling_rate": 2,
            "short_side": 18,
            "crop_size": 16,
            "mean": [0.45, 0.45, 0.45],
            "std": [0.225, 0.225, 0.225],
            "target_fps": None,
            "clip_sampler": "ConstantClips",
        },
        "output": {"name": "logits", "meaning": "logits; apply softmax for probabilities"},
        "labels": ["walk", "run", "sit", "jump", "stå"],
        "source": {"run": "my_run", "checkpoint": "best.pt"},
        "parity": {
            "max_abs": parity.max_abs,
            "max_rel": parity.max_rel,
            "top1_agreement": 1.0,
            "num_clips": 6,
            "shapes": [[4, 3, 4, 16, 16], [1, 3, 4, 16, 16], [1, 3, 8, 16, 16]],
            "tolerance": 1e-3,
        },
        "versions": {
            "vidtrain": vidtrain.__version__,
            **{n: importlib.metadata.version(n) for n in ("torch", "onnx", "onnxruntime")},
        },
    }
