"""torchvision's RandomIoUCrop, all trials of an overlap at once."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np
from torch import Tensor

from datamodules.transforms.geometry import Crop

# Source: torchvision 0.15.2's defaults
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # 1 leaves the image as it is
TRIALS = 40
SCALE = (0.3, 1.0)
ASPECT = (0.5, 2.0)


def draw_iou_crop(random: Random, size: tuple[int, int], boxes_xyxy: Tensor) -> Crop | None:
    """A crop that holds centres of objects and overlaps one of these by a drawn IoU; None: the image stays whole.

    Draws an overlap and then up to 40 windows, until a window is accepted or the overlap is 1. An image
    without objects has no acceptable window, so nothing is tried for it.
    """
    if not len(boxes_xyxy):
        return None
    boxes = _Boxes.of(boxes_xyxy.numpy())
    while True:
        overlap = OVERLAPS[int(random.random() * len(OVERLAPS))]
        if overlap >= 1:
            return None
        numbers = np.array([random.random() for _ in range(4 * TRIALS)], dtype=np.float32)
        windows = candidate_windows(numbers.reshape(TRIALS, 4), size)
        accepted = acceptable(windows, boxes, overlap)
        if accepted.any():
            left, top, right, bottom = windows[int(accepted.argmax())].tolist()
            return Crop(top, left, bottom - top, right - left, centred=True)


class _Boxes(NamedTuple):
    """Corners, centres and areas, [n] float32 each."""

    x0: np.ndarray
    y0: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray

    @classmethod
    def of(cls, boxes_xyxy: np.ndarray) -> _Boxes:
        x0, y0, x1, y1 = np.ascontiguousarray(boxes_xyxy.T)
        half = np.float32(0.5)
        return cls(x0, y0, x1, y1, half * (x0 + x1), half * (y0 + y1), (x1 - x0) * (y1 - y0))


def candidate_windows(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[t, 4] int64 left, top, right, bottom from [t, 4] float32 in [0, 1): width, height, x, y.

    In float32 and cut to whole pixels, as torchvision does it.
    """
    low, high = np.float32(SCALE[0]), np.float32(SCALE[1] - SCALE[0])
    canvas = np.array([size[1], size[0]])
    sides = (canvas.astype(np.float32) * (low + high * numbers[:, :2])).astype(np.int64)
    corner = ((canvas - sides).astype(np.float32) * numbers[:, 2:]).astype(np.int64)
    return np.concatenate([corner, corner + sides], axis=1)


def acceptable(windows: np.ndarray, boxes: _Boxes, overlap: float) -> np.ndarray:
    """[t] bool: windows of allowed aspect and with area that hold a centre and overlap its box enough.

    Args:
        windows: [t, 4] int64 xyxy.
        boxes: at least one.
        overlap: the least IoU that the best of the held boxes must reach.
    """
    left, top, right, bottom = windows.T[:, :, None].astype(np.float32)  # [t, 1] each
    width, height = right - left, bottom - top
    sides = windows[:, 2:] - windows[:, :2]
    aspect = sides[:, 0] / np.maximum(sides[:, 1], 1)
    fair = (aspect >= ASPECT[0]) & (aspect <= ASPECT[1]) & (sides > 0).all(axis=1)
    held = (left < boxes.x) & (boxes.x < right) & (top < boxes.y) & (boxes.y < bottom)  # [t, n]
    across = (np.minimum(right, boxes.x1) - np.maximum(left, boxes.x0)).clip(0)
    down = (np.minimum(bottom, boxes.y1) - np.maximum(top, boxes.y0)).clip(0)
    shared = across * down
    iou = shared / (boxes.area + width * height - shared)
    accepted: np.ndarray = fair & (held & (iou >= np.float32(overlap))).any(axis=1)
    return accepted
