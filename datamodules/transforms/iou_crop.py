"""torchvision's RandomIoUCrop, all trials of an overlap at once."""

from __future__ import annotations

from random import Random

import numpy as np
from torch import Tensor

from datamodules.transforms.geometry import Crop

# Source: torchvision 0.15.2's defaults
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # 1 leaves the image as it is
TRIALS = 40
SCALE = (0.3, 1.0)
ASPECT = (0.5, 2.0)


def draw_iou_crop(random: Random, size: tuple[int, int], boxes_xyxy: Tensor) -> Crop | None:
    """A crop that holds the centre of an object and overlaps one such by a drawn IoU; None for none.

    Draws an overlap and then up to 40 windows, until a window is accepted or the overlap is 1. An image
    without objects has no acceptable window, so nothing is tried for it.
    """
    boxes = boxes_xyxy.numpy()
    if not len(boxes):
        return None
    while True:
        overlap = OVERLAPS[int(random.random() * len(OVERLAPS))]
        if overlap >= 1:
            return None
        numbers = np.array([random.random() for _ in range(4 * TRIALS)], dtype=np.float32)
        windows = candidate_windows(numbers.reshape(TRIALS, 4), size)
        accepted = acceptable(windows, boxes, overlap)
        first = int(accepted.argmax())
        if accepted[first]:
            left, top, right, bottom = windows[first].tolist()
            return Crop(top, left, bottom - top, right - left, centred=True)


def candidate_windows(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[t, 4] int64 left, top, right, bottom from [t, 4] float32 in [0, 1): width, height, x, y.

    In float32 and cut to whole pixels, as torchvision does it.
    """
    low, high = np.float32(SCALE[0]), np.float32(SCALE[1] - SCALE[0])
    canvas = np.array([size[1], size[0]])
    sides = (canvas.astype(np.float32) * (low + high * numbers[:, :2])).astype(np.int64)
    corner = ((canvas - sides).astype(np.float32) * numbers[:, 2:]).astype(np.int64)
    return np.concatenate([corner, corner + sides], axis=1)


def acceptable(windows: np.ndarray, boxes_xyxy: np.ndarray, overlap: float) -> np.ndarray:
    """[t] bool: windows of fair aspect and with area that hold a centre and overlap its box enough.

    Args:
        windows: [t, 4] int64 xyxy.
        boxes_xyxy: [n, 4] float32.
        overlap: the least IoU that the best of the held boxes must reach.
    """
    width, height = (windows[:, 2:] - windows[:, :2]).T
    solid = (width > 0) & (height > 0)
    aspect = width / np.maximum(height, 1)
    fair = (aspect >= ASPECT[0]) & (aspect <= ASPECT[1]) & solid
    window = windows.astype(np.float32)[:, None]  # [t, 1, 4]
    centre = np.float32(0.5) * (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:])
    held = ((window[..., :2] < centre) & (centre < window[..., 2:])).all(axis=-1)  # [t, n]
    sides = np.minimum(window[..., 2:], boxes_xyxy[:, 2:]) - np.maximum(window[..., :2], boxes_xyxy[:, :2])
    shared = sides.clip(0).prod(axis=-1)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=-1)
    iou = shared / (area + (window[..., 2:] - window[..., :2]).prod(axis=-1) - shared)
    best = np.where(held, iou, np.float32(-1)).max(axis=1)
    accepted: np.ndarray = fair & (best >= np.float32(overlap))
    return accepted
