import logging
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vidtrain.errors import InputError, UsageError
from vidtrain.export.formats import FORMATS, Exported, load_onnx, replacing, to_onnx, to_torchscript
from vidtrain.export.parity import Parity, check, compare, parity_batches

NUM_CLASSES, NUM_FRAMES = 5, 4


def wake_up(model: nn.Module, clips: torch.Tensor) -> nn.Module:
    """Gives every BatchNorm scales and statistics that matter: fresh ones hide whole branches."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.normal_(part.bias, std=0.2)
            part.momentum = 1.0
    with torch.no_grad():
        model.train()(clips)
    return model.eval()


class TwoPathways(nn.Module):
    """The shapes that make video networks hard to export: strided time, depthwise, two rates."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Conv3d(3, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.fast = nn.Conv3d(3, 8, 3, stride=(2, 2, 2), padding=1, bias=False)
        self.norm = nn.BatchNorm3d(16)
        self.depthwise = nn.Conv3d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm3d(16)
        self.head = nn.Linear(16, NUM_CLASSES)

    def forward(self, video):
        joined = torch.cat([self.slow(video[:, :, ::2]), self.fast(video)], 1)
        features = nn.functional.silu(self.norm(joined))
        features = torch.relu(features + self.norm2(self.depthwise(features)))
        return self.head(features.mean((2, 3, 4)))


class OneLengthOnly(nn.Module):
    """Has a position embedding per frame, like a transformer."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, NUM_FRAMES, 1, 1))
        self.head = nn.Linear(3, NUM_CLASSES)

    def forward(self, video):
        return self.head((video * self.position).relu().mean((2, 3, 4)))


class LengthInABranch(nn.Module):
    """Runs at any length, but takes a Python branch on it that an exporter freezes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, NUM_CLASSES)

    def forward(self, video):
        scale = 1.0 if video.shape[2] == NUM_FRAMES else 3.0
        return self.head(scale * video.relu().mean((2, 3, 4)))


class PythonFunction(nn.Module):
    """Calls an autograd function in Python, which TorchScript cannot save."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    def forward(self, video):
        return self.Double.apply(video).mean((2, 3, 4))


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(0)
    brightness = torch.linspace(-1, 1, 4).view(4, 1, 1, 1, 1)
    return brightness + torch.randn(4, 3, NUM_FRAMES, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def model(clips):
    torch.manual_seed(0)
    return wake_up(TwoPathways(), clips)


@pytest.fixture(scope="module")
def files(model, clips, tmp_path_factory):
    """Each format's file, and what its exporter reported."""
    folder = tmp_path_factory.mktemp("export")
    written = {}
    for name, format in FORMATS.items():
        path = folder / f"model{format.suffix}"
        with replacing(path) as temporary:
            report = format.write(model, clips[:2], temporary, dynamic_time=True)
        written[name] = path, report
    assert sorted(folder.iterdir()) == sorted(path for path, _ in written.values())
    return written


def measure(model, format, path, report, clips) -> Parity:
    batches = parity_batches(clips, dynamic_time="time" in report.dynamic_axes)
    return compare(model, FORMATS[format].load(path), batches)


@pytest.mark.parametrize("format", FORMATS)
def test_logits_are_right_at_another_batch_size_and_length(format, files, model, clips):
    path, report = files[format]
    assert report == Exported(format, 20 if format == "onnx" else None, ("batch", "time"), None)
    parity = measure(model, format, path, report, clips)
    check(parity)
    assert parity.shapes == ((4, 3, 4, 16, 16), (1, 3, 4, 16, 16), (1, 3, 8, 16, 16))
    assert parity.num_clips == 6
    assert parity.max_rel < 1e-5
    assert parity.top1_agreement == 1


@pytest.mark.parametrize("format", FORMATS)
def test_an_altered_file_is_refused(format, files, model, clips, tmp_path):
    path, report = files[format]
    altered = tmp_path / path.name
    if format == "onnx":
        graph = onnx.load(path)
        weight = next(w for w in graph.graph.initializer if len(w.dims) == 5)
        values = onnx.numpy_helper.to_array(weight) + np.float32(0.05)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(graph, altered)
    elif format == "torch_export":
        program = torch.export.load(path)
        program.state_dict["fast.weight"].data.add_(0.05)
        torch.export.save(program, altered)
    else:
        with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):
            script = torch.jit.load(path)
        script.fast.weight.data.add_(0.05)
        script.save(altered)
    parity = measure(model, format, altered, report, clips)
    with pytest.raises(InputError, match="disagrees with the trained one") as refusal:
        check(parity)
    for figure in (f"{parity.max_abs:.3g}", f"{parity.max_rel:.3g}", "0.001", "tolerance"):
        assert figure in str(refusal.value)
    check(parity, tolerance=parity.max_rel)


