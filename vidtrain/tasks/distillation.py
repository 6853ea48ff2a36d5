"""Distillation: a student learns from labels and from what a frozen teacher says of its clips."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from vidtrain.errors import UsageError
from vidtrain.models import anatomy
from vidtrain.tasks import classification, losses


@dataclass(frozen=True)
class Teacher:
    """A frozen network, and how the student's clips become its own.

    Attributes:
        network: In eval mode, without gradients, on the student's device.
        autocast: Makes the context of one forward pass.
        num_frames: Frames of its clips.
        crop_size: Height and width of its clips, pixels.
        gain: Factor on the student's normalised clips by channel, ...
        offset: ... and what is added, for the teacher's own mean and standard deviation.
        order: The teacher's class for each of the data's; None: they are in the same order.
        record: What must be the same when a run goes on: digest of the weights, network, input.
    """

    network: nn.Module
    autocast: Callable[[], AbstractContextManager]
    num_frames: int
    crop_size: int
    gain: tuple[float, ...]
    offset: tuple[float, ...]
    order: tuple[int, ...] | None
    record: dict[str, Any]

    def clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Returns the student's clips (B, 3, T, H, W) in the teacher's size and normalisation.

        Frames are evenly picked, the first and the last among them; each is scaled bilinearly, with
        antialiasing.
        """
        count, channels, frames, height, width = clips.shape
        if frames != self.num_frames:
            picked = torch.linspace(0, frames - 1, self.num_frames).round().long()
            clips = clips[:, :, picked.to(clips.device)]
        if (height, width) != (self.crop_size, self.crop_size):
            images = clips.transpose(1, 2).flatten(0, 1)
            images = functional.interpolate(
                images, (self.crop_size, self.crop_size), mode="bilinear", antialias=True
            )
            clips = images.unflatten(0, (count, self.num_frames)).transpose(1, 2)
        if (self.gain, self.offset) != ((1.0,) * channels, (0.0,) * channels):
            shape = (channels, 1, 1, 1)
            gain = torch.tensor(self.gain, device=clips.device).view(shape)
            clips = clips * gain + torch.tensor(self.offset, device=clips.device).view(shape)
        return clips.contiguous()


@dataclass(frozen=True)
class Distillation:
    """Single-label classification, with the classes that a teacher sees as a second target.

    The loss is (1 - weight) x cross-entropy + weight x `losses.distilled`, and similarity x
    `losses.similarity` besides. Evaluation needs no teacher.

    Attributes:
        num_classes: Number of classes.
        class_counts: Training videos of each class; None: not known.
        teacher: Run folder of the teacher, or the folder of one of its checkpoints; None: the
            config's own `teacher` is the model.
        temperature: What logits are divided by before the softmax, above 0.
        weight: Share of the teacher's part in the loss, in [0, 1].
        label_smoothing: Of the labels' targets; see `classification.Classification`.
        class_weights: Of the labels' part; see `classification.Classification`.
        similarity: Factor on the loss of features; 0: none.
        student_layer: Module of the student whose output is compared; None: its last layer.
        teacher_layer: Module of the teacher; None: its last layer.
        taught_by: The teacher itself, while training; not from config.

    Source: Hinton et al., 2015; Tung and Mori, ICCV 2019; Beyer et al., Knowledge distillation: a
    good teacher is patient and consistent, CVPR 2022 (the teacher sees the student's own clip,
    augmented and mixed).
    """

    metric: ClassVar[str] = "top1"
    multi_label: ClassVar[bool] = False

    video_loss = staticmethod(classification.video_loss)
    figures = staticmethod(classification.figures)
    prediction = staticmethod(classification.prediction)
    summary = staticmethod(classification.summary)
    describe = staticmethod(classification.describe)

    num_classes: int
    class_counts: tuple[int, ...] | None = None
    teacher: str | None = None
    temperature: float = 4.0
    weight: float = 0.9
    label_smoothing: float = 0.0
    class_weights: str | list[float] | None = None
    similarity: float = 0.0
    student_layer: str | int | None = None
    teacher_layer: str | int | None = None
    taught_by: Teacher | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range."""
        classification.check_smoothing(self.label_smoothing)
        losses.check_weights(self.class_weights, self.num_classes)
        if not self.temperature > 0:
            raise UsageError(f"task.temperature={self.temperature} must be above 0")
        if not 0 <= self.weight <= 1:
            raise UsageError(f"task.weight={self.weight} must lie in [0, 1]")
        if not self.similarity >= 0:
            raise UsageError(f"task.similarity={self.similarity} must be >= 0")
        if self.weight == self.similarity == 0:
            raise UsageError(
                "task.weight=0 and task.similarity=0 leave the teacher out; use task=classification"
            )

    def with_teacher(self, teacher: Teacher) -> "Distillation":
        """Returns the task with its teacher."""
        return dataclasses.replace(self, taught_by=teacher)

    @property
    def metrics(self) -> tuple[str, ...]:
        """See Classification."""
        return classification.metrics(self.num_classes)

    def record(self) -> dict[str, Any]:
        """Returns what must be the same when a run goes on, besides config and data."""
        return {} if self.taught_by is None else {"teacher": self.taught_by.record}

    def targets(self, labels: Sequence[tuple[int, ...]], device: torch.device) -> torch.Tensor:
        """Returns (B, classes) float32 targets; each row sums to 1."""
        first = torch.tensor([of_video[0] for of_video in labels]).to(device, non_blocking=True)
        return classification.soft_targets(first, self.num_classes, self.label_smoothing)

    def loss(self, network: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of a batch, a float32 scalar.

        Args:
            network: The student, which returns logits (B, classes).
            clips: (B, 3, T, H, W) float.
            targets: (B, classes) float, rows sum to 1.
        """
        teacher = self.taught_by
        assert teacher is not None, "with_teacher comes first"
        features = self.similarity > 0
        network_of_teacher, layer = teacher.network, self.teacher_layer
        with (
            torch.no_grad(),
            teacher.autocast(),
            captured(network_of_teacher, layer, "teacher", on=features) as theirs,
        ):
            wanted = network_of_teacher(teacher.clips(clips)).float()
        if teacher.order is not None:
            wanted = wanted[:, list(teacher.order)]
        with captured(network, self.student_layer, "student", on=features) as own:
            logits = network(clips)
        weights = losses.class_weights(self.class_weights, self.class_counts, targets.device)
        loss = (1.0 - self.weight) * losses.cross_entropy(logits, targets, weights)
        loss = loss + self.weight * losses.distilled(logits, wanted, self.temperature)
        if features:
            pair = (joined(found, len(clips)) for found in (own, theirs))
            loss = loss + self.similarity * losses.similarity(*pair)
        return loss


