"""Memory of this process and of its machine, as Linux tells it."""

from collections.abc import Iterator
from pathlib import Path


def peak_rss() -> int:
    """Returns the most memory that this process has had resident, bytes; 0 where not told."""
    return _status("VmHWM")


def rss() -> int:
    """Returns the memory that this process has resident, bytes; 0 where not told."""
    return _status("VmRSS")


def available_memory() -> int:
    """Returns the bytes that this process may still take: of the machine and of its cgroups.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, memory.max and memory.stat; cgroup-v1/
    memory.rst for version 1.
    """
    text = Path("/proc/meminfo").read_text("ascii")
    free = next(int(line.split()[1]) * 1024 for line in text.splitlines()
                if line.startswith("MemAvailable:"))  # fmt: skip
    for folder, limit, used, cache in _cgroups():
        try:
            most = (folder / limit).read_text("ascii").strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text("ascii")) - int(stat.get(cache, 0))
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            free = min(free, int(most) - taken)
    return max(free, 0)


def _cgroups() -> Iterator[tuple[Path, str, str, str]]:
    """Yields the memory groups of this process, innermost first, and their files' names."""
    root = Path("/sys/fs/cgroup")
    two = ("memory.max", "memory.current", "inactive_file")
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in rows:
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield (folder, *(one if controllers else two))
            if folder == top:
                break


def _status(name: str) -> int:
    try:
        text = Path("/proc/self/status").read_text("ascii", errors="replace")
    except OSError:
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else 0
