"""Statistics of a data set that matter for training a DETR."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex, Fault
from zoo.contract.tiles import parse_tiles

STRIDES = (8, 16, 32)  # pixels a cell: finest map of RT-DETR and Deformable DETR, the next, the map of DETR
_MANY_SMALL = 0.1  # share of objects below the finest stride from which it is a warning
_MANY_EMPTY = 0.5
_RATHER = 4.0  # largest over smallest image by area from which it is noted
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class ViewSize(NamedTuple):
    """How images are resized before the network: stretched to (h, w), or by their shorter side."""

    text: str
    stretch: tuple[int, int] | None  # h, w
    shortest: tuple[int, int] | None  # shorter side, at most this longer side
    tile: tuple[int, int] | None = None  # h, w: larger images are cut first

    def scales(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """[N, 2] factors of height and width for images of `sizes` [N, 2] (h, w)."""
        held = np.maximum(sizes, 1).astype(np.float64)
        if self.tile is not None:
            held = np.minimum(held, np.asarray(self.tile, dtype=np.float64))
        if self.stretch is not None:
            return np.asarray(self.stretch, dtype=np.float64) / held
        assert self.shortest is not None
        short, long = self.shortest
        factor = np.minimum(short / held.min(axis=1), long / held.max(axis=1))
        return np.repeat(factor[:, None], 2, axis=1)


def view_size(text: str) -> ViewSize:
    """`640` or `480x640` (height x width) stretches; `800/1333` resizes the shorter side, as DETR does.

    ` tiles 640x640` behind it cuts images first.

    Raises:
        ValueError: if it is none of these.
    """
    text, _, cut = text.partition(" tiles ")
    if cut:
        tile = parse_tiles(cut).size
        return view_size(text)._replace(
            tile=tile, text=f"{view_size(text).text}, in tiles of {tile[0]}x{tile[1]}"
        )
    match = re.fullmatch(r"(\d{1,9})(?:([x×/])(\d{1,9}))?", text.strip())
    if match is None or int(match[1]) < 1 or (match[3] and int(match[3]) < 1):
        raise ValueError(
            f"image size {text!r:.40} is none of 640 (stretched to 640x640), 480x640 (height x width), 800/1333 "
            "(shorter side/longest)"
        )
    first, second = int(match[1]), int(match[3] or match[1])
    if match[2] == "/":
        return ViewSize(f"shorter side {min(first, second)}, at most {max(first, second)}", None,
                        (min(first, second), max(first, second)))  # fmt: skip
    return ViewSize(f"stretched to {second}x{first} (width x height)", (first, second), None)


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split; crowds count in `crowd` only."""

    images: int
    objects: int
    crowd: int
    empty_share: float  # of images
    objects_per_image: list[float]  # quantiles 0, 5, 25, 50, 75, 95, 100 %
    image_side: list[float]  # quantiles of sqrt(h w), pixels
    image_aspect: list[float]  # quantiles of w / h
    box_side: list[float]  # quantiles of sqrt(h w) at the chosen size, pixels
    box_aspect: list[float]  # quantiles of w / h at the chosen size
    below_stride: dict[str, float]  # stride -> share of objects whose shorter side is below it


@dataclass(frozen=True)
class Statistics:
    """Statistics of all splits at one image size."""

    image_size: str
    queries: int
    splits: dict[str, SplitStatistics]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(splits: Mapping[str, AnnotationIndex], view: ViewSize, queries: int) -> Statistics:
    """Quantiles of images and boxes."""
    return Statistics(view.text, queries, {s: _of_split(index, view) for s, index in splits.items()})


def viewed_boxes(index: AnnotationIndex, view: ViewSize) -> NDArray[np.float64]:
    """[n, 2] height and width of every object except crowds, in pixels of the resized image."""
    kept = ~index.crowd
    scales = view.scales(index.sizes)[index.image_rows[kept]]
    return index.boxes_xywh[kept][:, [3, 2]] * scales


def _of_split(index: AnnotationIndex, view: ViewSize) -> SplitStatistics:
    boxes = viewed_boxes(index, view)
    counts = np.bincount(index.image_rows[~index.crowd], minlength=len(index))
    sizes = index.sizes.astype(np.float64)
    shorter = boxes.min(axis=1) if len(boxes) else np.zeros(0)
    return SplitStatistics(
        images=len(index),
        objects=len(boxes),
        crowd=int(index.crowd.sum()),
        empty_share=float((counts == 0).mean()) if len(index) else 0.0,
        objects_per_image=_quantiles(counts),
        image_side=_quantiles(np.sqrt(sizes.prod(axis=1))),
        image_aspect=_quantiles(sizes[:, 1] / np.maximum(sizes[:, 0], 1)),
        box_side=_quantiles(np.sqrt(boxes.prod(axis=1))),
        box_aspect=_quantiles(boxes[:, 1] / np.maximum(boxes[:, 0], 1e-9)),
        below_stride={str(s): float((shorter < s).mean()) if len(boxes) else 0.0 for s in STRIDES},
    )


def _quantiles(values: NDArray[Any]) -> list[float]:
    return [round(float(q), 3) for q in np.quantile(values, _QUANTILES)] if len(values) else []


def statistics_faults(statistics: Statistics) -> Iterator[Fault]:
    """Warnings and notes about what the statistics mean for training a DETR."""
    for name, split in statistics.splits.items():
        small = split.below_stride[str(STRIDES[0])]
        if small:
            shares = ", ".join(f"{share:.1%} below {s}" for s, share in split.below_stride.items())
            yield Fault(
                "warning" if small >= _MANY_SMALL else "note", "below_stride", ".", name,
                f"{name}: {statistics.image_size}, {shares} pixels on the shorter side (strides of the feature "
                "maps: 8 the finest of RT-DETR and Deformable DETR, 32 the only one of DETR); use a larger "
                "image size or tiles",
            )  # fmt: skip
        if split.empty_share:
            yield Fault(
                "warning" if split.empty_share > _MANY_EMPTY else "note", "empty_images", ".", name,
                f"{name}: {split.empty_share:.1%} of {split.images} images have no object; they are trained as "
                "background: right only if nothing was left unlabelled",
            )  # fmt: skip
        if split.image_side and split.image_side[-1] > _RATHER * split.image_side[0]:
            yield Fault(
                "note", "mixed_sizes", ".", name,
                f"{name}: images from {split.image_side[0]:.0f} to {split.image_side[-1]:.0f} pixels "
                "(square root of the area); objects of one real size come at very different scales",
            )  # fmt: skip
