"""Mosaics: torchvision's affine map, objects that stay where their pixels are, and draws that are what they say."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from datamodules.transforms.mosaic import Affine, Mosaic
from datamodules.transforms.targets import ImageTargets

MOSAIC = Mosaic(epochs=(0, 9), probability=1.0, side=40, rotation=10.0, translation=0.1, scale=(0.5, 1.5))
SIZES = [(30, 40), (50, 30), (64, 64), (25, 90), (80, 41)]
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]


def picture(row: int) -> tuple[Image.Image, ImageTargets]:
    """Grey, with one rectangle of the row's colour that fills its box."""
    height, width = SIZES[row]
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    x0, y0, x1, y1 = width // 4, height // 4, width * 3 // 4, height * 3 // 4
    pixels[y0:y1, x0:x1] = COLOURS[row]
    boxes = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
    return Image.fromarray(pixels), ImageTargets(torch.tensor([row]), boxes)


@pytest.mark.parametrize("seed", range(6))
def test_the_affine_map_is_torchvisions(seed):
    random = Random(seed)
    size = (60, 86)
    affine = Affine(
        size, random.uniform(-10, 10), random.randint(-9, 9), random.randint(-6, 6), random.uniform(0.5, 1.5)
    )
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    corners = np.sort(rng.uniform(0, 1, (5, 2, 2)), axis=1) * [size[1], size[0]]
    boxes = torch.from_numpy(corners.reshape(5, 4).astype(np.float32))
    arguments = {
        "angle": affine.angle,
        "translate": [affine.x, affine.y],
        "scale": affine.scale,
        "shear": [0.0, 0.0],
    }
    wanted = TF.affine(image, **arguments)
    assert np.array_equal(np.asarray(affine.on_image(image)), np.asarray(wanted))
    given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    wanted_boxes = TF.affine(given, **arguments).as_subclass(torch.Tensor)
    found = affine.on_targets(ImageTargets(torch.arange(5), boxes))
    solid = (wanted_boxes[:, 2:] > wanted_boxes[:, :2]).all(dim=1)
    assert found.labels.tolist() == solid.nonzero()[:, 0].tolist()
    torch.testing.assert_close(found.boxes_xyxy, wanted_boxes[solid], atol=1e-3, rtol=0)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_objects_stay_where_their_pixels_are(seed, as_tensor):
    plan = MOSAIC.draw(1, len(SIZES), lambda row: SIZES[row], seed)
    found = [picture(row) for row in plan.rows]
    images = [TF.pil_to_tensor(image) if as_tensor else image for image, _ in found]
    canvas = np.asarray(plan.image(images)).astype(int)
    targets = plan.targets([own for _, own in found])
    assert canvas.shape == (*plan.size, 3)
    boxes = targets.boxes_xyxy.numpy()
    assert (boxes >= 0).all()
    assert (boxes <= [plan.size[1], plan.size[0]] * 2).all()
    for row in set(plan.rows):
        ys, xs = (np.abs(canvas - COLOURS[row]).sum(axis=2) < 40).nonzero()
        own = boxes[targets.labels.numpy() == row]
        covered = np.zeros(len(xs), dtype=bool)
        for x0, y0, x1, y1 in own:
            covered |= (xs > x0 - 2) & (xs < x1 + 1) & (ys > y0 - 2) & (ys < y1 + 1)
        assert covered.all()
        for x0, y0, x1, y1 in own:  # and no box is empty or far too large
            inside = (xs >= x0 - 2) & (xs <= x1 + 1) & (ys >= y0 - 2) & (ys <= y1 + 1)
            if min(x1 - x0, y1 - y0) >= 3:
                assert inside.sum() > 0.4 * (x1 - x0) * (y1 - y0)


def test_tiles_are_the_shorter_side_and_stand_in_the_quarters():
    plan = MOSAIC.draw(0, 5, lambda row: SIZES[row], 3)
    assert plan.rows[0] == 0
    assert [min(tile) for tile in plan.tiles] == [40] * 4
    height, width = (max(tile[axis] for tile in plan.tiles) for axis in (0, 1))
    assert plan.size == (2 * height, 2 * width)
    assert plan.corners() == [(0, 0), (0, width), (height, 0), (height, width)]


def test_draws_are_what_they_say():
    plans = [
        Mosaic(**{**vars(MOSAIC), "probability": 0.3}).draw(7, 50, lambda row: (30, 40), seed)
        for seed in range(3000)
    ]
    drawn = [plan for plan in plans if plan is not None]
    assert 0.27 < len(drawn) / len(plans) < 0.33
    partners = [row for plan in drawn for row in plan.rows[1:]]
    assert set(partners) == set(range(50))
    affines = [plan.affine for plan in drawn]
    for values, low, high in (
        ([a.angle for a in affines], -10, 10),
        ([a.scale for a in affines], 0.5, 1.5),
        ([a.x for a in affines], -11, 11),  # a tenth of 2 x 53
        ([a.y for a in affines], -8, 8),
    ):
        span = high - low
        assert low <= min(values) < low + 0.1 * span
        assert high - 0.1 * span < max(values) <= high


def test_a_strip_that_would_need_a_huge_canvas_stays_alone():
    assert MOSAIC.draw(0, 1, lambda row: (10, 101), 0) is None
    assert MOSAIC.draw(0, 1, lambda row: (10, 100), 0) is not None
