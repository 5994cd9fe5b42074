"""The views of an image that a network is given: all of it, and its tiles."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from zoo.contract.batch import Batch, Detections, unlabelled
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tile, Tiles
from zoo.prediction.image_input import size_of
from zoo.prediction.tiles.merge import View, merge


def cropped(image: Image.Image | Tensor, tile: Tile) -> Image.Image | Tensor:
    """The pixels of a tile: a view of a tensor, a copy of a PIL image."""
    if isinstance(image, Tensor):
        return image[:, tile.top : tile.bottom, tile.left : tile.right]
    return image.crop((tile.left, tile.top, tile.right, tile.bottom))


def placed(detections: Detections, tile: Tile) -> Detections:
    """Detections in pixels of a tile to pixels of the image, on the CPU."""
    scores, labels, boxes = (t.detach().cpu() for t in detections[:3])
    return Detections(scores, labels, boxes + boxes.new_tensor([tile.left, tile.top] * 2))


_LEAST = 0.1  # of a tile's side: with less overlap, what a seam cuts into two is joined again


def worth_it(detections: Detections, tile: Tile, size: tuple[int, int], tiles: Tiles) -> Detections:
    """Without what the whole image of (h, w) `size` shows worse than a tile: objects that some tile shows whole.

    In a small copy of a large image a box of few pixels is off by as much as it is large, and would be found twice.
    """
    if tile.size != size or len(tiles.cut(*size)) == 1:
        return detections
    height, width = (
        max(shared, _LEAST * side) for shared, side in zip(tiles.shared, tiles.size, strict=True)
    )
    sides = detections.boxes_xyxy[:, 2:] - detections.boxes_xyxy[:, :2]
    return only(detections, (sides[:, 0] > width) | (sides[:, 1] > height))


def detect_in_tiles(
    image: Image.Image | Tensor,
    contract: InputContract,
    detect: Callable[[Batch], list[Detections]],
    *,
    at_once: int,
    lowest: float,
) -> tuple[Detections, int]:
    """The merged detections of an image, and in how many views they were looked for.

    Args:
        image: RGB, PIL's or [3, h, w] uint8.
        contract: how it is cut, and each view resized.
        detect: detections of a batch in pixels of its `original_sizes`.
        at_once: views of a batch.
        lowest: score of a view's detection.
    """
    size = size_of(image)
    found: list[View] = []
    tiles = contract.tiles
    assert tiles is not None
    for some in contract.view_batches(*size, at_once):
        resized = [contract.resize_image(cropped(image, tile)) for tile in some]
        batch = unlabelled(resized, [tile.size for tile in some])
        for tile, detections in zip(some, detect(batch), strict=True):
            own = worth_it(placed(detections, tile), tile, size, tiles)
            found.append(View(tile, only(own, own.scores >= lowest)))
    return merge(found, size), len(found)


def only(detections: Detections, kept: Tensor) -> Detections:
    """Those that `kept` [K] bool marks."""
    return Detections(detections.scores[kept], detections.labels[kept], detections.boxes_xyxy[kept])
