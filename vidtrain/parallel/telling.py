"""What one process has to tell all others that they need not wait for."""

import time
from collections.abc import Callable

from vidtrain import distributed
from vidtrain.distributed import World


def flag(name: str, world: World) -> Callable[[bool], bool]:
    """Returns a function by which one process tells the others something, once and for all.

    It is called with whether this process says it, and returns whether one has, as far as is known:
    the others are asked once a second, so that it may be called often, and by each at its own pace.

    Args:
        name: Of what is told.
        world: This process among all, all of which must call.
    """
    notes = distributed.store(name, world, timeout_seconds=60)
    if notes is None:
        return bool
    known, looked = False, 0.0

    def tell(said: bool) -> bool:
        nonlocal known, looked
        if said and not known:
            notes.set("said", "1")
            known = True
        elif not known and time.monotonic() - looked > 1:
            known, looked = notes.check(["said"]), time.monotonic()
        return known

    return tell