@pytest.mark.parametrize("format", FORMATS)
def test_fixed_time_is_reported_and_exports_all_the_same(format, clips, tmp_path):
    path = tmp_path / "model"
    torch.manual_seed(0)
    frozen = "logits differ by" if format == "torchscript" else "exporter cannot leave it free"
    for model, why in ((OneLengthOnly(), "itself fails at 8"), (LengthInABranch(), frozen)):
        report = FORMATS[format].write(model.eval(), clips[:2], path, dynamic_time=True)
        assert report.dynamic_axes == ("batch",)
        assert report.note is not None
        assert "time is fixed to 4 frames" in report.note
        assert why in report.note
        check(measure(model, format, path, report, clips))
    report = FORMATS[format].write(model, clips[:2], path, dynamic_time=False)
    assert report.dynamic_axes == ("batch",)
    assert report.note is None


def test_running_a_fixed_file_at_another_length_is_an_input_error(model, clips, tmp_path):
    to_onnx(model, clips[:2], tmp_path / "model.onnx", dynamic_time=False)
    run = load_onnx(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"fails on a clip batch of shape \(1, 3, 8, 16, 16\)"):
        compare(model, run, parity_batches(clips, dynamic_time=True))


def test_the_operator_set_is_read_back(files, model, clips, tmp_path, caplog):
    assert [
        (entry.domain, entry.version) for entry in onnx.load(files["onnx"][0]).opset_import
    ] == [("", 20)]
    with pytest.raises(UsageError, match="set 13 was asked for, but the exporter wrote 18"):
        to_onnx(model, clips[:2], tmp_path / "model.onnx", dynamic_time=False, opset=13)
    assert [log for log in caplog.records if log.levelno >= logging.WARNING] == []


def test_input_and_output_are_named(files):
    graph = onnx.load(files["onnx"][0]).graph
    (video,), (logits,) = graph.input, graph.output
    assert (video.name, logits.name) == ("video", "logits")
    sizes = [axis.dim_param or axis.dim_value for axis in video.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "time", 16, 16]


FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["vidtrain"] = None  # makes any import of it fail
import numpy, onnxruntime, torch
folder = sys.argv[1]
video = numpy.load(folder + "/clips.npy")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
with torch.no_grad():
    logits = [
        session.run(["logits"], {"video": video})[0],
        torch.export.load(folder + "/model.pt2").module()(torch.from_numpy(video)).numpy(),
        torch.jit.load(folder + "/model.pt")(torch.from_numpy(video)).numpy(),
    ]
numpy.save(folder + "/logits.npy", numpy.stack(logits))
"""


def test_files_load_in_a_process_without_vidtrain(files, model, clips):
    folder = files["onnx"][0].parent
    np.save(folder / "clips.npy", clips.numpy())
    subprocess.run([sys.executable, "-I", "-c", FRESH, folder], check=True, cwd=folder)
    with torch.no_grad():
        expected = model(clips).numpy()
    for logits in np.load(folder / "logits.npy"):
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_files_hold_neither_clips_nor_source_paths(files):
    assert b".py" not in files["onnx"][0].read_bytes()
    with zipfile.ZipFile(files["torch_export"][0]) as archive:
        for member in archive.infolist():
            assert b".py" not in archive.read(member)
            if "sample_inputs" in member.filename:
                assert member.file_size == 0


@pytest.mark.parametrize("format", FORMATS)
def test_exporters_are_silent(format, model, clips, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        FORMATS[format].write(model, clips[:2], tmp_path / "model", dynamic_time=True)
        FORMATS[format].load(tmp_path / "model")
    assert [str(warning.message) for warning in warned] == []
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0


def test_a_model_that_cannot_be_exported_is_an_input_error(clips, tmp_path):
    with pytest.raises(InputError, match=r"format=torchscript .*try format=onnx or format=torch_"):
        to_torchscript(PythonFunction().eval(), clips[:2], tmp_path / "m.pt", dynamic_time=False)


def test_a_model_too_large_for_one_onnx_file_is_refused(clips, tmp_path):
    with torch.device("meta"):
        model = nn.Linear(2**15, 2**14).eval()  # 2 GiB
    with pytest.raises(InputError, match=r"take 2\.0 GiB .* format=torch_export"):
        to_onnx(model, clips[:2], tmp_path / "model.onnx", dynamic_time=True)


def test_wrong_use_is_refused(model, clips, tmp_path):
    with pytest.raises(ValueError, match="batch of 1"):
        to_onnx(model, clips[:1], tmp_path / "model.onnx", dynamic_time=True)
    with pytest.raises(ValueError, match="eval mode"):
        to_onnx(TwoPathways(), clips[:2], tmp_path / "model.onnx", dynamic_time=True)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["x3d", "slowfast", "r3d_18"])
def test_published_networks_keep_their_logits(name, format, tmp_path):
    from torchvision.models.video import r3d_18

    from vidtrain.models.slowfast import slowfast
    from vidtrain.models.x3d import x3d

    torch.manual_seed(0)
    builders = {"x3d": lambda: x3d(7, version="xs"), "slowfast": lambda: slowfast(7),
                "r3d_18": lambda: r3d_18(num_classes=7)}  # fmt: skip
    clips = torch.randn(3, 3, 16, 64, 64)
    model = wake_up(builders[name](), clips)
    path = tmp_path / "model"
    report = FORMATS[format].write(model, clips[:2], path, dynamic_time=True)
    assert report.dynamic_axes == ("batch", "time"), report.note
    parity = measure(model, format, path, report, clips)
    check(parity)
    assert parity.top1_agreement == 1
