"""A video of three hours: every view of it, in bounded memory."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
from conftest import noise, write_video

from vidtrain.data.clip_samplers import UniformClips
from vidtrain.data.eval_loading import EvalLoader, EvalViews
from vidtrain.data.loading import Reading
from vidtrain.data.packets import packet_table
from vidtrain.data.reading import open_video
from vidtrain.data.video import Video, VideoList
from vidtrain.running.evaluation import clip_buffer, cut_on_device


def repeat(short: Path, long: Path, times: int) -> None:
    """Copies the packets of a video again and again, each time later."""
    with av.open(str(short)) as source, av.open(str(long), "w") as target:
        video = source.streams.video[0]
        stream = target.add_stream_from_template(video)
        packets = [
            (bytes(p), p.pts, p.dts, p.duration, p.is_keyframe)
            for p in source.demux(video) if p.size
        ]  # fmt: skip
        assert video.time_base is not None
        length = round(Fraction(len(packets), 25) / video.time_base)
        for turn in range(times):
            for data, pts, dts, duration, key in packets:
                assert pts is not None and dts is not None
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, video.time_base
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.duration, packet.is_keyframe = duration, key
                target.mux(packet)


def all_views(path: Path, *, workers: int) -> EvalViews:
    listed = VideoList((Video(str(path), 0, path.name),), ("one", "two"))
    return EvalViews(
        videos=listed, sampler=UniformClips(32, 2), crop_size=224, short_side=256, num_crops=1,
        reading=Reading(num_workers=workers),
    )  # fmt: skip


@pytest.mark.slow
def test_three_hours_are_evaluated_in_bounded_memory(tmp_path: Path) -> None:
    short, long = tmp_path / "short.mp4", tmp_path / "long.mp4"
    write_video(short, noise(0, 100, 250))
    repeat(short, long, 1080)
    table = packet_table(str(long))
    assert table.fast and len(table.pts) == 270_000

    # In a process of its own, which no other test has filled.
    code = f"import test_long_video; test_long_video.look_at_all_views({str(long)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=True
    )
    seen, most = map(int, done.stdout.split())
    assert seen == -(-270_000 // 64)
    assert most < 1.5 * 2**30, f"{most / 2**30:.2f} GiB"


def look_at_all_views(path: str) -> None:
    """Prints how many views were cut, and the most memory that all processes had, in bytes."""
    loader = EvalLoader(
        all_views(Path(path), workers=1), videos_per_group=1, batch_size=8, rank=0, world_size=1
    )
    process, most, seen = psutil.Process(), 0, 0
    buffer: torch.Tensor | None = None
    for item in loader:
        buffer = clip_buffer(item, 224, 8, torch.device("cpu")) if buffer is None else buffer
        for _, _, clips in cut_on_device(item, buffer):
            seen += len(clips)
        children = sum(c.memory_info().rss - c.memory_info().shared
                       for c in process.children(recursive=True))  # fmt: skip
        most = max(most, process.memory_info().rss + children)
    print(seen, most)


def test_windows_of_a_file_without_a_packet_table_go_on_where_the_last_ended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 40, "yuv420p"
        for frame in noise(1, 100, 300):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    with open_video(Video(str(path), 0, "old")) as reader:
        whole = reader.read(range(300))
        again = np.concatenate([reader.read(range(i, i + 30)) for i in range(0, 300, 30)])
        backwards = np.concatenate([reader.read([i]) for i in (200, 10, 11, 5)])
    assert np.array_equal(whole, again)
    assert np.array_equal(backwards, whole[[200, 10, 11, 5]])
    views = all_views(path, workers=0)
    small = list(views.windows(0, window_bytes=1))
    cuts = [window.all_clips(224) for window in small]
    assert len(small) > 3 and torch.equal(torch.cat(cuts), views.clips(0))
