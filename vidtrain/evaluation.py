"""One pass over a split: used by validation while training and by the eval stage alike."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from vidtrain import distributed
from vidtrain.data.loading import ClipBatch, EvalViews, eval_batches
from vidtrain.distributed import World
from vidtrain.tasks.classification import Scores
from vidtrain.training.precision import Precision

ToInput = Callable[[ClipBatch], torch.Tensor]


def evaluate(
    model: nn.Module,
    views: EvalViews,
    *,
    views_per_video: int,
    batch_size: int,
    to_input: ToInput,
    precision: Precision,
    world: World,
    advance: Callable[[int], None] = lambda videos: None,
) -> list[Scores]:
    """Runs the model over every view of every video, once.

    Args:
        model: The plain network, not wrapped for DDP: shards may differ in length.
        views: What to evaluate.
        views_per_video: Views that a video has at least; sets how many videos share a batch.
        batch_size: Views per forward pass.
        to_input: Turns a raw batch into model input on the device.
        precision: Arithmetic.
        world: This process among all.
        advance: Called with the number of videos finished, for a progress bar.

    Returns:
        On rank 0 the scores of all videos in the order of the list; [] on other ranks.
    """
    mode = model.training
    model.eval()
    found: dict[int, torch.Tensor] = {}
    batches = eval_batches(
        views,
        videos_per_batch=max(1, batch_size // views_per_video),
        rank=world.rank,
        world_size=world.size,
    )
    with torch.inference_mode():
        for batch in batches:
            logits = torch.cat([_forward(model, part, to_input, precision)
                                for part in _parts(batch, batch_size)])  # fmt: skip
            for index in batch.videos.unique().tolist():
                found[index] = logits[batch.videos == index]
            advance(len(batch.videos.unique()))
    model.train(mode)
    shards = distributed.gather(found, world)
    if not world.is_main:
        return []
    merged = [(index, rows) for shard in shards for index, rows in shard.items()]
    videos = views.videos.videos
    assert sorted(index for index, _ in merged) == list(range(len(videos))), "a video lost or twice"
    return [
        Scores(id=videos[index].id, label=videos[index].label, views=rows.numpy())
        for index, rows in sorted(merged, key=lambda pair: pair[0])
    ]


def _forward(
    model: nn.Module, batch: ClipBatch, to_input: ToInput, precision: Precision
) -> torch.Tensor:
    with precision.autocast():
        return model(to_input(batch)).float().cpu()


def _parts(batch: ClipBatch, size: int) -> Iterator[ClipBatch]:
    for start in range(0, len(batch.clips), size):
        rows = slice(start, start + size)
        yield ClipBatch(
            batch.clips[rows], batch.labels[rows], batch.flips[rows], batch.videos[rows],
            batch.frames[rows],
        )  # fmt: skip
