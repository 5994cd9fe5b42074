"""What a video file says of its length, and what was read of it: whether it was cut off."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from zoo.runs.console import counted

# MP4 is a mov, WebM a matroska; FFmpeg guesses the length of others
_FAMILIES = frozenset({"mov", "matroska", "avi", "flv"})
_MICRO = 1_000_000  # FFmpeg's clock of a whole file


class Length:
    """Compares the two; tells nothing where a file tells nothing.

    Args:
        container: open, before its first packet is read.
        stream: of its pictures.
        rate: frames a second.
    """

    def __init__(self, container: Any, stream: Any, rate: Fraction) -> None:
        family = next((name for name in container.format.name.split(",") if name in _FAMILIES), "")
        self._stream, self._rate = stream, rate
        self._packets, self._end = 0, Fraction(0)
        # Of each packet, edit lists and all. Others have key frames alone. Old PyAV has none.
        self._index = len(getattr(stream, "index_entries", ())) if family in ("mov", "avi") else 0
        # an index lies at the end of an AVI, and of fragments it is made while they are read
        self._whole_index = self._index > 1 and stream.frames > 0
        self._seconds = Fraction(container.duration or 0, _MICRO) if family else Fraction(0)
        if family == "avi":  # FFmpeg's duration is of what is left of the file
            self._seconds = stream.frames / rate

    def read(self, packet: Any) -> None:
        """Notes a packet of any stream: sound may be longer than the pictures."""
        time = packet.dts if packet.pts is None else packet.pts
        if packet.stream.index == self._stream.index and (packet.size or time is not None):
            self._packets += 1
        if time is not None and packet.time_base:
            self._end = max(self._end, (time + (packet.duration or 0)) * packet.time_base)

    def missing(self, frames: int, pause: Fraction) -> str:
        """What the file says, where less was read; empty if it was all.

        Args:
            frames: that were decoded.
            pause: the longest between two frames, in seconds: how long the last is shown is not in every file.
        """
        if self._packets < self._index:
            return f"the file says {counted(self._index, 'frame')}, {frames} could be read"
        if self._whole_index and self._packets == self._index:
            return ""
        if self._seconds - self._end > max(2 / self._rate, pause):
            return f"the file says {float(self._seconds):.6g} s, {float(self._end):.6g} s could be read"
        return ""
