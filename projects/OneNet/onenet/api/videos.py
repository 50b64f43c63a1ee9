"""Reading videos, streams and cameras, and writing videos that browsers play."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from tqdm import tqdm

from onenet.errors import OneNetError, WriteError

VIDEO_SUFFIX = ".mp4"


class Codec(NamedTuple):
    """A codec of .mp4 files, what OpenCV calls it, and what to know about it."""

    code: str
    name: str
    advice: str


# In this order: the first one that this OpenCV can write is taken.
CODECS = (
    Codec("avc1", "H.264", ""),
    Codec("vp09", "VP9", "Browsers and VLC play it; QuickTime and older players do not"),
    Codec("mp4v", "MPEG-4 Part 2", "VLC plays it; browsers do not"),
)
CONVERT = "ffmpeg -i IN.mp4 -c:v libx264 -pix_fmt yuv420p OUT.mp4 makes H.264 of it"


def is_address(source: str) -> bool:
    """Whether a source is an address, such as rtsp://…, not a file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def without_password(source: str) -> str:
    """An address without the user and password in it, to print."""
    return re.sub(r"://[^/@]*@", "://", source) if is_address(source) else source


def video_path(source: str, output: Path) -> Path:
    """Choose the file for the drawn video of a file, device or address.

    Raises:
        OneNetError: ``output`` is neither an .mp4 file nor a folder.
    """
    if output.suffix and output.suffix.lower() != VIDEO_SUFFIX and not output.is_dir():
        raise OneNetError(f"--output {output} must be an {VIDEO_SUFFIX} file or a folder")
    if output.suffix.lower() == VIDEO_SUFFIX and not output.is_dir():
        return output
    stem = Path(source).stem
    if is_address(source):
        parts = urlsplit(source)
        # What Windows takes in a name; a camera's address often has no path.
        stem = Path(unquote(parts.path)).stem or parts.hostname or "stream"
        stem = re.sub(r"[^\w.-]+", "_", stem)
    return output / f"{stem}{VIDEO_SUFFIX}"


class Video:
    """A video file, a stream or a camera.

    Args:
        source: a file, an address, a device such as /dev/video0, or the number of a webcam.

    Attributes:
        name: what messages call it.
        source: as given, without a password.
        fps: frames per second, 30 if the source does not say.
        total: the number of frames that the source gives, possibly an estimate; None: it gives
            none, as streams and cameras.

    Raises:
        OneNetError: there is no such file or device, or OpenCV cannot open it.
    """

    def __init__(self, source: str | int) -> None:
        self.source = without_password(str(source))
        webcam = isinstance(source, int)
        self.name = f"--webcam {source}" if webcam else f"--video-input {self.source}"
        self._exact = False
        if not webcam and not is_address(source):
            path = Path(source).expanduser()
            source = str(path)
            if not path.is_file() and not path.is_char_device():
                raise OneNetError(f"{self.name} is not a file, a device or an address")
            self._exact = path.is_file() and _counts_frames(path)
        self._video = cv2.VideoCapture(source)
        if not self._video.isOpened():
            raise OneNetError(f"OpenCV cannot open {self.name}")
        fps, total = (
            self._video.get(name) for name in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
        self.fps = fps if 0 < fps < 1000 else 30.0  # also without a number, or NaN
        self.total = int(total) if math.isfinite(total) and total >= 1 else None

    def frames(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB frames."""
        while True:
            more, frame = self._video.read()
            if not more:
                return
            yield np.ascontiguousarray(frame[..., ::-1])

    def close(self) -> None:
        self._video.release()

    def lack(self, count: int) -> str | None:
        """What is wrong if the video ends after ``count`` frames; None: nothing."""
        if self.total is None:
            return None
        # Elsewhere than in the containers that list their frames, duration and rate give the count.
        estimate = 0 if self._exact else max(2, self.total // 50)
        if count >= self.total - estimate:
            return None
        return (
            f"{self.name} ends early: {self.total} frames by its own count, {count} could be read. "
            "It is damaged or cut short, or was trimmed without being encoded again"
        )


def _counts_frames(path: Path) -> bool:
    """Whether a video file is of a container that counts its frames: MP4, MOV or AVI."""
    with path.open("rb") as file:
        start = file.read(12)
    return start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or start[:4] == b"RIFF"


class Writer:
    """Writes an .mp4 file in the first of ``CODECS`` that this OpenCV has; says if it is not H.264.

    Args:
        path: the file; its folder is created.
        fps: frames per second.
        size: (height, width) px of the frames.

    Raises:
        OneNetError: OpenCV cannot write it.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._size, self._count = path, size, 0
        for codec in CODECS:
            with _native_errors_hidden():
                code = cv2.VideoWriter_fourcc(*codec.code)
                self._writer = cv2.VideoWriter(str(path), code, fps, size[::-1])
            if self._writer.isOpened():
                break
        else:
            raise OneNetError(f"OpenCV cannot write the video {path}")
        if codec.advice:
            tqdm.write(
                f"{path} is {codec.name}, since this OpenCV cannot write H.264. {codec.advice}; "
                f"{CONVERT}",
                file=sys.stderr,
            )

    def write(self, picture: np.ndarray) -> None:
        """Append a (H, W, 3) uint8 RGB picture; another size, as streams may have, is resized."""
        if picture.shape[:2] != self._size:  # OpenCV would leave it out
            picture = cv2.resize(picture, self._size[::-1], interpolation=cv2.INTER_AREA)
        self._writer.write(picture[..., ::-1])
        self._count += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            WriteError: it does not hold all pictures, such as on a full disk, which OpenCV's writer
                does not report.
        """
        self._writer.release()
        with _native_errors_hidden():
            written = cv2.VideoCapture(str(self.path))
            count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
            written.release()
        if count < self._count:
            raise WriteError(
                f"{self.path} could not be written: it holds {max(count, 0)} of {self._count} "
                "frames. Is the disk full?"
            )


@contextmanager
def _native_errors_hidden() -> Iterator[None]:
    """Hide what OpenCV and FFmpeg print to stderr about a codec that they lack."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
