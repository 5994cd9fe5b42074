"""Whether tiles would show a network what whole images are too large to show: known from the sizes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from datamodules.doctor.statistics import STRIDES, ViewSize, viewed_boxes
from datamodules.index import AnnotationIndex, Fault

_MANY = 0.1  # share of the objects that tiles must make visible
_NEARLY_ALL = 0.9  # of the small ones; smaller tiles are advised only where larger ones miss it
_SMALLEST = 64  # pixels of a side


@dataclass(frozen=True)
class TileAdvice:
    """Tiles in which many objects are large enough that are too small in whole images."""

    size: tuple[int, int]  # h, w in pixels of the images
    objects: int
    small: int  # shorter side below the finest stride, in whole images
    helped: int  # of these, not below it in tiles

    @property
    def option(self) -> str:
        """As `zoo finetune` takes it."""
        height, width = self.size
        return f"--tiles {height}" if height == width else f"--tiles {height}x{width}"

    def fault(self, view: str) -> Fault:
        """What to tell the user."""
        return Fault(
            "warning", "small_in_large_images", ".", None,
            f"{self.small} of {self.objects} objects have fewer than {STRIDES[0]} pixels on the shorter side when "
            f"whole images are {view}; cut into tiles of {self.size[0]}x{self.size[1]}, {self.helped} of them have as "
            f"many or more: zoo finetune MODEL --data DIR {self.option}",
        )  # fmt: skip


def tile_advice(splits: Mapping[str, AnnotationIndex], view: ViewSize) -> TileAdvice | None:
    """The largest tiles that help, of the network's input size and of half of it; None where few would be helped."""
    if view.tile is not None:
        return None
    height, width = view.stretch or (view.shortest or (0, 0))[:1] * 2
    found = list(_candidates(splits, view, [(height, width), (height // 2, width // 2)]))
    if not found:
        return None
    best = next(
        (one for one in found if one.helped >= _NEARLY_ALL * one.small), max(found, key=lambda a: a.helped)
    )
    return best if best.helped and best.helped >= _MANY * best.objects else None


def _candidates(
    splits: Mapping[str, AnnotationIndex], view: ViewSize, sizes: list[tuple[int, int]]
) -> Iterator[TileAdvice]:
    whole = [viewed_boxes(index, view).min(axis=1, initial=np.inf) < STRIDES[0] for index in splits.values()]
    small = np.concatenate([np.zeros(0, dtype=bool), *whole])
    for size in sizes:
        if min(size) < _SMALLEST:
            continue
        cut = [
            viewed_boxes(index, view._replace(tile=size)).min(axis=1, initial=np.inf)
            for index in splits.values()
        ]
        seen = np.concatenate([np.zeros(0), *cut]) >= STRIDES[0]
        yield TileAdvice(size, len(small), int(small.sum()), int((small & seen).sum()))
