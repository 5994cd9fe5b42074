"""Objects of an image as a tile shows them: whole, trimmed, or ignored for little of them is visible."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.transforms.targets import ImageTargets
from zoo.contract.batch import Annotations
from zoo.contract.tiles import Tile


class Shown(NamedTuple):
    """Objects as a tile shows them."""

    boxes_xyxy: NDArray[np.float64]  # [n, 4] trimmed to the tile, in its pixels
    share: NDArray[np.float64]  # [n] of the area; 0 of an object that is not there


def shown(boxes_xyxy: NDArray[np.float64], tile: Tile) -> Shown:
    """What a tile shows of boxes [n, 4] in pixels of the image."""
    window = np.array([tile.left, tile.top, tile.right, tile.bottom], dtype=np.float64)
    trimmed = np.clip(boxes_xyxy, np.tile(window[:2], 2), np.tile(window[2:], 2))
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    share = (trimmed[:, 2:] - trimmed[:, :2]).prod(axis=1) / np.where(area > 0, area, 1)
    return Shown(trimmed - np.tile(window[:2], 2), share)


class CutTargets(NamedTuple):
    """The objects of a tile."""

    targets: ImageTargets  # in pixels of the tile
    numbers: torch.Tensor  # [n] of the objects in the image
    share: torch.Tensor  # [n] float64 that is visible
    ignored_xyxy: torch.Tensor  # [r, 4] float32: parts that are neither object nor background


def cut_targets(targets: ImageTargets, tile: Tile, visible: float) -> CutTargets:
    """The objects of a tile of which a share of `visible` shows, trimmed to it; less of one is ignored."""
    boxes, share = shown(targets.boxes_xyxy.double().numpy(), tile)
    numbers = torch.from_numpy(np.flatnonzero(share >= visible))
    part = (share > 0) & (share < visible)
    kept = ImageTargets(targets.labels[numbers], torch.from_numpy(boxes[numbers.numpy()]).float())
    return CutTargets(kept, numbers, torch.from_numpy(share)[numbers], torch.from_numpy(boxes[part]).float())


def cut_annotations(annotations: Annotations, tile: Tile, visible: float) -> Annotations:
    """Annotations of one image for a tile of it: trimmed; crowds and what shows less than `visible` are crowds."""
    boxes = annotations.boxes_xywh.numpy().copy()
    boxes[:, 2:] += boxes[:, :2]
    trimmed, share = shown(boxes, tile)
    there = np.flatnonzero(share > 0)
    trimmed[:, 2:] -= trimmed[:, :2]
    rows, own = torch.from_numpy(there), torch.from_numpy(share)
    return Annotations(
        boxes_xywh=torch.from_numpy(trimmed[there]),
        areas=annotations.areas[rows] * own[rows],
        labels=annotations.labels[rows],
        crowd=annotations.crowd[rows] | (own[rows] < visible),
        counts=(len(there),),
    )
