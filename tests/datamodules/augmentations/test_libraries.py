"""Operations of both libraries: a function of image and seed that leaves every global generator alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from datamodules.augmentations.block import parse
from datamodules.augmentations.libraries import AugmentationError, carried_out
from datamodules.transforms.targets import ImageTargets

pytest.importorskip("albumentations")
V2 = "torchvision.transforms.v2"
HEIGHT, WIDTH = 48, 64
BOXES = {
    "none": [],
    "one": [[10.0, 8.0, 40.0, 30.0]],
    "edge": [[0.0, 0.0, WIDTH, HEIGHT], [60.0, 40.0, WIDTH, HEIGHT]],
    "tiny": [[5.0, 5.0, 5.25, 5.5], [63.9, 47.9, WIDTH, HEIGHT]],
}
OPERATIONS = [
    {f"{V2}.ColorJitter": {"brightness": 0.5, "hue": 0.1}},
    {f"{V2}.GaussianNoise": {}},
    {f"{V2}.RandomAffine": {"degrees": 30, "translate": [0.3, 0.3]}},
    {f"{V2}.RandomIoUCrop": {}},
    {f"{V2}.RandomZoomOut": {"p": 1.0}},
    {f"{V2}.RandomChoice": {"transforms": [f"{V2}.RandomHorizontalFlip", {f"{V2}.JPEG": {"quality": [5, 50]}}]}},
    {"albumentations.RandomRain": {"p": 1.0}},
    {"albumentations.GaussNoise": {"p": 1.0}},
    {"albumentations.Rotate": {"limit": 45, "p": 1.0}},
    {"albumentations.RandomCrop": {"height": 24, "width": 24, "p": 1.0}},
    {"albumentations.CoarseDropout": {"p": 1.0}},
    {"albumentations.OneOf": {"transforms": ["albumentations.Blur", "albumentations.D4"], "p": 1.0}},
]  # fmt: skip


def image(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)


def targets(kind: str, masks: bool) -> ImageTargets:
    boxes = torch.tensor(BOXES[kind], dtype=torch.float32).reshape(-1, 4)
    filled = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(filled, boxes.tolist(), strict=True):
        mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
    return ImageTargets(torch.arange(len(boxes)) + 5, boxes, filled if masks else None)


def states() -> tuple:
    return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def stir() -> None:
    torch.rand(3)
    np.random.rand(3)
    random.random()


@pytest.mark.parametrize("block", OPERATIONS, ids=lambda block: next(iter(block)).rpartition(".")[2])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", BOXES)
def test_an_image_and_a_seed_say_all_and_no_global_generator_moves(block, kind, masks):
    entry = parse([block])[0]
    original = image()
    for seed in range(3):
        before = states()
        pixels, found = carried_out(entry, original, targets(kind, masks), seed)
        assert states() == before
        stir()
        again, repeated = carried_out(entry, original, targets(kind, masks), seed)
        assert torch.equal(pixels, again)
        assert torch.equal(found.boxes_xyxy, repeated.boxes_xyxy)
        assert torch.equal(found.labels, repeated.labels)
        assert torch.equal(original, image())  # nothing is written into it
        low, high = found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:]
        limit = torch.tensor([pixels.shape[2], pixels.shape[1]])
        assert ((low >= 0) & (low < high) & (high <= limit)).all()
        if masks:
            assert found.masks.shape == (len(found.labels), *pixels.shape[1:])
            assert found.masks.flatten(1).any(1).all()


def test_different_seeds_differ():
    entry = parse([{"albumentations.Rotate": {"limit": 45, "p": 1.0}}])[0]
    assert not torch.equal(*(carried_out(entry, image(), targets("one", False), seed)[0] for seed in (0, 1)))


@pytest.mark.parametrize(
    "path",
    [f"{V2}.RandomHorizontalFlip", "albumentations.HorizontalFlip"],
    ids=["torchvision", "albumentations"],
)
def test_boxes_and_masks_go_with_the_pixels(path):
    given = targets("one", True)
    pixels, found = carried_out(parse([{path: {"p": 1.0}}])[0], image(), given, 0)
    assert torch.equal(pixels, image().flip(-1))
    assert torch.equal(found.masks, given.masks.flip(-1))
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([[24.0, 8.0, 54.0, 30.0]]))


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({f"{V2}.Grayscale": {}}, "channels must stay"),
        ({f"{V2}.RandomCrop": {"size": [100, 100]}}, "larger than"),
        (
            {"albumentations.RandomCrop": {"height": 100, "width": 100, "p": 1.0}},
            "fails on an image of 48x64",
        ),
    ],
)
def test_an_operation_that_cannot_be_used_says_so_in_one_line(block, told):
    with pytest.raises(AugmentationError) as error:
        carried_out(parse([block])[0], image(), targets("one", False), 0)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("out", "told"),
    [
        (lambda d: {**d, "image": d["image"].float() / 0}, "8-bit"),
        (lambda d: {**d, "boxes": d["boxes"][:0]}, "0 boxes for 1 objects"),
        (lambda d: {**d, "boxes": d["boxes"] * float("nan")}, "not finite"),
        (lambda d: {**d, "image": d["image"][:, :9]}, "masks"),
    ],
)
def test_what_an_operation_gives_is_looked_at(monkeypatch, out, told):
    from datamodules.augmentations import libraries

    entry = parse([f"{V2}.RandomInvert"])[0]
    monkeypatch.setattr(libraries, "_operation", lambda e: libraries._torchvision(e, out))
    with pytest.raises(AugmentationError, match=told):
        carried_out(entry, image(), targets("one", True), 0)


def test_degenerate_leftovers_and_emptied_masks_are_dropped(monkeypatch):
    from datamodules.augmentations import libraries

    given = targets("edge", True)

    def cut(d: dict) -> dict:
        masks = d["masks"].clone()
        masks[1] = False
        return {**d, "masks": masks}

    monkeypatch.setattr(libraries, "_operation", lambda e: libraries._torchvision(e, cut))
    _, found = carried_out(parse([f"{V2}.RandomInvert"])[0], image(), given, 0)
    assert found.labels.tolist() == [5]
