"""Does an exported model still compute what the trained one does? Measured, then judged."""

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidtrain.errors import InputError

TOLERANCE = 1e-3
"""Largest max_rel accepted for float32; the worst sound export measured so far was 5e-4."""

Runner = Callable[[Tensor], Tensor]
"""Clips (B, 3, T, H, W) float32 to logits (B, num_classes) float32, both on the CPU."""


@dataclass(frozen=True)
class Parity:
    """How far the exported model's logits are from the eager model's.

    Attributes:
        max_abs: Largest absolute difference of a logit.
        max_rel: max_abs over the standard deviation of all eager logits (0.001: a thousandth).
        top1_agreement: Share of clips with the same top-1 class, 0 to 1.
        num_clips: Clips compared, all batches together.
        shapes: Shape of each batch compared.
    """

    max_abs: float
    max_rel: float
    top1_agreement: float
    num_clips: int
    shapes: tuple[tuple[int, ...], ...]


def parity_batches(clips: Tensor, *, dynamic_time: bool) -> list[Tensor]:
    """Batches that a parity check should cover, cut from real clips.

    Args:
        clips: At least two normalised clips (B, 3, T, H, W) float32.
        dynamic_time: Whether the exported model claims to take any number of frames.

    Returns:
        The clips as one batch; the first alone; and, with `dynamic_time`, the first played
        forwards and then backwards, (1, 3, 2T, H, W).

    Raises:
        InputError: Fewer than two clips.
    """
    if len(clips) < 2:
        raise InputError(
            f"parity needs two clips or more to vary the batch size, but got {len(clips)}: "
            "give it more videos"
        )
    batches = [clips, clips[:1]]
    if dynamic_time:
        batches.append(twice_as_long(clips[:1]))
    return batches


def twice_as_long(clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) played forwards and then backwards: (B, 3, 2T, H, W)."""
    return torch.cat([clips, clips.flip(2)], dim=2)


def compare(eager: Runner, exported: Runner, batches: Iterable[Tensor]) -> Parity:
    """Runs both models over the same clips.

    Args:
        eager: The trained model, in eval mode, on the CPU.
        exported: The exported model, as a `load_*` function of `formats` returns it.
        batches: Clip batches (B, 3, T, H, W) float32, see `parity_batches`. Use real clips and a
            trained model: zero-initialised branches would hide their errors.

    Raises:
        InputError: The exported model fails on a batch or returns another shape; a logit is not
            finite; or all logits are equal, so that the comparison would prove nothing.
    """
    expected_logits, logits, shapes = [], [], []
    for batch in batches:
        shape = tuple(batch.shape)
        with torch.no_grad():
            expected = eager(batch).float()
        try:
            got = exported(batch).float()
        except Exception as error:
            raise InputError(
                f"the exported model fails on a clip batch of shape {shape}: {reason(error)}"
            ) from error
        if got.shape != expected.shape:
            raise InputError(
                f"the exported model returns shape {tuple(got.shape)} instead of "
                f"{tuple(expected.shape)} for a clip batch of shape {shape}"
            )
        expected_logits.append(expected)
        logits.append(got)
        shapes.append(shape)
    return _measure(torch.cat(expected_logits), torch.cat(logits), tuple(shapes))


def _measure(expected: Tensor, got: Tensor, shapes: tuple[tuple[int, ...], ...]) -> Parity:
    for name, values in (("trained", expected), ("exported", got)):
        if not values.isfinite().all():
            raise InputError(f"the {name} model returns logits that are not finite (NaN or inf)")
    spread = expected.std().item()
    if not spread > 0:
        raise InputError(
            "the trained model returns the same logit for every class and clip, so parity would "
            "prove nothing: export a trained checkpoint"
        )
    max_abs = (got - expected).abs().max().item()
    agreement = (got.argmax(1) == expected.argmax(1)).float().mean().item()
    return Parity(max_abs, max_abs / spread, agreement, len(expected), shapes)


def check(parity: Parity, tolerance: float = TOLERANCE) -> None:
    """Refuses an export whose logits differ too much.

    Args:
        parity: What `compare` measured.
        tolerance: Largest `max_rel` accepted.

    Raises:
        InputError: `max_rel` is above the tolerance.
    """
    if parity.max_rel <= tolerance:
        return
    raise InputError(
        f"the exported model disagrees with the trained one: logits differ by up to "
        f"{parity.max_abs:.3g}, which is {parity.max_rel:.3g} of their standard deviation "
        f"(tolerance {tolerance:g}), and top-1 agrees on {parity.top1_agreement:.1%} of "
        f"{parity.num_clips} clips; export to another format or with a fixed number of frames, "
        "or raise the tolerance if this difference is acceptable"
    )


def reason(error: BaseException) -> str:
    """Type and text, in one line of at most 300 characters, of the error that began a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
