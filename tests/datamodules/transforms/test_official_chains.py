"""For equal numbers the transforms give what the official chains give: boxes, labels, masks and pixels.

The chains are restated in PIL operations in benchmarks/official_chains.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from datamodules.transforms.color import Distort
from datamodules.transforms.geometry import Crop, HorizontalFlip, Resize, ZoomOut
from datamodules.transforms.plan import Placed, Plan
from datamodules.transforms.presets import build_transform
from datamodules.transforms.targets import ImageTargets
from zoo.contract.photometric import Distortion, distort_batch
from zoo.contract.preprocess import InputContract, image_to_tensor


def _chains():
    path = Path(__file__).parents[3] / "benchmarks" / "official_chains.py"
    spec = importlib.util.spec_from_file_location("official_chains", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["official_chains"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


official = _chains()
DETR = InputContract(resize="shortest", size=(800, 1333))
RT_DETR = InputContract(resize="stretch", size=(640, 640))
SIZES = [(60, 80), (83, 61), (47, 131), (200, 57), (99, 99)]


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth colours with noise on them, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-15, 16, smooth.shape)).clip(0, 255).astype(np.uint8))


def objects(size: tuple[int, int], seed: int) -> ImageTargets:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 7))
    corners = rng.uniform(0, 1, (count, 2, 2)) * [size[1], size[0]]
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
    masks = torch.from_numpy(rng.random((count, *size)) < 0.5)
    return ImageTargets(torch.arange(count), torch.from_numpy(boxes), masks)


def operation(plan: Plan, kind: type):
    """The first operation of a kind; None if there is none."""
    return next((o for o in plan.operations if isinstance(o, kind)), None)


def difference(found: torch.Tensor, wanted: Image.Image) -> int:
    return int((found.int() - torch.from_numpy(np.array(wanted)).permute(2, 0, 1).int()).abs().max())


def as_target(targets: ImageTargets) -> dict[str, torch.Tensor]:
    return {"boxes": targets.boxes_xyxy, "labels": targets.labels, "masks": targets.masks}


def assert_same_objects(out, wanted: dict[str, torch.Tensor], size: tuple[int, int]) -> None:
    assert torch.equal(out.labels, wanted["labels"])
    assert torch.equal(out.boxes, official.unit_boxes(wanted["boxes"], *size))
    assert torch.equal(out.masks, wanted["masks"])


@pytest.mark.parametrize("seed", range(24))
def test_detr_training(seed):
    size = SIZES[seed % len(SIZES)]
    image, targets = picture(size, seed), objects(size, seed)
    transform = build_transform("detr", DETR)
    plan = transform.draw(size, targets.boxes_xyxy, seed)
    crop, last = operation(plan, Crop), plan.operations[-1]
    assert isinstance(last, Resize)
    side = next(s for s in official.SIDES if official.side_rule(*last.canvas[::-1], s, 1333) == last.size)
    choices = official.DetrChoices(operation(plan, HorizontalFlip) is not None, side)
    if crop is not None:
        before = min(operation(plan, Resize).size)
        region = (crop.top, crop.left, crop.height, crop.width)
        choices = official.DetrChoices(choices.flip, side, before, region)

    wanted, target = official.detr_train(image, as_target(targets), choices)
    for backend, levels in (("pil", 0), ("fast", 1 if crop is None else 2)):
        out = build_transform("detr", DETR.with_backend(backend)).apply(image, targets, plan)
        assert difference(out.image, wanted) <= levels
        assert_same_objects(out, target, wanted.size)


def rt_detr_choices(plan: Plan):
    d = operation(plan, Distort).distortion
    zoom, crop = operation(plan, ZoomOut), operation(plan, Crop)
    return official.RtDetrChoices(
        brightness=None if d.brightness == 1 else d.brightness,
        contrast=None if d.contrast == 1 else d.contrast,
        saturation=None if d.saturation == 1 else d.saturation,
        hue=None if d.hue == 0 else d.hue,
        contrast_first=d.contrast_first,
        channels=d.channels,
        zoom=None if zoom is None else (zoom.top, zoom.left, *zoom.size),
        crop=None if crop is None else (crop.top, crop.left, crop.height, crop.width),
        flip=operation(plan, HorizontalFlip) is not None,
    )


def by_torchvision(image: torch.Tensor, choices, size: tuple[int, int]) -> torch.Tensor:
    """The same chain in torchvision's operations on a uint8 tensor."""
    for name, factor in (
        ("brightness", choices.brightness),
        ("contrast", choices.contrast if choices.contrast_first else None),
        ("saturation", choices.saturation),
        ("hue", choices.hue),
        ("contrast", None if choices.contrast_first else choices.contrast),
    ):
        if factor is not None:
            image = getattr(TF, f"adjust_{name}")(image, factor)
    image = image[list(choices.channels)]
    if choices.zoom is not None:
        top, left, height, width = choices.zoom
        _, h, w = image.shape
        image = TF.pad(image, [left, top, width - left - w, height - top - h])
    if choices.crop is not None:
        image = TF.crop(image, *choices.crop)
    if choices.flip:
        image = TF.horizontal_flip(image)
    return TF.resize(image, list(size), antialias=True)


