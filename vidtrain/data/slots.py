"""Batches, and the buffers that loader processes write them into, again and again."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from vidtrain.errors import InputError


@dataclass(frozen=True)
class ClipBatch:
    """Raw training clips and where they come from.

    With several views per decode, the first views of all videos come first, then the second ones:
    neighbours, which mixing pairs, are different videos.

    Attributes:
        clips: (B, T, S, S, 3) uint8 RGB; overwritten after the next batch has been asked for.
        labels: (B,) int64.
        flips: (B,) bool, which clips to mirror.
        videos: (B,) int64, index into the list of videos.
        frames: (B, T) int64, source frame of each frame of each clip.
        draws: (B,) int64, seed of each clip's augmentation.
        bad: Unreadable videos that others stand in for, by index, with what was wrong.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    flips: torch.Tensor
    videos: torch.Tensor
    frames: torch.Tensor
    draws: torch.Tensor
    bad: dict[int, str]


def as_batch(fields: dict[str, Any]) -> ClipBatch:
    """Returns the arrays of `TrainClips.batch` as tensors that share their memory."""
    bad = fields.pop("bad")
    return ClipBatch(**{name: torch.as_tensor(array) for name, array in fields.items()}, bad=bad)


class SlotPool:
    """A ring of equally large uint8 batch buffers in memory that all processes share.

    A loader process writes its clips straight into a slot and sends back the slot's number only.
    A slot is given out again when its batch has been released and, on CUDA, when the copy to the
    device that was under way then has finished.

    Attributes:
        buffers: (slots, size) uint8; `in_slot` has a batch's shape.
    """

    def __init__(self, count: int, size: int, *, shared: bool, pin: bool) -> None:
        """Makes the buffers.

        Args:
            count: Number of slots.
            size: Of one slot, bytes: that of the largest batch.
            shared: Whether other processes write into them.
            pin: Page-lock them, for fast copies to a GPU.

        Raises:
            InputError: The memory cannot be had.
        """
        try:
            self.buffers = empty_uint8((count, size), shared=shared)
        except RuntimeError as error:
            raise InputError(
                f"cannot get {count * size / 2**20:.0f} MiB of shared memory for batches "
                f"({str(error).splitlines()[0]}); use fewer data.num_workers or a smaller "
                "data.prefetch_batches, or give the container more with --shm-size"
            ) from error
        self._free: deque[tuple[int, torch.cuda.Event | None]] = deque(
            (slot, None) for slot in range(count)
        )
        self._pinned = pin and self._register()

    def take(self) -> int:
        """Returns a slot that nothing uses any more, the one that has been free the longest."""
        slot, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()
        return slot

    def give_back(self, slot: int) -> None:
        """Says that the batch in a slot has been used, or its copy to the device been started."""
        copied = None
        if self._pinned:
            copied = torch.cuda.Event()
            copied.record()
        self._free.append((slot, copied))

    def close(self) -> None:
        """Unlocks the pages; nothing may be copied from the buffers any more."""
        if self._pinned:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self.buffers.data_ptr())
            self._pinned = False

    def _register(self) -> bool:
        size = self.buffers.numel()
        status = torch.cuda.cudart().cudaHostRegister(self.buffers.data_ptr(), size, 0)
        if int(status):
            raise InputError(
                f"CUDA cannot page-lock {size / 2**20:.0f} MiB for batches (error {int(status)}); "
                "use fewer data.num_workers or a smaller data.prefetch_batches"
            )
        return True


def in_slot(buffers: torch.Tensor, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns the beginning of a slot as a batch of a shape."""
    return buffers[slot, : torch.Size(shape).numel()].view(shape)


class Reused:
    """Buffers of any size for the items that a loader process makes one after the other.

    Memory that is new each time costs as much as copying what goes there, so the buffers of an item
    are written again once the consumer has said that it is done with that item.
    """

    def __init__(self, done: torch.Tensor, *, shared: bool) -> None:
        """Begins with no buffers.

        Args:
            done: (1,) int64 that the consumer keeps at the number of items it is done with.
            shared: Whether the consumer is another process.
        """
        self._done, self._shared = done, shared
        # For each set of buffers the item that it was last used for.
        self._sets: list[tuple[int, list[torch.Tensor]]] = []
        self._buffers: list[torch.Tensor] = []
        self._taken = 0
        self.item = -1

    def begin(self) -> int:
        """Goes on to the next item, and returns its number."""
        done = int(self._done)
        self.item, self._taken = self.item + 1, 0
        free = next((n for n, (item, _) in enumerate(self._sets) if item < done), None)
        self._buffers = [] if free is None else self._sets.pop(free)[1]
        self._sets.append((self.item, self._buffers))
        return self.item

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Returns a uint8 tensor for the current item; what it holds is left over."""
        size = torch.Size(shape).numel()
        if self._taken == len(self._buffers):
            self._buffers.append(empty_uint8((size,), shared=self._shared))
        elif self._buffers[self._taken].numel() < size:
            self._buffers[self._taken] = empty_uint8((size,), shared=self._shared)
        self._taken += 1
        return self._buffers[self._taken - 1][:size].view(shape)


def empty_uint8(shape: tuple[int, ...], *, shared: bool = False) -> torch.Tensor:
    """Returns a uint8 tensor, in memory that can be sent to another process without a copy."""
    if not shared:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(torch.Size(shape).numel())
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
