"""Batch buffers that loader processes write into and that are used again and again."""

from collections import deque

import torch

from vidtrain.errors import InputError


class SlotPool:
    """A ring of equal uint8 batch buffers in memory that all processes share.

    A loader process writes its clips straight into a slot and sends back the slot's number only.
    A slot is given out again when its batch has been released and, on CUDA, when the copy to the
    device that was under way then has finished.

    Attributes:
        buffers: (slots, *shape) uint8.
    """

    def __init__(self, count: int, shape: tuple[int, ...], *, shared: bool, pin: bool) -> None:
        """Makes the buffers.

        Args:
            count: Number of slots.
            shape: Of one slot.
            shared: Whether other processes write into them.
            pin: Page-lock them, for fast copies to a GPU.

        Raises:
            InputError: The memory cannot be had.
        """
        try:
            self.buffers = empty_uint8((count, *shape), shared=shared)
        except RuntimeError as error:
            size = count * torch.Size(shape).numel() / 2**20
            raise InputError(
                f"cannot get {size:.0f} MiB of shared memory for batches "
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
