"""One pass over a split: used by validation while training and by the eval stage alike."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from vidtrain import distributed
from vidtrain.data.eval_loading import EvalLoader, ViewWindow
from vidtrain.data.video import Video
from vidtrain.distributed import World
from vidtrain.tasks.scores import Scores
from vidtrain.training.precision import Precision

# Raw clips (B, T, S, S, 3) uint8 on the device to what the model takes.
ToInput = Callable[[torch.Tensor], torch.Tensor]


class BrokenOff(Exception):
    """A signal came during an evaluation, which has no result; raised on all processes alike."""


def evaluate(
    model: nn.Module,
    loader: EvalLoader,
    *,
    batch_size: int,
    to_input: ToInput,
    precision: Precision,
    world: World,
    advance: Callable[[int], None] = lambda videos: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Scores]:
    """Runs the model over every view of every video, once.

    Args:
        model: The plain network, not wrapped for DDP: shards may differ in length.
        loader: What to evaluate.
        batch_size: Views per forward pass.
        to_input: Turns raw clips into model input.
        precision: Arithmetic.
        world: This process among all.
        advance: Called with the number of videos finished, for a progress bar.
        stop: Asked after each batch whether to break off.

    Returns:
        On rank 0 the scores of all videos in the order of the list; [] on other ranks.

    Raises:
        BrokenOff: A process was asked to stop.
    """
    mode, stopped = model.training, stop()
    model.eval()
    found: dict[tuple[int, int], torch.Tensor] = {}
    left: dict[int, int] = {}
    with torch.inference_mode():
        buffer: torch.Tensor | None = None
        for item in () if stopped else loader:
            world.place.note(f"evaluation, after {len(found)} windows of views")
            if buffer is None:
                buffer = clip_buffer(item, loader.views.crop_size, batch_size, world.device)
            for part, first, clips in cut_on_device(item, buffer):
                with precision.autocast():
                    logits = model(to_input(clips)).float().cpu()
                for window, start, rows in split(logits, part, first):
                    found[window.video, window.first_view + start] = rows
                    left[window.video] = left.get(window.video, window.num_views) - len(rows)
                    advance(int(left[window.video] == 0))
            if stopped := stop():
                break
    model.train(mode)
    if distributed.any_true(stopped, world):
        raise BrokenOff
    shards = distributed.gather(found, world)
    return in_order(shards, loader.views.videos.videos) if world.is_main else []


def in_order(
    shards: list[dict[tuple[int, int], torch.Tensor]], videos: Sequence[Video]
) -> list[Scores]:
    """Returns the scores of all videos, each view of which must be there once.

    Args:
        shards: For each process, by video and first view, (views, classes) logits.
        videos: The list that was evaluated.
    """
    merged = sorted(((key, rows) for shard in shards for key, rows in shard.items()),
                    key=lambda pair: pair[0])  # fmt: skip
    views: dict[int, list[torch.Tensor]] = {}
    for (video, first), rows in merged:
        seen = views.setdefault(video, [])
        assert first == sum(len(r) for r in seen), "a view lost or twice"
        seen.append(rows)
    assert sorted(views) == list(range(len(videos))), "a video lost"
    return [
        Scores(id=videos[index].id, labels=videos[index].all_labels,
               views=torch.cat(views[index]).numpy())
        for index in range(len(videos))
    ]  # fmt: skip


def clip_buffer(
    item: list[ViewWindow], size: int, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Returns room for a batch of views of the items' length, uint8 on the device."""
    shape = (batch_size, item[0].positions.shape[1], size, size, 3)
    return torch.empty(shape, dtype=torch.uint8, device=device)


def cut_on_device(
    item: list[ViewWindow], buffer: torch.Tensor
) -> Iterator[tuple[list[ViewWindow], int, torch.Tensor]]:
    """Yields an item's views in batches: its windows, the place of the first view, and the clips.

    Args:
        item: Windows of one or more videos.
        buffer: (batch size, T, size, size, 3) uint8 on the device, which every batch is written to:
            memory that is new each time comes in pieces that are never quite used again.

    Yields:
        Clips are the buffer's first ones; places count the views of all windows of the item.
    """
    pixels = [window.pixels.to(buffer.device, non_blocking=True) for window in item]
    total = sum(len(window.positions) for window in item)
    for first in range(0, total, len(buffer)):
        filled, start = 0, 0
        for window, on_device in zip(item, pixels, strict=True):
            a, b = max(first - start, 0), min(first + len(buffer) - start, len(window.positions))
            if a < b:
                window.cut(on_device, a, b, buffer[filled : filled + b - a])
                filled += b - a
            start += len(window.positions)
        yield item, first, buffer[:filled]


def split(
    logits: torch.Tensor, item: list[ViewWindow], first: int
) -> Iterator[tuple[ViewWindow, int, torch.Tensor]]:
    """Yields the rows of a batch by window, with the place of the first row in its window."""
    start, last = 0, first + len(logits)
    for window in item:
        a, b = max(first, start), min(last, start + len(window.positions))
        if a < b:
            yield window, a - start, logits[a - first : b - first]
        start += len(window.positions)
