"""Export formats: write a model to a file, load such a file again as a plain function.

Every exported file takes one input `video` (B, 3, T, H, W) float32, normalised RGB, and returns
`logits` (B, num_classes); softmax is the consumer's. Batch size is always free, the number of
frames T where the model and the exporter allow it, H and W are fixed.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vidtrain.errors import InputError, UsageError
from vidtrain.export.parity import TOLERANCE, Runner, compare, reason, twice_as_long

OPSET = 20
MAX_ONNX_BYTES = 2 * 1024**3 - 16 * 1024**2  # protobuf's limit of one file, less the graph


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        format: "onnx", "torch_export" or "torchscript".
        opset: ONNX operator set as read back from the file; None for the other formats.
        dynamic_axes: Axes of any length, ("batch",) or ("batch", "time").
        note: Why time is fixed although it was asked to be free; None otherwise. Show it.
    """

    format: str
    opset: int | None
    dynamic_axes: tuple[str, ...]
    note: str | None


def to_onnx(
    model: nn.Module, example: Tensor, path: Path, *, dynamic_time: bool, opset: int = OPSET
) -> Exported:
    """Writes one self-contained ONNX file.

    Args:
        model: Model in eval mode, on the CPU.
        example: Clips (2 or more, 3, T, H, W) float32; T, H, W as in evaluation.
        path: File to write; see `replacing`.
        dynamic_time: Try to leave the number of frames free.
        opset: ONNX operator set.

    Raises:
        UsageError: The exporter did not honour `opset`.
        InputError: The model cannot be exported, or is too large for one file.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > MAX_ONNX_BYTES:
        raise InputError(
            f"the model's weights take {size / 1024**3:.1f} GiB and one ONNX file holds 2 GiB at "
            "most: export with format=torch_export"
        )

    def write(dynamic_time: bool) -> None:
        program = _program(model, example, dynamic_time=dynamic_time)
        axes = {0: "batch", 2: "time"} if dynamic_time else {0: "batch"}
        torch.onnx.export(
            program,
            (),
            path,
            dynamo=True,
            opset_version=opset,
            input_names=["video"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )

    exported = _export("onnx", write, model, example, path, dynamic_time=dynamic_time)
    return replace(exported, opset=_read_back_opset(path, asked=opset))


def to_torch_export(
    model: nn.Module, example: Tensor, path: Path, *, dynamic_time: bool
) -> Exported:
    """Writes a `torch.export` archive (.pt2).

    Arguments and errors as in `to_onnx`. With time left free the archive still refuses, loudly,
    lengths so short that an inner time axis shrinks to 1.
    """

    def write(dynamic_time: bool) -> None:
        program = _program(model, example, dynamic_time=dynamic_time)
        with open(path, "wb") as file:  # by handle: a path must end in .pt2
            torch.export.save(program, file)

    return _export("torch_export", write, model, example, path, dynamic_time=dynamic_time)


def to_torchscript(
    model: nn.Module, example: Tensor, path: Path, *, dynamic_time: bool
) -> Exported:
    """Writes a traced TorchScript file (.pt), for old C++ runtimes: PyTorch has deprecated it.

    Arguments and errors as in `to_onnx`. A trace never refuses another number of frames, so
    "time" is claimed only if the logits are right at a second length.
    """

    def write(_: bool) -> None:
        with torch.no_grad():
            torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))

    return _export("torchscript", write, model, example, path, dynamic_time=dynamic_time)


def load_onnx(path: Path) -> Runner:
    """Loads an ONNX file into onnxruntime on the CPU, with as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(video: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"video": video.numpy()})
        return torch.from_numpy(logits)

    return run


def load_torch_export(path: Path) -> Runner:
    """Loads a .pt2 archive onto the CPU, where it was exported."""
    with open(path, "rb") as file:
        return torch.no_grad()(torch.export.load(file).module())


def load_torchscript(path: Path) -> Runner:
    """Loads a TorchScript file onto the CPU."""
    with _quiet():
        return torch.no_grad()(torch.jit.load(str(path), map_location="cpu"))


