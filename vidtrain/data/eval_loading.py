"""From a list of videos to evaluation views: each frame decoded once, views cut on the device.

Groups of videos and windows of views are fixed, and whole groups are dealt to processes: each view
of each video is seen exactly once, in the same company, at any number of processes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vidtrain import randomness
from vidtrain.data import views, workers
from vidtrain.data.loading import Reading, Sampler
from vidtrain.data.reading import open_video
from vidtrain.data.slots import Reused, empty_uint8
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError

# Decoded frames that travel together at most. Longer videos come in several windows of views, so
# that memory does not grow with the length of a video.
WINDOW_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ViewWindow:
    """Some or all views of one video, as frames and a table of what to cut from them.

    Attributes:
        video: Index into the list of videos.
        first_view: Number of the first view here among all of the video.
        num_views: Views of the whole video.
        pixels: (U, h, w, 3) uint8 RGB, the frames of all views here, each once.
        positions: (V, T) int64, where each view's frames are in pixels.
        corners: (V, 2) int64, top and left of each view's crop.
        frames: (V, T) int64, source frame of each frame of each view.
    """

    video: int
    first_view: int
    num_views: int
    pixels: torch.Tensor
    positions: torch.Tensor
    corners: torch.Tensor
    frames: torch.Tensor

    def cut(self, pixels: torch.Tensor, first: int, last: int, out: torch.Tensor) -> None:
        """Writes views first to last (not included) into (n, T, size, size, 3) uint8.

        Args:
            pixels: This window's pixels, on the device that the views are wanted on.
            first: First view of this window.
            last: One after the last view.
            out: Where to, on the same device.
        """
        rows, size = self.positions[first:last].to(pixels.device), out.shape[2]
        for clip, row, (top, left) in zip(out, rows, self.corners[first:last].tolist(),
                                          strict=True):  # fmt: skip
            crop = pixels[:, top : top + size, left : left + size]
            torch.index_select(crop, 0, row, out=clip)

    def all_clips(self, size: int) -> torch.Tensor:
        """Returns all views of this window, (V, T, size, size, 3) uint8."""
        clips = torch.empty((*self.positions.shape, size, size, 3), dtype=torch.uint8)
        self.cut(self.pixels, 0, len(clips), clips)
        return clips


@dataclass(frozen=True)
class EvalViews:
    """Evaluation samples: the views of each video.

    Attributes:
        videos: The split to evaluate.
        sampler: Picks frame indices, one row per temporal view.
        crop_size: Side of the crop, pixels.
        short_side: Short side that crops are cut from, pixels.
        num_crops: 1 or 3 crops per temporal view.
        reading: How to read.
    """

    videos: VideoList
    sampler: Sampler
    crop_size: int
    short_side: int
    num_crops: int
    reading: Reading

    def windows(
        self, index: int, *, window_bytes: int = WINDOW_BYTES,
        empty: Callable[[tuple[int, ...]], torch.Tensor] = empty_uint8,
    ) -> Iterator[ViewWindow]:  # fmt: skip
        """Yields the views of one video, temporal views outermost, a window of them at a time.

        Args:
            index: Of the video.
            window_bytes: Most decoded bytes of a window; one temporal view is always whole.
            empty: Makes a uint8 tensor of a shape, to put the pixels in.

        Raises:
            InputError: The video cannot be read.
        """
        video, reading = self.videos.videos[index], self.reading
        with open_video(video, reading.decoder, reading.frame_folder_fps) as reader:
            rows = self._rows(index, reader.num_frames, reader.fps)
            part = views.eval_geometry(
                reader.height, reader.width, short_side=self.short_side,
                crop_size=self.crop_size, num_crops=self.num_crops,
            )  # fmt: skip
            step = max(1, window_bytes // (rows.shape[1] * part.height * part.width * 3))
            for first in range(0, len(rows), step):
                chosen = rows[first : first + step]
                union, positions = np.unique(chosen, return_inverse=True)
                pixels = empty((len(union), part.height, part.width, 3))
                reader.cut(union.tolist(), [part.box], [pixels.numpy()])
                crops = len(part.corners)
                positions = positions.reshape(chosen.shape)
                yield ViewWindow(
                    video=index, first_view=first * crops, num_views=len(rows) * crops,
                    pixels=pixels,
                    positions=torch.from_numpy(np.repeat(positions, crops, axis=0)),
                    corners=torch.from_numpy(np.tile(part.corners, (len(chosen), 1))),
                    frames=torch.from_numpy(np.repeat(chosen, crops, axis=0)),
                )  # fmt: skip

    def frames(self, index: int) -> np.ndarray:
        """Returns the (temporal views, T) frame indices of one video, without decoding it."""
        reading = self.reading
        with open_video(
            self.videos.videos[index], reading.decoder, reading.frame_folder_fps
        ) as reader:
            return self._rows(index, reader.num_frames, reader.fps)

    def clips(self, index: int) -> torch.Tensor:
        """Returns all views of one video, (V, T, S, S, 3) uint8."""
        return torch.cat([window.all_clips(self.crop_size) for window in self.windows(index)])

    def first_clip(self, index: int) -> torch.Tensor:
        """Returns the first view of one video, (1, T, S, S, 3) uint8."""
        return next(self.windows(index, window_bytes=1)).all_clips(self.crop_size)[:1]

    def _rows(self, index: int, num_frames: int, fps: float | None) -> np.ndarray:
        rng = randomness.generator(0, randomness.SAMPLE, index)
        return self.sampler(num_frames, fps, rng)


class _Groups(IterableDataset):
    """In a loader process: the windows of every n-th group, packed into items of one batch."""

    def __init__(
        self, views_of: EvalViews, groups: list[list[int]], batch_size: int,
        activity: workers.Activity, done: torch.Tensor,
    ) -> None:  # fmt: skip
        self.views, self.groups, self.batch_size = views_of, groups, batch_size
        self.activity, self.done = activity, done
        self.buffers: Reused | None = None  # made in the process that uses it

    def __iter__(self) -> Iterator[tuple[int, int, list[ViewWindow]] | InputError]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        if self.buffers is None:
            self.buffers = Reused(self.done[first : first + 1], shared=info is not None)
        for group in self.groups[first::step]:
            try:
                for windows in self._packed(group, self.buffers):
                    yield first, self.buffers.item, windows
            except InputError as error:
                # If raised, it would reach the main process wrapped in a worker's traceback.
                yield error
                return

    def _packed(self, group: list[int], buffers: Reused) -> Iterator[list[ViewWindow]]:
        item: list[ViewWindow] = []
        for index in group:
            self.activity.at(index)
            for window in self.views.windows(index, empty=partial(self._take, item, buffers)):
                item.append(window)
                full = sum(len(w.positions) for w in item) >= self.batch_size
                if full or sum(w.pixels.numel() for w in item) > WINDOW_BYTES // 2:
                    self.activity.at(-1)  # it may take long until the next item is asked for
                    yield item[:]
                    self.activity.at(index)
                    item.clear()
        self.activity.at(-1)
        if item:
            yield item

    @staticmethod
    def _take(item: list[ViewWindow], buffers: Reused, shape: tuple[int, ...]) -> torch.Tensor:
        if not item:
            buffers.begin()
        return buffers.take(shape)


class EvalLoader:
    """The views of a rank's share of the videos; may be passed over again and again."""

    def __init__(
        self, views_of: EvalViews, *, videos_per_group: int, batch_size: int, rank: int,
        world_size: int,
    ) -> None:  # fmt: skip
        """Plans the passes; loader processes start with the first and stay for the others.

        Args:
            views_of: What to evaluate.
            videos_per_group: Videos that are always evaluated together.
            batch_size: Views after which an item is full.
            rank: This process.
            world_size: Processes.
        """
        self.views = views_of
        count = len(views_of.videos.videos)
        groups = [
            list(range(first, min(first + videos_per_group, count)))
            for first in range(0, count, videos_per_group)
        ][rank::world_size]
        reading = views_of.reading
        processes = min(reading.num_workers, len(groups))
        self._activity = workers.Activity(processes)
        # Items that are done with, for each loader process; they learn from it what is free.
        self._done = torch.zeros(max(1, processes), dtype=torch.int64).share_memory_()
        dataset = _Groups(views_of, groups, batch_size, self._activity, self._done)
        under_way = processes * reading.prefetch_batches
        self._loader = workers.loader(
            dataset, reading, workers=processes, persistent=processes > 0,
            shared_bytes=self._most_bytes(math.ceil(batch_size / 2)) * under_way,
        )  # fmt: skip

    def _most_bytes(self, views_each: int) -> int:
        """What an item may well take; one of several windows is as large as WINDOW_BYTES."""
        size = views_each * self.views.short_side**2 * 3 * 8
        return min(size, WINDOW_BYTES)

    def __iter__(self) -> Iterator[list[ViewWindow]]:
        """Yields windows of views; each view of each video of this rank once.

        Their pixels are overwritten after the next item has been asked for.

        Raises:
            InputError: A video cannot be read, or a loader process fails; the message names it.
        """
        items = workers.guarded(
            lambda: iter(self._loader), self._activity, self.views.videos,
            self.views.reading.timeout_seconds,
        )  # fmt: skip
        for item in items:
            if isinstance(item, InputError):
                raise item
            process, number, windows = item
            yield windows
            self._done[process] = number + 1
