"""One pass over a split: used by validation while training and by the eval stage alike."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from vidtrain import distributed
from vidtrain.data.eval_loading import EvalLoader, ViewWindow
from vidtrain.distributed import World
from vidtrain.tasks.classification import Scores
from vidtrain.training.precision import Precision

# Raw clips (B, T, S, S, 3) uint8 on the device to what the model takes.
ToInput = Callable[[torch.Tensor], torch.Tensor]


def evaluate(
    model: nn.Module,
    loader: EvalLoader,
    *,
    batch_size: int,
    to_input: ToInput,
    precision: Precision,
    world: World,
    advance: Callable[[int], None] = lambda videos: None,
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

    Returns:
        On rank 0 the scores of all videos in the order of the list; [] on other ranks.
    """
    mode = model.training
    model.eval()
    found: dict[tuple[int, int], torch.Tensor] = {}
    left: dict[int, int] = {}
    with torch.inference_mode():
        for item in loader:
            for part, first, clips in cut_on_device(item, loader.views.crop_size, batch_size,
                                                    world.device):  # fmt: skip
                with precision.autocast():
                    logits = model(to_input(clips)).float().cpu()
                for window, start, rows in split(logits, part, first):
                    found[window.video, window.first_view + start] = rows
                    left[window.video] = left.get(window.video, window.num_views) - len(rows)
                    advance(int(left[window.video] == 0))
    model.train(mode)
    shards = distributed.gather(found, world)
    if not world.is_main:
        return []
    merged = sorted(((key, rows) for shard in shards for key, rows in shard.items()),
                    key=lambda pair: pair[0])  # fmt: skip
    views: dict[int, list[torch.Tensor]] = {}
    for (video, first), rows in merged:
        seen = views.setdefault(video, [])
        assert first == sum(len(r) for r in seen), "a view lost or twice"
        seen.append(rows)
    videos = loader.views.videos.videos
    assert sorted(views) == list(range(len(videos))), "a video lost"
    return [
        Scores(id=videos[index].id, label=videos[index].label,
               views=torch.cat(views[index]).numpy())
        for index in range(len(videos))
    ]  # fmt: skip


def cut_on_device(
    item: list[ViewWindow], size: int, batch_size: int, device: torch.device
) -> Iterator[tuple[list[ViewWindow], int, torch.Tensor]]:
    """Yields an item's views in batches: its windows, the place of the first view, and the clips.

    Clips are (n, T, size, size, 3) uint8 on the device, n <= batch_size; places count the views of
    all windows of the item.
    """
    pixels = [window.pixels.to(device, non_blocking=True) for window in item]
    total = sum(len(window.positions) for window in item)
    for first in range(0, total, batch_size):
        cuts, start = [], 0
        for window, on_device in zip(item, pixels, strict=True):
            a, b = max(first - start, 0), min(first + batch_size - start, len(window.positions))
            if a < b:
                cuts.append(window.cut(on_device, a, b, size))
            start += len(window.positions)
        yield item, first, cuts[0] if len(cuts) == 1 else torch.cat(cuts)


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
