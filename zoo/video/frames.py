"""The frames of a video file, an rtsp address or a camera."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.runs.console import counted
from zoo.storage.image_fetch import scheme_of
from zoo.video.length import Length

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"}
)
SCHEMES = frozenset({"rtsp", "rtsps"})
_SECONDS = (10.0, 10.0)  # to wait for a camera in a network: to open it, and for each packet
_USUAL_RATE = Fraction(30)
_CAMERAS = {"darwin": "avfoundation", "win32": "dshow"}  # elsewhere Linux's


class Frame(NamedTuple):
    """A picture of a video, upright.

    Attributes:
        number: counted from 0.
        time: seconds since the first.
        pixels: [h, w, 3] uint8 RGB.
    """

    number: int
    time: Fraction
    pixels: NDArray[np.uint8]


def is_video(source: str) -> bool:
    """Whether `zoo predict` takes it for a video: by its ending, an rtsp address, or the number of a camera."""
    if scheme_of(source):
        return scheme_of(source) in SCHEMES
    return is_camera(source) or Path(source).suffix.lower() in SUFFIXES


def is_camera(source: str) -> bool:
    """Whether it is the number of a camera, and no file of that name."""
    return source.isascii() and source.isdigit() and not os.path.exists(source)


def needed() -> Any:
    """PyAV.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(f"videos need PyAV ({error}): pip install 'detr-zoo[video]'") from error
    return av


def reason(error: Exception) -> str:
    """What FFmpeg says, without its number and the name of the file."""
    return str(getattr(error, "strerror", "") or error).split(": '")[0].strip() or type(error).__name__


@dataclass
class Video:
    """An open video. Use as a context.

    Args:
        source: file, rtsp address or number of a camera.

    Attributes:
        rate: frames a second on average, as the file says.
        number: of frames, as the file says; 0 where that is not known.
        has_audio: whether it has sound, which is not read.
        problem: why the last iteration ended before the end of the video; empty if it did not.
        damaged: packets that could not be decoded, and were left out.
        corrupt: frames that the decoder gave with parts missing.
    """

    source: str
    rate: Fraction = _USUAL_RATE
    number: int = 0
    has_audio: bool = False
    problem: str = ""
    damaged: int = 0
    corrupt: int = 0
    _container: Any = field(default=None, repr=False)
    _length: Any = field(default=None, repr=False)
    _frames: int = 0
    _pause: Fraction = Fraction(0)  # the longest between two frames

    def __enter__(self) -> Video:
        """Opens it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no video, or cannot be opened.
        """
        av = needed()
        av.logging.set_level(av.logging.PANIC)  # its errors are raised
        name = self.source
        options: dict[str, Any] = {}
        if is_camera(self.source):
            options["format"] = _CAMERAS.get(sys.platform, "v4l2")
            name = f"/dev/video{self.source}" if options["format"] == "v4l2" else self.source
        elif not scheme_of(self.source) and not os.path.isfile(self.source):
            raise FileNotFoundError(f"video {self.source[:200]} does not exist, or is no file")
        elif scheme_of(self.source):
            options |= {"timeout": _SECONDS, "options": {"rtsp_transport": "tcp"}}
        try:
            self._container = av.open(name, **options)
        except (av.FFmpegError, OSError, ValueError) as error:
            what = "camera " if is_camera(self.source) else ""
            raise ValueError(
                f"{what}{self.source[:200]} cannot be opened as a video: {reason(error)}"
            ) from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{self.source[:200]} has no video stream, so no picture; is it cut off?")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate = stream.average_rate or stream.guessed_rate or _USUAL_RATE
        self.number = stream.frames
        self.has_audio = bool(self._container.streams.audio)
        self._length = Length(self._container, stream, self.rate)
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames, once. Where the file breaks off they end, and `problem` says why."""
        first, last = None, Fraction(-1)
        for number, frame in enumerate(self._decoded()):
            time = None if frame.pts is None else frame.pts * frame.time_base
            if first is None:
                first = time or Fraction(0)
            time = Fraction(number) / self.rate if time is None else time - first
            if time <= last:  # a clock that stands still or goes back, as of some cameras
                time = last + 1 / self.rate
            self._pause = max(self._pause, time - last if number else Fraction(0))
            self._frames, last = number + 1, time
            pixels = frame.to_ndarray(format="rgb24")
            yield Frame(number, time, np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4)))

    def faults(self) -> list[str]:
        """After the last frame, what was wrong with the file; empty if all that it says was read."""
        found = []
        if self.problem:
            found.append(f"it breaks off after frame {self._frames - 1}: {self.problem}")
        elif missing := self._length.missing(self._frames, self._pause):
            found.append(f"{missing}: it is cut or damaged")
        if self.damaged:
            found.append(f"{counted(self.damaged, 'packet')} could not be decoded")
        if self.corrupt:
            found.append(f"{counted(self.corrupt, 'frame')} decoded with parts missing")
        return found

    def _decoded(self) -> Iterator[Any]:
        av = needed()
        video = self._container.streams.video[0].index
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                self.problem = reason(error)
                return
            self._length.read(packet)
            if packet.stream.index != video:
                continue
            try:
                for frame in packet.decode():
                    self.corrupt += frame.is_corrupt
                    yield frame
            except av.FFmpegError:
                self.damaged += 1
