"""DETR's training chain: sizes, probabilities, and draws that are a function of the seed alone."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms.draws import DETR_SIDES, draw_size_crop
from datamodules.transforms.geometry import Crop
from datamodules.transforms.presets import build_transform
from datamodules.transforms.targets import ImageTargets
from zoo.contract.preprocess import InputContract

CONTRACT = InputContract(resize="shortest", size=(800, 1333))


def picture(width: int, height: int) -> Image.Image:
    """A gradient, so that a flip, a crop and a resize all show."""
    x = np.linspace(0, 255, width)[None] + np.zeros((height, 1))
    y = np.linspace(0, 255, height)[:, None] + np.zeros((1, width))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


def run(seed: int, size=(64, 48), boxes=((8.0, 8.0, 40.0, 30.0),), contract=CONTRACT):
    targets = ImageTargets(torch.arange(len(boxes)), torch.tensor(boxes).reshape(-1, 4))
    return build_transform("detr", contract)(picture(*size), targets, seed)


def test_sizes_are_those_of_the_rule_and_half_of_the_images_are_cropped():
    uncropped, shorter, flipped = 0, set(), 0
    for seed in range(150):
        out = run(seed)
        height, width = out.image.shape[-2:]
        assert out.image.dtype == torch.uint8
        assert max(height, width) <= 1336
        side = min(height, width)
        if (height, width) == CONTRACT_SIZES[side]:
            uncropped += 1
            shorter.add(side)
            flipped += int(out.boxes[0, 0] > 0.5)
    assert 50 <= uncropped <= 105
    assert len(shorter) == len(DETR_SIDES)
    assert 0.3 < flipped / uncropped < 0.7


CONTRACT_SIZES = {
    side: InputContract(resize="shortest", size=(side, 1333)).resized_size(48, 64)
    for side in range(300, 1400)
}


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_boxes_follow_the_pixels(backend):
    """The gradient tells where a box's corner came from."""
    contract = CONTRACT.with_backend(backend)
    for seed in range(20):
        out = run(seed, contract=contract)
        height, width = out.image.shape[-2:]
        for cx, cy, w, h in out.boxes.tolist():
            x = int(min(max(cx, 0), 1) * (width - 1))
            y = int(min(max(cy, 0), 1) * (height - 1))
            red, green, _ = (out.image[:, y, x].double() / 255).tolist()
            whole = abs(w * width / (h * height) - 32 / 22) < 0.02
            if whole:  # not clipped: its centre is the centre of the object, mirrored or not
                assert min(abs(red - 24 / 64), abs(red - 40 / 64)) < 0.03
                assert abs(green - 19 / 48) < 0.03


def test_draws_depend_on_the_seed_alone():
    first, again, other = run(3), run(3), run(4)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_crop_bounds_are_inclusive_and_fit_the_image():
    seen, corners = set(), set()
    for seed in range(300):
        place = draw_size_crop(Random(seed), (4, 9), 3, 5)
        seen.add((place.width, place.height))
        corners.add((place.top, place.left))
        assert 0 <= place.top <= 4 - place.height
        assert 0 <= place.left <= 9 - place.width
    assert seen == {(w, h) for w in (3, 4, 5) for h in (3, 4)}
    assert corners == {(top, left) for top in (0, 1) for left in range(7)}


def test_crop_clips_and_drops_what_is_outside():
    boxes = [[0.0, 0.0, 10.0, 10.0], [30.0, 30.0, 40.0, 40.0], [15.0, 5.0, 90.0, 20.0]]
    targets = ImageTargets(torch.tensor([7, 8, 9]), torch.tensor(boxes))
    left = Crop(top=5, left=10, height=20, width=30).on_targets(targets)
    assert left.labels.tolist() == [9]
    assert left.boxes_xyxy.tolist() == [[5.0, 0.0, 30.0, 15.0]]


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (100, 1000), (333, 333)])
def test_final_size_is_known_before_the_image_is_read(size):
    transform = build_transform("detr", CONTRACT)
    nothing = ImageTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    for seed in range(12):
        out = transform(torch.zeros(3, *size, dtype=torch.uint8), nothing, seed)
        assert tuple(out.image.shape[1:]) == transform.final_size(size, seed)


def test_small_objects_stay():
    """The official code drops no object for its size: this one is a quarter of a pixel in the end."""
    kept = [
        len(run(seed, size=(2000, 1500), boxes=((999.0, 749.0, 999.5, 749.5),)).labels) for seed in range(12)
    ]
    assert sum(kept) >= 4  # none only where a crop has missed it


def test_an_image_without_objects_passes():
    out = run(0, boxes=())
    assert out.labels.shape == (0,)
    assert out.boxes.shape == (0, 4)
