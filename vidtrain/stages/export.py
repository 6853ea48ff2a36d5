"""Export a run's model, and prove on real clips that the file computes what eager does."""

from pathlib import Path

import torch

from vidtrain import build, build_data, distributed
from vidtrain.config import ExportConfig
from vidtrain.data.augment import to_input
from vidtrain.errors import InputError, UsageError
from vidtrain.export.formats import FORMATS, replacing
from vidtrain.export.parity import check, compare, parity_batches
from vidtrain.export.sidecar import Preprocessing, write_sidecar
from vidtrain.export.weights import write_weights
from vidtrain.records import runlog
from vidtrain.running.finished import Finished, open_run


def export(config: ExportConfig) -> None:
    """Writes the model file and, beside it, a JSON with labels, preprocessing and parity.

    Raises:
        UsageError: Unknown format.
        InputError: The run or a video cannot be read, or the difference from eager is above
            `tolerance`: then no file is left behind.
    """
    if config.format == "safetensors":
        return export_weights(config)
    if config.format not in FORMATS:
        known = ", ".join((*FORMATS, "safetensors"))
        raise UsageError(f"format={config.format!r} is unknown; use one of {known}")
    if config.device not in ("auto", "cpu"):
        raise UsageError(f"device={config.device!r}: models are exported on the CPU; leave it out")
    chosen = FORMATS[config.format]
    with distributed.session("cpu", num_threads=config.num_threads) as world:
        if not world.is_main:
            return
        run = open_run(config, world)
        clips = real_clips(config, run)
        path = Path(config.output or run.folder / "export" / f"model{chosen.suffix}")
        runlog.console.print(
            f"exporting {config.model.name} from {run.checkpoint} to {config.format}", markup=False
        )
        with replacing(path) as temporary:
            exported = chosen.write(run.model, clips[:2], temporary, dynamic_time=True)
            batches = parity_batches(clips, dynamic_time="time" in exported.dynamic_axes)
            parity = compare(run.model, chosen.load(temporary), batches)
            check(parity, config.tolerance)
        inputs = config.model.input
        preprocessing = Preprocessing(
            num_frames=inputs.num_frames,
            sampling_rate=inputs.sampling_rate,
            target_fps=inputs.target_fps,
            short_side=inputs.eval_short_side,
            crop_size=inputs.eval_crop_size,
            mean=inputs.mean,
            std=inputs.std,
            clip_sampler=config.clip_sampler.eval["_target_"].rpartition(".")[2],
        )
        sidecar = write_sidecar(
            path, exported=exported, parity=parity, preprocessing=preprocessing,
            class_names=run.class_names, run=run.folder.name, checkpoint=Path(run.checkpoint).name,
            activation="sigmoid" if build.task_class(config.task).multi_label else "softmax",
            tolerance=config.tolerance,
        )  # fmt: skip
    if exported.note:
        print(exported.note)
    print(
        f"parity with eager over {parity.num_clips} real clips: max abs logit difference "
        f"{parity.max_abs:.2e}, relative {parity.max_rel:.2e} (tolerance {config.tolerance:.0e}), "
        f"top-1 agreement {parity.top1_agreement:.0%}\n"
        f"written {path} ({path.stat().st_size / 1e6:.1f} MB, free axes: "
        f"{', '.join(exported.dynamic_axes)}) and {sidecar.name}"
    )


def export_weights(config: ExportConfig) -> None:
    """Writes the weights alone: whole, also where each process had a part of them in training."""
    with distributed.session("cpu", num_threads=config.num_threads) as world:
        if not world.is_main:
            return
        run = open_run(config, world)
        path = Path(config.output or run.folder / "export" / "model.safetensors")
        about = {"run": run.folder.name, "step": run.step, "model": config.model.build,
                 "class_names": list(run.class_names)}  # fmt: skip
        with replacing(path) as temporary:
            count = write_weights(run.model, temporary, about=about)
    print(
        f"written {path} ({path.stat().st_size / 1e6:.1f} MB, {count} tensors) from "
        f"{run.checkpoint}; model.weights={path} starts a training from it"
    )


def real_clips(config: ExportConfig, run: Finished) -> torch.Tensor:
    """Returns one normalised clip each of the first validation videos, (B, 3, T, H, W) float32."""
    if config.num_videos < 2:
        raise UsageError(f"num_videos={config.num_videos} must be at least 2")
    listed = build_data.videos(config.data, "val", class_names=run.class_names)
    views = build_data.eval_views(config, config.eval, listed, torch.device("cpu"))
    inputs = config.model.input
    clips = []
    for index in range(min(config.num_videos, len(listed.videos))):
        clips.append(to_input(views.first_clip(index), mean=inputs.mean, std=inputs.std))
    if len(clips) < 2:
        raise InputError(
            f"data.val={config.data.val!r} has one video; two are needed to prove parity at two "
            "batch sizes"
        )
    return torch.cat(clips)
