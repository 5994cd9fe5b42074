"""Evaluation in tiles: batches of views in, whole images with their merged detections out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from zoo.contract.batch import Batch, Detections
from zoo.contract.tiles import Tiles
from zoo.prediction.tiles.merge import View, merge
from zoo.prediction.tiles.views import placed, worth_it

_MOST = 2000  # of a class and image: COCO scores the best 100, and an object is in a few views


class WholeImages:
    """Keeps the detections of an image's views until the last has come."""

    def __init__(self) -> None:
        self._views: list[View] = []

    def reset(self) -> None:
        """Forgets an image of which not all views came, as where an evaluation was cut short."""
        self._views = []

    def add(
        self, detections: Sequence[Detections], batch: Batch, tiles: Tiles
    ) -> Iterator[tuple[Detections, Batch]]:
        """The images that these views complete: detections, and a batch of one with the image's size and annotations.

        Its pixels are those of the last view.

        Args:
            detections: of the views, in pixels of each.
            batch: with `pieces`.
            tiles: how the images were cut.
        """
        assert batch.pieces is not None
        for row, (found, piece) in enumerate(zip(detections, batch.pieces, strict=True)):
            own = worth_it(placed(found, piece.tile), piece.tile, piece.size, tiles)
            self._views.append(View(piece.tile, own))
            if len(self._views) == piece.views:
                image = replace(
                    batch.part(row, row + 1),
                    original_sizes=(piece.size,),
                    annotations=piece.annotations,
                    pieces=None,
                )
                yield merge(self._views, piece.size, _MOST), image
                self._views = []
