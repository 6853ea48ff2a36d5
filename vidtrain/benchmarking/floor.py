"""The bare work that no exact reader can leave out: open, find, demultiplex and decode packets.

Nothing is converted, cut, copied or kept. It is written for itself, not out of the parts of the
reader that is measured against it.
"""

import numpy as np

from vidtrain.data.packets import PacketTable, packet_table
from vidtrain.data.video_file import open_video_file
from vidtrain.errors import InputError

STEPS = ("open", "demux", "decode")
# Frames that are decoded for nothing rather than seeking over them; a seek costs about as much.
SEEK_COST = 4


def walk(path: str, wanted: np.ndarray, step: str) -> int:
    """Does the work up to a step; returns the number of frames that came out of the decoder.

    Args:
        path: A file whose packet table can be trusted.
        wanted: Frame numbers, rising, each once.
        step: open: open and close the file; demux: also read the packets that are needed; decode:
            also decode them, but those that no wanted frame depends on.
    """
    table = packet_table(path)
    if not table.fast:
        raise InputError(f"{path} cannot be measured with: {table.slow_reason}")
    container, stream = open_video_file(path)
    decoded = 0
    with container:
        for start, last, needed in _runs(table, wanted) if step != "open" else ():
            container.seek(int(table.pts[start]), stream=stream)
            place = start
            for packet in container.demux(stream):
                if place == start and packet.pts != table.pts[start]:
                    raise InputError(f"{path} cannot be measured with: a seek misses its keyframe.")
                if step == "decode" and needed[place]:
                    decoded += len(packet.decode())
                if place == last:
                    break
                place += 1
            if step == "decode":
                decoded += len(stream.decode(None))
    return decoded


def _runs(table: PacketTable, wanted: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """First and last packet of each stretch to read, and which packets of it to decode."""
    shown = np.argsort(table.pts)
    packets = shown[wanted]
    keys = np.flatnonzero(table.keyframe)
    keys = keys[np.argsort(table.pts[keys])]
    starts = keys[np.searchsorted(table.pts[keys], table.pts[packets], side="right") - 1]
    needed = ~table.droppable
    needed[packets] = True
    runs: list[list[int]] = []
    for start, packet in zip(starts.tolist(), packets.tolist(), strict=True):
        if runs and needed[runs[-1][1] + 1 : start].sum() <= SEEK_COST:
            runs[-1][1] = max(runs[-1][1], packet)
        else:
            runs.append([start, packet])
    return [(start, last, needed) for start, last in runs]