@pytest.mark.parametrize("seed", range(40))
def test_rt_detr_training(seed):
    """The chain on uint8 tensors is torchvision's to a level (of a hue); by PIL it is the official one exactly."""
    size = SIZES[seed % len(SIZES)]
    image, targets = picture(size, seed), objects(size, seed)
    plan = build_transform("rt_detr", RT_DETR).draw(size, targets.boxes_xyxy, seed)
    choices = rt_detr_choices(plan)
    wanted, target = official.rt_detr_train(image, as_target(targets), choices)

    by_pil = build_transform("rt_detr", RT_DETR.with_backend("pil")).apply(image, targets, plan)
    assert difference(by_pil.image, wanted) == 0
    assert_same_objects(by_pil, target, wanted.size)

    fast = build_transform("rt_detr", RT_DETR).apply(image, targets, plan)
    reference = by_torchvision(image_to_tensor(image), choices, (640, 640))
    apart = (fast.image.int() - reference.int()).abs()
    # the channel of a colour that is a whole level by chance may be rounded down past it
    assert apart.max() <= (0 if choices.hue is None else 1)
    assert apart.float().mean() < 1e-3
    assert_same_objects(fast, target, wanted.size)


def test_every_part_of_the_chains_is_drawn():
    """The seeds above would prove little if they left a part out."""
    drawn = []
    for seed in range(40):
        size = SIZES[seed % len(SIZES)]
        boxes = objects(size, seed).boxes_xyxy
        drawn.append(rt_detr_choices(build_transform("rt_detr", RT_DETR).draw(size, boxes, seed)))
    for name in ("brightness", "contrast", "saturation", "hue", "zoom", "crop"):
        present = sum(getattr(c, name) is not None for c in drawn)
        assert 5 <= present <= 35, name
    assert any(c.zoom and c.crop and c.flip for c in drawn)
    detr = [build_transform("detr", DETR).draw((60, 80), torch.zeros(0, 4), seed) for seed in range(24)]
    assert 6 <= sum(operation(plan, Crop) is not None for plan in detr) <= 18


@pytest.mark.parametrize("place", [(0, 0, 40, 60), (13, 7, 200, 150), (100, 0, 141, 61), (30, 90, 91, 300)])
@pytest.mark.parametrize("size", [(64, 64), (37, 200), (300, 40)])
def test_a_resize_without_the_canvas_is_the_resize_of_the_canvas(place, size):
    image = image_to_tensor(picture((40, 60), 1))
    top, left, height, width = place
    placed = ZoomOut(top, left, (height, width)).on_tensor(Placed.whole(image))
    assert torch.equal(placed.resized(size), TF.resize(placed.on_canvas(), list(size), antialias=True))
    assert torch.equal(placed.on_canvas(), TF.pad(image, [left, top, width - left - 60, height - top - 40]))


@pytest.mark.parametrize(
    "distortion",
    [
        Distortion(brightness=1.12),
        Distortion(brightness=0.88, contrast=1.4),
        Distortion(contrast=0.6, contrast_first=False, saturation=0.7),
        Distortion(saturation=1.4, channels=(2, 0, 1)),
        Distortion(hue=0.05),
        Distortion(hue=-0.05),
        Distortion(hue=0.49),
        Distortion(0.9, 1.3, 0.8, -0.03, True, (1, 0, 2)),
        Distortion(1.1, 0.7, 1.2, 0.03, False, (2, 1, 0)),
    ],
)
def test_distortion_equals_torchvision_on_uint8(distortion):
    """Exactly without hue; with it one level in at most one of 2000 values, by another order of float operations."""
    image = torch.cat(
        [image_to_tensor(picture((60, 90), 3)), torch.randint(0, 256, (3, 40, 90), dtype=torch.uint8)], 1
    )
    found = Distort(distortion).on_tensor(Placed.whole(image)).image
    d = distortion
    choices = official.RtDetrChoices(
        d.brightness, d.contrast, d.saturation, d.hue or None, d.contrast_first, d.channels, None, None, False
    )
    apart = (found.int() - by_torchvision(image, choices, tuple(image.shape[1:])).int()).abs()
    assert apart.max() <= (0 if d.hue == 0 else 1)
    assert (apart > 0).float().mean() < 5e-4


def test_photometric_on_the_device_stays_near_the_published_order():
    """The same plan with the distortion behind the resize: the objects equal, the pixels near."""
    contract, levels = InputContract(resize="stretch", size=(64, 64)), []
    for seed in range(30):
        size = SIZES[seed % len(SIZES)]
        image, targets = picture(size, seed), objects(size, seed)
        worker = build_transform("rt_detr", contract)(image, targets, seed)
        device = build_transform("rt_detr", contract, photometric="device")(image, targets, seed)
        assert worker.photometric is None
        assert torch.equal(worker.boxes, device.boxes)
        assert torch.equal(worker.masks, device.masks)
        late = distort_batch(device.image[None].float(), device.photometric[None])[0]
        black = (worker.image == 0).all(dim=0) & (device.image == 0).all(dim=0)
        assert not late[:, black].any()
        levels.append((late - worker.image.float()).abs().mean().item())
    assert max(levels) < 12
    assert sorted(levels)[15] < 2


def test_photometric_on_the_device_needs_a_preset_that_distorts():
    with pytest.raises(
        ValueError, match=r"photometric: device has nothing to do with train_transform 'detr'"
    ):
        build_transform("detr", DETR, photometric="device")
