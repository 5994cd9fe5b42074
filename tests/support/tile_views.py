"""A perfect detector of made-up objects, that sees of each object what a tile shows of it."""

from __future__ import annotations

import numpy as np
import torch

from zoo.contract.batch import Detections
from zoo.contract.tiles import Tile, Tiles
from zoo.prediction.tiles.merge import View

Box = tuple[float, float, float, float]
Object = tuple[int, Box]  # class, xyxy


def seen(
    objects: list[Object], tile: Tile, rng: np.random.Generator, jitter: float, least: float, smallest: float
) -> View:
    """What is found in one view: each object of which the tile shows a share of `least`, trimmed to the tile.

    Args:
        objects: of the image.
        tile: the view.
        rng: of jitter and scores.
        jitter: of each edge, as a share of the side seen.
        least: share of the object's area.
        smallest: pixels; an object with a smaller side is not found here.
    """
    boxes, labels = [], []
    for label, (x0, y0, x1, y1) in objects:
        left, top, right, bottom = (
            max(x0, tile.left),
            max(y0, tile.top),
            min(x1, tile.right),
            min(y1, tile.bottom),
        )
        w, h = right - left, bottom - top
        if w <= 0 or h <= 0 or w * h < least * (x1 - x0) * (y1 - y0) or min(x1 - x0, y1 - y0) < smallest:
            continue
        shift = rng.uniform(-jitter, jitter, 4) * np.array([w, h, w, h])
        boxes.append(np.array([left, top, right, bottom]) + shift)
        labels.append(label)
    scores = torch.from_numpy(rng.uniform(0.5, 1.0, len(boxes))).float()
    found = torch.from_numpy(np.array(boxes).reshape(-1, 4)).float()
    return View(tile, Detections(scores, torch.tensor(labels, dtype=torch.int64), found))


def all_views(
    objects: list[Object],
    size: tuple[int, int],
    tiles: Tiles,
    seed: int = 0,
    jitter: float = 0.0,
    least: float = 0.0,
    smallest_in_whole: float = 0.0,
    with_whole: bool = True,
) -> list[View]:
    """`seen` of every view of an image of (h, w) `size`; small objects may be too small in the whole image."""
    rng, views = np.random.default_rng(seed), tiles.views(*size)
    return [
        seen(objects, tile, rng, jitter, least, smallest_in_whole if n == 0 and len(views) > 1 else 0.0)
        for n, tile in enumerate(views)
        if n or with_whole or len(views) == 1
    ]
