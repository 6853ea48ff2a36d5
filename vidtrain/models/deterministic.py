"""3-D max pools whose backward pass is deterministic on CUDA."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vidtrain.models.mend import FittedMaxPool


class SeparatePool(nn.Module):
    """Max pool over height and width first, then over time.

    The maximum of a window is the maximum of the maxima of its frames, so the output is that of
    `nn.MaxPool3d`, bit for bit. Where a window holds its maximum several times, the gradient may go
    to another of these places; to the same where the kernel covers one frame.

    PyTorch adds up gradients of 3-D max pools on CUDA in whatever order threads finish, those of
    2-D pools in a fixed one.

    Args:
        pool: Pool without returned indices, taken over with all its settings.
    """

    def __init__(self, pool: nn.MaxPool3d | FittedMaxPool) -> None:
        super().__init__()
        self.fitted = isinstance(pool, FittedMaxPool)
        self.kernel_size, self.stride = _triple(pool.kernel_size), _triple(pool.stride)
        self.padding = _triple(getattr(pool, "padding", 0))
        self.dilation = _triple(getattr(pool, "dilation", 1))
        self.ceil_mode = bool(getattr(pool, "ceil_mode", False))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to (B, C, T', H', W')."""
        batch, channels, frames, *_ = features.shape
        kernel: tuple[int, ...] = self.kernel_size
        if self.fitted:
            kernel = tuple(map(min, kernel, features.shape[2:]))
        # Contiguous: the kernel for channels_last input is another one.
        images = features.reshape(batch, channels * frames, *features.shape[3:]).contiguous()
        images = self._pool(images, kernel[1:], (1, 2))
        height, width = images.shape[2:]
        rows = images.reshape(batch, channels, frames, height * width)
        rows = self._pool(rows, (kernel[0], 1), (0, None))
        return rows.reshape(batch, channels, -1, height, width)

    def _pool(
        self, images: torch.Tensor, kernel: tuple[int, ...], axes: tuple[int | None, ...]
    ) -> torch.Tensor:
        """Pools the last two axes with the settings of two axes of the clip; None: untouched."""
        stride, padding, dilation = (
            tuple(neutral if axis is None else setting[axis] for axis in axes)
            for setting, neutral in ((self.stride, 1), (self.padding, 0), (self.dilation, 1))
        )
        if set(kernel) == set(stride) == {1}:
            return images
        return functional.max_pool2d(images, kernel, stride, padding, dilation, self.ceil_mode)


def separate_pools(net: nn.Module) -> list[str]:
    """Exchanges the 3-D max pools of a network in place; it keeps its state_dict keys.

    Returns:
        The paths of those exchanged. Pools that also return indices stay.
    """
    found = [
        path
        for path, part in net.named_modules(remove_duplicate=False)
        if isinstance(part, FittedMaxPool)
        or (isinstance(part, nn.MaxPool3d) and not part.return_indices)
    ]
    for path in found:
        owner, _, name = path.rpartition(".")
        pool: Any = net.get_submodule(path)
        if not isinstance(pool, SeparatePool):  # a part that stands at two places
            setattr(net.get_submodule(owner), name, SeparatePool(pool))
    return found


def _triple(size: Any) -> tuple[int, int, int]:
    return tuple(size) if isinstance(size, tuple | list) else (size, size, size)  # type: ignore[return-value]