class Format(NamedTuple):
    """One export format: the suffix of its files, and how to write and load them."""

    suffix: str
    write: Callable[..., Exported]
    load: Callable[[Path], Runner]


FORMATS = {
    "onnx": Format(".onnx", to_onnx, load_onnx),
    "torch_export": Format(".pt2", to_torch_export, load_torch_export),
    "torchscript": Format(".pt", to_torchscript, load_torchscript),
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; renames it to `path` if the block succeeds.

    So `path` is always absent, the old file, or the whole new one. On an error the temporary
    file is removed and `path` left alone.

    Raises:
        InputError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another folder") from error
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or name another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _export(
    format: str,
    write: Callable[[bool], None],
    model: nn.Module,
    example: Tensor,
    path: Path,
    *,
    dynamic_time: bool,
) -> Exported:
    """Calls `write(dynamic_time)`, which writes `path`, and falls back to fixed time."""
    if model.training:
        raise ValueError("export needs the model in eval mode: call model.eval()")
    if example.ndim != 5 or len(example) < 2 or example.dtype != torch.float32:
        raise ValueError(
            f"the example must be float32 (2 or more, 3, T, H, W), but is {example.dtype} "
            f"{tuple(example.shape)}; exporters take a batch of 1 for a constant"
        )
    with _quiet():
        note = _try_dynamic_time(format, write, model, example, path) if dynamic_time else None
        if dynamic_time and note is None:
            return Exported(format, None, ("batch", "time"), None)
        try:
            write(False)
        except OSError:
            raise  # the disk, not the model
        except Exception as error:
            others = " or format=".join(name for name in FORMATS if name != format)
            raise InputError(
                f"this model cannot be exported with format={format} ({reason(error)}); "
                f"try format={others}"
            ) from error
    return Exported(format, None, ("batch",), note)


def _try_dynamic_time(
    format: str, write: Callable[[bool], None], model: nn.Module, example: Tensor, path: Path
) -> str | None:
    """Writes with time left free; returns why that does not work, or None where it does.

    The file is run at a second length: some exporters write files that fail or err there.
    """
    num_frames = example.shape[2]
    fixed = f"time is fixed to {num_frames} frames: "
    longer = twice_as_long(example[:1])
    try:
        with torch.no_grad():
            model(longer)
    except Exception as error:
        return f"{fixed}the model itself fails at {2 * num_frames} ({reason(error)})"
    try:
        write(True)
        parity = compare(model, FORMATS[format].load(path), [longer])
    except Exception as error:
        return f"{fixed}the exporter cannot leave it free ({reason(error)})"
    if parity.max_rel > TOLERANCE:
        return (
            f"{fixed}at {2 * num_frames} the exported logits differ by {parity.max_rel:.3g} of "
            f"their standard deviation (tolerance {TOLERANCE:g})"
        )
    return None


def _program(model: nn.Module, example: Tensor, *, dynamic_time: bool) -> ExportedProgram:
    # Dim.DYNAMIC raises where the model needs a constant; Dim.AUTO would silently make it one.
    axes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC} if dynamic_time else {0: Dim.DYNAMIC}
    program = torch.export.export(model, (example,), dynamic_shapes=(axes,))
    program.example_inputs = None  # the file would carry these clips: large, and someone's video
    for node in program.graph.nodes:  # source lines and paths of this machine: not for the file
        node.meta.pop("stack_trace", None)
    return program


def _read_back_opset(path: Path, *, asked: int) -> int:
    # Where the exporter cannot convert to the operator set asked for it writes another, with no
    # more than a log line.
    imports = onnx.load(path, load_external_data=False).opset_import
    found = next(entry.version for entry in imports if entry.domain in ("", "ai.onnx"))
    if found != asked:
        raise UsageError(
            f"ONNX operator set {asked} was asked for, but the exporter wrote {found}: "
            f"use opset {found} or {OPSET}"
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' warnings and log lines below ERROR; errors still surface."""
    previous = logging.root.manager.disable
    logging.disable(max(previous, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