@contextmanager
def captured(
    network: nn.Module, layer: str | int | None, whose: str, *, on: bool
) -> Iterator[list[torch.Tensor]]:
    """Collects what a layer puts out in the forward passes inside.

    Args:
        network: Plain, or wrapped for DDP.
        layer: Path of a module; None: the blocks of the last layer below the classifier.
        whose: student or teacher, for messages.
        on: False: nothing is collected.

    Raises:
        UsageError: The network has no such module, or it puts out no tensor.
    """
    found: list[torch.Tensor] = []
    if not on:
        yield found
        return
    plain = network.module if isinstance(network, DistributedDataParallel) else network
    handles = []
    for path in paths_of(plain, layer, whose):

        def take(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
            parts = output if isinstance(output, list | tuple) else [output]
            tensors = [part for part in parts if isinstance(part, torch.Tensor)]
            if not tensors:
                raise UsageError(
                    f"task.{whose}_layer={path} puts out {type(output).__name__}, no tensor; "
                    "name another module"
                )
            found.extend(tensors)

        handles.append(plain.get_submodule(path).register_forward_hook(take))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def paths_of(network: nn.Module, layer: str | int | None, whose: str) -> tuple[str, ...]:
    """Returns the modules whose output is compared.

    Raises:
        UsageError: The network has no such module.
    """
    layers = anatomy.layers(network)
    if layer is None:
        last = layers[-2] if len(layers) > 1 else layers[-1]
        return last.blocks or (last.name,)
    try:
        network.get_submodule(str(layer))  # of an nn.Sequential, numbers are names
    except AttributeError:
        raise UsageError(
            f"task.{whose}_layer={layer} is no module of the {whose}; its layers are "
            f"{', '.join(known.name for known in layers[:-1])}"
        ) from None
    return (str(layer),)


def joined(features: list[torch.Tensor], count: int) -> torch.Tensor:
    """Returns features of one or several pathways as (count, numbers), a row for each clip.

    A network that scores frames one by one, as TSN, has the frames of a clip in successive rows.

    Raises:
        UsageError: They are not those of so many clips.
    """
    wrong = next((part for part in features if not part.ndim or len(part) % count), None)
    if wrong is not None:
        raise UsageError(
            f"task.similarity compares clips, and a layer puts out {tuple(wrong.shape)} for "
            f"{count} of them; name other layers with task.student_layer and task.teacher_layer"
        )
    return torch.cat([part.reshape(count, -1).float() for part in features], dim=1)
