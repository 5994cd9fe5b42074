from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms.geometry import Crop
from datamodules.transforms.presets import PRESETS, build_transform
from datamodules.transforms.targets import ImageTargets
from zoo.contract.boxes import cxcywh_to_xyxy
from zoo.contract.preprocess import InputContract

SIZE = (60, 90)  # h, w
BOXES = torch.tensor([[10.0, 10.0, 40.0, 35.0], [50.0, 20.0, 80.0, 55.0]])


def picture() -> Image.Image:
    """Black, with a red and a blue rectangle that fill the boxes."""
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    for (x0, y0, x1, y1), color in zip(BOXES.int().tolist(), [(250, 0, 0), (0, 0, 250)], strict=True):
        pixels[y0:y1, x0:x1] = color
    return Image.fromarray(pixels)


def transformed(name: str, backend: str, seed: int, flip_both: bool = False):
    contract = InputContract(resize="stretch", size=(120, 180), backend=backend)
    targets = ImageTargets(torch.tensor([0, 1]), BOXES.clone())
    return build_transform(name, contract, flip_both)(picture(), targets, seed)


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("name", PRESETS)
def test_boxes_follow_the_pixels(name, backend):
    kept = 0
    for seed in range(25):
        out = transformed(name, backend, seed)
        assert out.image.dtype == torch.uint8
        assert out.image.shape == (3, 120, 180)
        assert out.boxes.dtype == torch.float32
        corners = cxcywh_to_xyxy(out.boxes) * torch.tensor([180.0, 120.0] * 2)
        assert corners.min() >= -1e-3
        assert (corners[:, 2:] <= torch.tensor([180.0, 120.0]) + 1e-3).all()
        kept += len(corners)
        # outside of all boxes the picture has one colour: whatever rectangle was left lies in its box
        outside = torch.ones(120, 180, dtype=torch.bool)
        for x0, y0, x1, y1 in corners.tolist():
            outside[max(0, int(y0) - 3) : int(y1) + 4, max(0, int(x0) - 3) : int(x1) + 4] = False
            inside = out.image[:, int(y0) + 4 : int(y1) - 3, int(x0) + 4 : int(x1) - 3].float()
            if inside.numel():
                assert inside.std(dim=(1, 2)).max() < 12
        if (
            len(corners) == 2 and name != "rt_detr"
        ):  # zoom-out adds black to a background that may be no longer black
            assert out.image[:, outside].float().std(dim=1).max() < 12
    assert kept >= 25


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "none"])
def test_presets_draw(name):
    images = [transformed(name, "fast", seed).image for seed in range(8)]
    assert any(not torch.equal(images[0], other) for other in images[1:])


def test_none_draws_nothing():
    assert torch.equal(transformed("none", "fast", 0).image, transformed("none", "fast", 1).image)


def test_flip_both_also_turns_upside_down():
    tops = {transformed("flip", "fast", s, flip_both=True).boxes[0, 1].item() for s in range(20)}
    assert len(tops) == 2
    assert len({transformed("flip", "fast", s).boxes[0, 1].item() for s in range(20)}) == 1


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (3, 3)])
def test_tiny_images_without_objects_pass(name, size):
    empty = ImageTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    transform = build_transform(name, InputContract(resize="stretch", size=(16, 16)))
    for seed in range(30):
        out = transform(Image.new("RGB", (size[1], size[0])), empty, seed)
        assert out.image.shape == (3, 16, 16)
        assert out.boxes.shape == (0, 4)


def test_finetune_crops_a_part_of_the_same_aspect_and_keeps_the_objects_whose_centre_it_holds():
    transform, dropped = build_transform("finetune", InputContract(resize="stretch", size=(120, 180))), 0
    for seed in range(60):
        plan = transform.draw(SIZE, BOXES, seed)
        (crop,) = [o for o in plan.operations if isinstance(o, Crop)]
        assert 0 <= crop.top <= SIZE[0] - crop.height
        assert 0 <= crop.left <= SIZE[1] - crop.width
        assert abs(crop.height / SIZE[0] - crop.width / SIZE[1]) < 0.02
        assert 0.59 < crop.height / SIZE[0] <= 1
        low = torch.tensor([crop.left, crop.top])
        centres = (BOXES[:, :2] + BOXES[:, 2:]) / 2 - low
        held = ((centres > 0) & (centres < torch.tensor([crop.width, crop.height]))).all(dim=1)
        found = crop.on_targets(ImageTargets(torch.tensor([0, 1]), BOXES))
        assert found.labels.tolist() == torch.tensor([0, 1])[held].tolist()
        dropped += int((~held).sum())
    assert dropped > 5


def test_unknown_preset_names_those_there_are():
    with pytest.raises(ValueError, match=r"'rtdetr' is unknown; choose one of rt_detr, rt_detr_clean, flip"):
        build_transform("rtdetr", InputContract(resize="stretch", size=(16, 16)))
