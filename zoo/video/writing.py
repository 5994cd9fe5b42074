"""Writes a video that can be played up to where its writing was ended, however that was."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.storage.durable import written
from zoo.video.frames import needed, reason

_CLOCK = 90_000  # ticks a second, as of MPEG
# a fragment begins at every key frame and is whole in itself; the head is written first, not last
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}


class VideoWriter:
    """An MP4 in H.264, a key frame a second. Use as a context.

    Args:
        path: of the file; one that is there is replaced.
        rate: frames a second.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path = path
        self._rate = rate
        self._stream: Any = None
        av = needed()
        with written(path):
            path.touch()  # Python's error, not FFmpeg's
        self._container = av.open(str(path), "w", format="mp4", options=dict(_FRAGMENTED))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the file, also after an error or Ctrl-C."""
        av = needed()
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
        except (av.FFmpegError, OSError) as error:
            if exception[0] is None:
                raise self._failed(error) from error
        finally:
            self._container.close()

    def add(self, pixels: NDArray[np.uint8], time: Fraction) -> None:
        """A frame [h, w, 3] RGB at its time in seconds; a frame of another size is resized to the first's.

        Raises:
            OSError: the disk is full.
        """
        av = needed()
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if self._stream is None:
            self._begin(frame.width, frame.height)
        frame = frame.reformat(self._stream.width, self._stream.height, self._stream.pix_fmt)
        frame.time_base = Fraction(1, _CLOCK)
        frame.pts = round(time * _CLOCK)
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _begin(self, width: int, height: int) -> None:
        self._stream = self._container.add_stream("h264", rate=self._rate)
        self._stream.width, self._stream.height = width, height
        # colours have half the resolution, so that both sides must be even
        self._stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        self._stream.gop_size = max(1, round(self._rate))
        self._stream.codec_context.max_b_frames = (
            0  # they come late, and would shift every time of such a file
        )

    def _failed(self, error: Exception) -> OSError:
        return OSError(getattr(error, "errno", None) or 0, reason(error), str(self.path))
