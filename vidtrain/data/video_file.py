"""Opening a local video file, or one member of a tar file, and nothing else."""

import hashlib
import os
import stat

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vidtrain.data.video import split_member
from vidtrain.errors import InputError

# Every level but None makes FFmpeg's threads call Python, which can deadlock (they wait for the
# interpreter lock while its holder waits for them), even where the level silences everything.
av.logging.set_level(None)

# The containers that may be opened. A playlist or a concatenation script is a "container" too and
# would make FFmpeg read other files or addresses; none of those is here, whatever a file is called.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,rm,nut,ivf,mxf,h264,hevc"
BLOCK = 2**20  # bytes read at a time


def file_key(path: str) -> tuple[str, int, int]:
    """Path, size in bytes and time of change in ns of a local regular file: what a cache goes by.

    Of a tar member the size is its own, the time of change that of the tar file.

    Raises:
        InputError: Nothing there, not a regular file, empty, or a member outside its tar file.
    """
    if "://" in path:
        raise InputError(f"'{path}' is an address, not a local file; download the video first.")
    member = split_member(path)
    file = member[0] if member else path
    try:
        status = os.stat(file)
    except OSError as error:
        raise InputError(f"Cannot read the video {path}: {error.strerror}.") from None
    # Checked before opening: opening a pipe waits for a writer, for ever if there is none.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise InputError(f"{file} is {kind}, not a video file.")
    size = member[2] if member else status.st_size
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or download it again.")
    if member and member[1] + size > status.st_size:
        raise InputError(
            f"{path} lies outside its tar file, which has {status.st_size} bytes; copy the tar "
            "file again, or make its list anew."
        )
    return path, size, status.st_mtime_ns


def file_sum(path: str) -> str:
    """SHA-256 of a file or tar member, in hexadecimal."""
    name, offset, left = split_member(path) or (path, 0, os.path.getsize(path))
    found = hashlib.sha256()
    with open(name, "rb") as file:
        file.seek(offset)
        while left > 0 and (block := file.read(min(BLOCK, left))):
            found.update(block)
            left -= len(block)
    return found.hexdigest()


def open_video_file(path: str, *, strict: bool = False) -> tuple[InputContainer, VideoStream]:
    """Opens a local video file or tar member without threads. The caller closes the container.

    Args:
        path: The file.
        strict: Let the decoder fail where it would paint over damage and say so in its log only.
            Not for files that begin in the middle of a group of pictures.

    Raises:
        InputError: Not a local regular file, not a video container, or no video stream in it.
    """
    file_key(path)
    # "file:" keeps FFmpeg from reading a protocol into the name (concat:a.mp4|b.mp4).
    url, protocols = f"file:{path}", "file"
    if member := split_member(path):
        tar, offset, size = member
        url = f"subfile,,start,{offset},end,{offset + size},,:file:{tar}"
        protocols = "file,subfile"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": protocols}
    try:
        container = av.open(url, options=options, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise InputError(
            f"{path} is not a video file that can be read ({error.strerror}): it is of another "
            "kind, a playlist (never followed) or cut short. Copy or download it again."
        ) from None
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        problem = "has no video stream"
    elif stream.codec_context is None:
        problem = "is coded in a way that the installed PyAV cannot decode"
    else:
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        if strict:
            stream.codec_context.options = {"err_detect": "explode"}
        return container, stream
    container.close()
    raise InputError(f"{path} {problem}; leave it out or convert it.")
