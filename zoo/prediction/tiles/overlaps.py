"""Which boxes of many overlap: all pairs, found by a sweep, so that thousands of small boxes cost little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_BLOCK = 1 << 20  # pairs that are looked at together


class Pairs(NamedTuple):
    """Pairs of boxes of different views that touch."""

    first: Integers  # [P] row of a box
    second: Integers  # [P]
    shared: Floats  # [P] square pixels

    def only(self, kept: npt.NDArray[np.bool_]) -> Pairs:
        """Those that `kept` [P] marks."""
        return Pairs(self.first[kept], self.second[kept], self.shared[kept])


def touching(boxes_xyxy: Floats, views: Integers, near: float = 0.0) -> Pairs:
    """The pairs of boxes [n, 4] of different views [n] that overlap, or are at most `near` pixels apart."""
    blocks = list(_blocks(boxes_xyxy, views, near))
    if not blocks:
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, np.zeros(0))
    first, second, shared = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Pairs(first, second, shared)


def _blocks(boxes: Floats, views: Integers, near: float) -> Iterator[Pairs]:
    order = np.argsort(boxes[:, 0], kind="stable")
    left, right = boxes[order, 0], boxes[order, 2]
    ends = np.searchsorted(left, right + near, side="right")  # all up to there begin before this one ends
    counts = np.maximum(ends - np.arange(len(order)) - 1, 0)
    begin = 0
    while begin < len(order):
        upto = np.cumsum(counts[begin:])
        end = begin + max(1, int(np.searchsorted(upto, _BLOCK, side="right")))
        yield _pairs(boxes, views, order, np.arange(begin, min(end, len(order))), counts, near)
        begin = end


def _pairs(
    boxes: Floats, views: Integers, order: Integers, rows: Integers, counts: Integers, near: float
) -> Pairs:
    own = counts[rows]
    first = np.repeat(rows, own)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(own) - own, own)
    first, second = order[first], order[second]
    across = np.minimum(boxes[first, 2], boxes[second, 2]) - np.maximum(boxes[first, 0], boxes[second, 0])
    down = np.minimum(boxes[first, 3], boxes[second, 3]) - np.maximum(boxes[first, 1], boxes[second, 1])
    kept = (down >= -near) & (across >= -near) & (views[first] != views[second])
    shared = np.maximum(across[kept], 0) * np.maximum(down[kept], 0)
    return Pairs(first[kept], second[kept], shared)


def areas(boxes_xyxy: Floats) -> Floats:
    """[n] square pixels; 0 for a box without any."""
    return np.maximum(boxes_xyxy[:, 2] - boxes_xyxy[:, 0], 0) * np.maximum(
        boxes_xyxy[:, 3] - boxes_xyxy[:, 1], 0
    )
