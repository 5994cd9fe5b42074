"""Views come in batches, whole images go out."""

from __future__ import annotations

import numpy as np
import torch
from tile_views import seen

from zoo.contract.batch import Annotations, Batch, Piece, Targets
from zoo.contract.tiles import Tiles
from zoo.prediction.tiles.whole import WholeImages

TILES = Tiles(size=(64, 64), overlap=0.25)


def batches(size, objects, most, number):
    """The views of an image in batches, and the detections of each in its own pixels."""
    views = TILES.views(*size)
    truth = Annotations(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3).long(), torch.zeros(3).bool(), (3,))
    for first in range(0, len(views), most):
        some = views[first : first + most]
        pieces = tuple(
            Piece(tile, len(views), size, truth if n == len(views) - 1 else None)
            for n, tile in enumerate(some, first)
        )
        batch = Batch(
            torch.zeros(len(some), 3, 8, 8, dtype=torch.uint8),
            torch.zeros(len(some), 8, 8, dtype=torch.bool),
            Targets(torch.zeros(0).long(), torch.zeros(0, 4), (0,) * len(some)),
            (number,) * len(some),
            tuple(tile.size for tile in some),
            pieces=pieces,
        )
        found = []
        for tile in some:
            own = seen(objects, tile, np.random.default_rng(0), 0.0, 0.0, 0.0).detections
            corner = torch.tensor([tile.left, tile.top] * 2)
            found.append(own._replace(boxes_xyxy=own.boxes_xyxy - corner))
        yield found, batch


def test_an_image_is_given_out_with_its_last_view_and_none_before():
    images = WholeImages()
    for number, size in enumerate([(150, 200), (40, 40), (64, 300)]):
        objects = [(0, (5.0, 5.0, 15.0, 15.0)), (1, (30.0, 20.0, 38.0, 30.0))]
        views = len(TILES.views(*size))
        given = [
            image
            for found, batch in batches(size, objects, 4, number)
            for image in images.add(found, batch, TILES)
        ]
        ((detections, batch),) = given
        assert batch.image_ids == (number,)
        assert batch.original_sizes == (size,)
        assert batch.annotations.counts == (3,)
        assert batch.pieces is None
        assert sorted(detections.boxes_xyxy.tolist()) == sorted([list(box) for _, box in objects])
        assert views == (1 if max(size) <= 64 else views)


def test_an_evaluation_that_was_cut_short_leaves_nothing_for_the_next():
    images, objects = WholeImages(), [(0, (5.0, 5.0, 15.0, 15.0))]
    found, batch = next(iter(batches((150, 200), [(0, (30.0, 30.0, 40.0, 40.0))], 4, 0)))
    assert list(images.add(found, batch, TILES)) == []
    images.reset()
    given = [image for one, own in batches((64, 300), objects, 4, 1) for image in images.add(one, own, TILES)]
    ((detections, batch),) = given
    assert batch.image_ids == (1,)
    assert batch.annotations.counts == (3,)
    assert detections.boxes_xyxy.tolist() == [list(box) for _, box in objects]
