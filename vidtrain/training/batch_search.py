"""Two ways to look for the largest batch that fits: along a line, or by halving."""

import math
from collections.abc import Callable, Sequence

STRIDE = 8  # from one size that is run to the next: small ones tell little of large ones


def largest_on_line(
    sizes: Sequence[int], take: Callable[[int], float], memory: float, tried: dict[int, float]
) -> int:
    """Returns the largest size that takes no more than `memory`; 0 if none does.

    The two smallest are run; then the largest that a straight line through the last two allows, at
    most `STRIDE` times the last, as long as there is one that has not been run.

    Args:
        sizes: In rising order.
        take: Runs a size and returns what it takes.
        memory: What there is.
        tried: Gets what each size that was run takes.
    """
    for size in sizes[:2]:
        tried[size] = take(size)
        if tried[size] > memory:
            break
    while True:
        good = [size for size in sizes if tried.get(size, math.inf) <= memory]
        bad = [size for size in tried if tried[size] > memory]
        if len(good) < 2:
            return max(good, default=0)
        slope = max((tried[good[-1]] - tried[good[-2]]) / (good[-1] - good[-2]), 0.0)
        open_ones = [
            size for size in sizes
            if good[-1] < size < min(bad, default=math.inf)
            and tried[good[-1]] + slope * (size - good[-1]) <= memory
        ]  # fmt: skip
        if not open_ones:
            return good[-1]
        near = [size for size in open_ones if size <= STRIDE * good[-1]] or open_ones[:1]
        tried[near[-1]] = take(near[-1])


def largest_by_halving(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Returns the largest size that fits; 0 if none does. The very largest is tried first."""
    if fits(sizes[-1]):
        return sizes[-1]
    low, high = -1, len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else 0
