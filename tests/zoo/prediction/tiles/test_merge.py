"""Every object of an image is found once: on seams, on corners, larger than overlap or tile, beside its like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tile_views import Box, Object, all_views

from zoo.contract.batch import Detections
from zoo.contract.tiles import Tile, Tiles
from zoo.prediction.tiles.merge import View, merge

SIZE = (300, 400)
GRID = Tiles(size=(128, 160), overlap=0.25)  # shares 32 rows and 40 columns


def centred(x: float, y: float, w: float, h: float) -> Box:
    """Around a place, moved into the image."""
    x0, y0 = min(max(x - w / 2, 0), SIZE[1] - w), min(max(y - h / 2, 0), SIZE[0] - h)
    return x0, y0, x0 + w, y0 + h


def edges(tiles: Tiles) -> tuple[list[int], list[int]]:
    """x of all vertical edges of the tiles inside the image, y of all horizontal ones."""
    cut = tiles.cut(*SIZE)
    across = sorted({e for t in cut for e in (t.left, t.right)} - {0, SIZE[1]})
    down = sorted({e for t in cut for e in (t.top, t.bottom)} - {0, SIZE[0]})
    return across, down


def assert_each_once(found: Detections, objects: list[Object], least: float, *, where: str = "") -> None:
    """Every object has a detection of its own with an IoU of `least`, and there is no other detection."""
    left = list(range(len(found.scores)))
    for label, box in objects:
        best = max(left, key=lambda n: iou(found.boxes_xyxy[n].tolist(), box) * (found.labels[n] == label),
                   default=None)  # fmt: skip
        assert best is not None, f"{where}: lost {box}"
        own = found.boxes_xyxy[best].tolist()
        assert found.labels[best] == label, where
        assert iou(own, box) >= least, f"{where}: {box} became {own}"
        left.remove(best)
    assert not left, f"{where}: {[found.boxes_xyxy[n].tolist() for n in left]} is there twice"


def iou(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def merged(objects: list[Object], tiles: Tiles = GRID, **changes) -> Detections:
    return merge(all_views(objects, SIZE, tiles, **changes), SIZE)


SIDES = {
    "a dot": (6, 6),
    "as the overlap": (38, 30),
    "larger than the overlap": (70, 60),
    "a strip": (150, 10),
    "nearly a tile": (150, 120),
    "larger than a tile": (230, 180),
    "wide": (390, 40),
}


@pytest.mark.parametrize("with_whole", [True, False], ids=["with whole image", "tiles alone"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_an_object_on_every_seam_and_every_corner_is_found_once(sides, overlap, with_whole):
    tiles = Tiles(size=(128, 160), overlap=overlap)
    across, down = edges(tiles)
    places = {(x, y) for x in across for y in (*down, 0, SIZE[0])}
    places |= {(x, y) for x in (0, SIZE[1]) for y in down}
    for shift in (0, 3):  # on the edge, and beside it
        for x, y in sorted(places):
            one = [(0, centred(x + shift, y - shift, *sides))]
            assert_each_once(merged(one, tiles, with_whole=with_whole), one, 0.93, where=f"{x}, {y}")


@pytest.mark.parametrize("seed", range(4))
def test_boxes_that_are_a_little_off_are_still_one_object(seed):
    across, down = edges(GRID)
    for w, h in ((12, 12), (36, 28), (90, 70), (240, 180)):
        for x in across:
            for y in down:
                one = [(1, centred(x, y, w, h))]
                found = merged(one, seed=seed, jitter=0.04, least=0.1, smallest_in_whole=14)
                assert_each_once(found, one, 0.75, where=f"{w}x{h} at {x}, {y}")


@pytest.mark.parametrize("gap", [0.0, 1.0])
@pytest.mark.parametrize("side", [10, 24])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_identical_neighbours_that_fill_the_image_all_stay(side, gap, overlap):
    step = side + gap
    objects = [
        (0, (x, y, x + side, y + side))
        for x in np.arange(0, SIZE[1] - side, step)
        for y in np.arange(0, SIZE[0] - side, step)
    ]
    found = merged(objects, Tiles(size=(128, 160), overlap=overlap), least=0.2, smallest_in_whole=14)
    assert len(found.scores) == len(objects)
    own = {tuple(round(v, 2) for v in box) for box in found.boxes_xyxy.tolist()}
    assert own == {tuple(round(float(v), 2) for v in box) for _, box in objects}


@pytest.mark.parametrize("step", [12.0, 8.0, 5.0])
def test_neighbours_that_overlap_all_stay(step):
    """By up to four fifths: two views of one object overlap no more than two objects of one view."""
    objects = [(0, (x, 90.0, x + 24, 114.0)) for x in np.arange(0, 370, step)]
    assert_each_once(merged(objects, least=0.3), objects, 0.9)


def test_an_object_inside_another_of_its_class_stays():
    objects = [
        (0, (20.0, 20.0, 380.0, 280.0)),
        (0, (150.0, 100.0, 170.0, 120.0)),
        (0, (100.0, 60.0, 240.0, 200.0)),
    ]
    assert_each_once(merged(objects, least=0.2, smallest_in_whole=30), objects, 0.95)


def test_classes_are_kept_apart():
    box = centred(150, 100, 30, 30)
    objects = [(0, box), (1, box), (7, box)]
    assert_each_once(merged(objects), objects, 0.99)


def test_parts_of_two_rows_of_large_objects_are_not_joined_with_each_other():
    objects = [
        (0, (10.0, 10.0, 290.0, 60.0)),
        (0, (10.0, 62.0, 290.0, 112.0)),
        (0, (295.0, 10.0, 390.0, 60.0)),
    ]
    assert_each_once(merged(objects, with_whole=False), objects, 0.95)


def test_a_part_stays_where_nothing_else_shows_the_object():
    whole, tile = GRID.views(*SIZE)[0], GRID.cut(*SIZE)[0]
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    part = Detections(torch.tensor([0.9]), torch.tensor([3]), torch.tensor([[100.0, 20.0, 160.0, 50.0]]))
    found = merge([View(whole, nothing), View(tile, part)], SIZE)
    assert found.boxes_xyxy.tolist() == [[100.0, 20.0, 160.0, 50.0]]


def test_a_doubtful_whole_does_not_take_the_place_of_a_sure_part():
    whole, tile = GRID.views(*SIZE)[0], GRID.cut(*SIZE)[0]
    part = Detections(torch.tensor([0.9]), torch.tensor([0]), torch.tensor([[100.0, 20.0, 160.0, 50.0]]))
    doubtful = Detections(torch.tensor([0.02]), torch.tensor([0]), torch.tensor([[0.0, 0.0, 400.0, 300.0]]))
    found = merge([View(whole, doubtful), View(tile, part)], SIZE)
    assert found.scores.tolist() == pytest.approx([0.9, 0.02])


def test_a_joined_detection_has_the_best_score_of_its_views_and_the_box_that_is_not_cut():
    first, second = GRID.cut(*SIZE)[:2]
    whole_box, trimmed = [115.0, 20.0, 165.0, 50.0], [115.0, 20.0, float(first.right), 50.0]
    sure = View(first, Detections(torch.tensor([0.9]), torch.tensor([0]), torch.tensor([trimmed])))
    weak = View(second, Detections(torch.tensor([0.6]), torch.tensor([0]), torch.tensor([whole_box])))
    found = merge([sure, weak], SIZE)
    assert found.boxes_xyxy.tolist() == [whole_box]
    assert found.scores.tolist() == pytest.approx([0.9])


def test_views_without_detections_give_none():
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert len(merge([View(Tile(0, 0, 4, 4), nothing)], (4, 4)).scores) == 0


def test_the_order_of_the_views_changes_nothing_but_ties():
    rng = np.random.default_rng(5)
    objects = [
        (int(rng.integers(3)), centred(*rng.uniform(0, 400, 2), *rng.uniform(8, 200, 2))) for _ in range(80)
    ]
    views = all_views(objects, SIZE, GRID, jitter=0.03, least=0.2)
    one, other = merge(views, SIZE), merge(views[::-1], SIZE)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)


def test_only_the_best_of_a_class_are_looked_at_where_that_is_asked_for():
    objects = [(n % 2, (x, 40.0, x + 8, 48.0)) for n, x in enumerate(np.arange(0.0, 390, 10))]
    views = all_views(objects, SIZE, GRID)
    every, few = merge(views, SIZE), merge(views, SIZE, most=12)
    assert len(every.scores) == len(objects)
    best = {label: sorted(every.scores[every.labels == label].tolist())[-1] for label in (0, 1)}
    for label, score in best.items():
        own = few.scores[few.labels == label]
        assert 0 < len(own) <= 12
        assert own.max() == score
