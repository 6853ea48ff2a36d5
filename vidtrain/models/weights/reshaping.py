"""Tensors of a checkpoint fitted to a network's shapes: inflation, positions, 1x1x1 heads."""

import torch
from torch import nn
from torch.nn import functional

Fitted = tuple[torch.Tensor, str | None]
Size = tuple[int, int, int]
USUAL_SIDES = (14, 16)  # patches of 16 pixels in crops of 224 and 256


def reshaped(given: torch.Tensor, own: torch.Tensor, *, key: str, net: nn.Module) -> Fitted | None:
    """Returns a checkpoint's tensor in the shape of the network's, and how; None: it does not fit.

    - The same numbers in other axes of size 1 (a linear layer as a 1x1x1 convolution).
    - A 2-D kernel (O, I, H, W) for a 3-D one (O, I, T, H, W): repeated over T and divided by T.
    - Position embeddings (1, tokens, C) of another clip size: interpolated over their grid.
    - Relative positions (2 size - 1, C): interpolated along their axis.

    Args:
        given: Tensor of the checkpoint, on the CPU.
        own: The network's tensor of that name.
        key: The name.
        net: The network; `net.token_grid`, (T, H, W), tells the grid that positions belong to.

    Source: inflation as in Carreira & Zisserman, CVPR 2017, section 2.4 ("bootstrapping");
    interpolation as in Dosovitskiy et al., ICLR 2021, section 3.2.
    """
    if given.shape == own.shape:
        return given, None
    if [n for n in given.shape if n > 1] == [n for n in own.shape if n > 1]:
        return given.reshape(own.shape), None
    if own.ndim == 5 and given.ndim == 4 and own.shape[:2] + own.shape[3:] == given.shape:
        length = own.shape[2]
        inflated = given.unsqueeze(2).expand(own.shape) / length
        return inflated, f"inflated over {length} frames"
    if given.shape[-1] != own.shape[-1] or given.ndim != own.ndim:
        return None
    if "rel_pos" in key and given.ndim == 2:
        return _along(given, len(own)), f"{len(given)} relative positions to {len(own)}"
    if ("pos" in key or "time_embed" in key) and given.ndim == 3:
        return _positions(given, own, net)
    return None


def _along(table: torch.Tensor, length: int) -> torch.Tensor:
    """(N, C) -> (length, C), linearly."""
    columns = table.float().T[None]
    return functional.interpolate(columns, size=length, mode="linear")[0].T.to(table.dtype)


def _positions(given: torch.Tensor, own: torch.Tensor, net: nn.Module) -> Fitted | None:
    """(1, N, C) -> (1, M, C): over time, over a square, or over the joint grid of the network."""
    if given.shape[0] != 1 or own.shape[0] != 1:
        return None
    have, want = given.shape[1], own.shape[1]
    grid: tuple[int, int, int] | None = getattr(net, "token_grid", None)
    for extra in (0, 1):  # a class token goes first, and is kept
        grids = _grids(have - extra, want - extra, grid)
        if grids is None:
            continue
        source, target = grids
        special, places = given[:, :extra], given[:, extra:]
        volume = places.float().reshape(1, *source, -1).permute(0, 4, 1, 2, 3)
        resized = functional.interpolate(volume, size=target, mode="trilinear")
        flat = resized.flatten(2).transpose(1, 2).to(given.dtype)
        words = " to ".join("x".join(map(str, size)) for size in (source, target))
        return torch.cat([special, flat], 1), f"positions {words}"
    return None


def _grids(have: int, want: int, grid: Size | None) -> tuple[Size, Size] | None:
    """The grids (T, H, W) that two numbers of tokens stand for; None where that is open."""
    frames, height, width = grid or (0, 0, 0)
    if grid is not None and want == frames * height * width:
        sources = [(have // side**2, side, side) for side in USUAL_SIDES if have % side**2 == 0]
        if have % (height * width) == 0:  # another length of the clip
            sources.append((have // (height * width), height, width))
        if have % frames == 0 and (side := _root(have // frames)):  # another crop
            sources.append((frames, side, side))
        # Where several can be meant: what changes length or crop alone, and has a usual crop.
        sources.sort(key=lambda size: (size[1] not in USUAL_SIDES, size[0] != frames,
                                       size[1:] != (height, width)))  # fmt: skip
        return (sources[0], grid) if sources else None
    if grid is not None and want == frames:
        return (have, 1, 1), (want, 1, 1)
    source, target = _root(have), _root(want)
    return ((1, source, source), (1, target, target)) if source and target else None


def _root(number: int) -> int | None:
    side = round(max(0, number) ** 0.5)
    return side if side and side * side == number else None
