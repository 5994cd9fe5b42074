"""Our own operations by the names that a recipe's list gives them."""

from __future__ import annotations

from collections.abc import Callable

from datamodules.augmentations.block import OWN
from datamodules.transforms.color import Distort
from datamodules.transforms.draws import draw_distortion, draw_flip, draw_zoom_out
from datamodules.transforms.geometry import VerticalFlip
from datamodules.transforms.iou_crop import draw_iou_crop
from datamodules.transforms.plan import Operation
from datamodules.transforms.presets import Draw


def draw(name: str, given: Draw) -> list[Operation]:
    """What becomes of one image by the operation of that name."""
    return _DRAWS[name](given)


def _flip_vertical(given: Draw) -> list[Operation]:
    return [VerticalFlip(given.size[0])] if given.random.random() < 0.5 else []


def _zoom_out(given: Draw) -> list[Operation]:
    random = given.random
    return [draw_zoom_out(random, given.size)] if random.random() < 0.5 else []


def _iou_crop(given: Draw) -> list[Operation]:
    random = given.random
    crop = draw_iou_crop(random, given.size, given.boxes_xyxy) if random.random() < 0.8 else None
    return [] if crop is None else [crop]


# with the probabilities of `draws.draw_rt_detr`
_DRAWS: dict[str, Callable[[Draw], list[Operation]]] = {
    "distort": lambda d: [Distort(draw_distortion(d.random))],
    "flip": lambda d: draw_flip(d.random, d.size),
    "flip_vertical": _flip_vertical,
    "iou_crop": _iou_crop,
    "zoom_out": _zoom_out,
}
assert tuple(_DRAWS) == OWN
