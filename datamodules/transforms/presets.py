"""The presets: what is drawn at random, then the deterministic tail that the input contract gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.targets import ImageTargets, resized_targets
from datamodules.transforms.geometry import (
    RandomShortestSide,
    RandomSizeCrop,
    RandomTranspose,
    SafeIoUCrop,
    ZoomCrop,
)
from zoo.preprocess import InputContract, image_to_tensor

# Source: facebookresearch/detr@29901c5 datasets/coco.py, make_coco_transforms
DETR_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
DETR_SIDES_BEFORE_CROP = (400, 500, 600)
DETR_CROP = (384, 600)  # sides, both inclusive
DETR_LONGEST = 1333
_NO_LIMIT = 10**9


class Transformed(NamedTuple):
    """An image as the network gets it, and its objects."""

    image: Tensor  # [3, h, w] uint8
    labels: Tensor  # [n] int64
    boxes: Tensor  # [n, 4] float32 cxcywh in [0, 1]


class TrainTransform:
    """A preset on one image: random part in torchvision v2, then resize and normalised boxes.

    Draws from torch's global generator; the dataset seeds it for every image.

    Args:
        random: the random part; None for none.
        input: the contract whose resize ends the transform.
        resize: false where the random part has resized by the contract's rule already.
        min_size: boxes with a side below so many pixels at the end are dropped.
    """

    def __init__(
        self,
        random: v2.Transform | None,
        input: InputContract,
        resize: bool = True,
        min_size: float = 1.0,
    ) -> None:
        self._random = random
        self._input = input
        self._resize = resize
        self._min_size = min_size

    def __call__(self, image: Image.Image, targets: ImageTargets) -> Transformed:
        """An RGB image and its targets to what a `Sample` holds."""
        pixels: Any = image if self._input.backend == "pil" else tv_tensors.Image(image_to_tensor(image))
        canvas = (image.height, image.width)
        if self._random is not None:
            boxes = tv_tensors.BoundingBoxes(targets.boxes_xyxy, format="XYXY", canvas_size=canvas)  # type: ignore[call-overload]
            out = self._random({"image": pixels, "boxes": boxes, "labels": targets.labels})
            pixels, canvas = out["image"], tuple(out["boxes"].canvas_size)
            targets = solid(ImageTargets(out["labels"], out["boxes"].as_subclass(torch.Tensor)))
        if isinstance(pixels, Tensor):
            pixels = pixels.as_subclass(torch.Tensor)
        resized = self._input.resize_image(pixels) if self._resize else pixels
        size = (resized.shape[-2], resized.shape[-1])
        labels, boxes = resized_targets(targets, canvas, size, self._min_size)
        return Transformed(resized, labels, boxes)


def solid(targets: ImageTargets) -> ImageTargets:
    """Without the objects of which a crop has left nothing."""
    left = (targets.boxes_xyxy[:, 2:] > targets.boxes_xyxy[:, :2]).all(dim=1)
    return ImageTargets(targets.labels[left], targets.boxes_xyxy[left])


def build_transform(name: str, input: InputContract, flip_both: bool = False) -> TrainTransform:
    """The preset of that name.

    Args:
        name: `rt_detr`, `detr`, `flip`, `finetune`, `shapes` or `none`.
        input: the contract whose resize ends every preset but `detr`, which draws the shorter side itself
            where the contract resizes the shortest side.
        flip_both: also flip top to bottom; for images without an upright, as from a microscope.

    Raises:
        ValueError: if there is no such preset, naming those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"train_transform {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    steps = PRESETS[name](input)
    if flip_both and name != "shapes":
        steps.append(v2.RandomVerticalFlip(p=0.5))
    random = v2.Compose(steps) if steps else None
    if name == "detr":
        # the official code keeps an object of any size
        return TrainTransform(random, input, resize=input.resize != "shortest", min_size=0.0)
    return TrainTransform(random, input)


def _rt_detr(input: InputContract) -> list[v2.Transform]:
    # Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/configs/rtdetr/include/dataloader.yml; the numbers
    # are torchvision 0.15.2's defaults, written out because defaults move.
    return [
        v2.RandomPhotometricDistort(
            brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05), p=0.5
        ),
        v2.RandomZoomOut(fill=0, side_range=(1.0, 4.0), p=0.5),
        v2.RandomApply(
            [
                SafeIoUCrop(
                    min_scale=0.3,
                    max_scale=1.0,
                    min_aspect_ratio=0.5,
                    max_aspect_ratio=2.0,
                    sampler_options=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0],
                    trials=40,
                )
            ],
            p=0.8,
        ),
        v2.SanitizeBoundingBoxes(min_size=1),
        v2.RandomHorizontalFlip(p=0.5),
    ]


def _detr(input: InputContract) -> list[v2.Transform]:
    # Source: facebookresearch/detr@29901c5 datasets/coco.py, make_coco_transforms
    longest = input.size[1] if input.resize == "shortest" else DETR_LONGEST
    resize = RandomShortestSide(DETR_SIDES, longest, input.backend)
    crop = [
        RandomShortestSide(DETR_SIDES_BEFORE_CROP, _NO_LIMIT, input.backend),
        RandomSizeCrop(*DETR_CROP),
        resize,
    ]
    return [v2.RandomHorizontalFlip(p=0.5), v2.RandomChoice([resize, v2.Compose(crop)], p=[0.5, 0.5])]


def _flip(input: InputContract) -> list[v2.Transform]:
    return [v2.RandomHorizontalFlip(p=0.5)]


def _finetune(input: InputContract) -> list[v2.Transform]:
    return [
        v2.RandomHorizontalFlip(p=0.5),
        ZoomCrop(smallest=0.6),
        v2.SanitizeBoundingBoxes(min_size=1),
        v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.15),
    ]


def _shapes(input: InputContract) -> list[v2.Transform]:
    return [
        v2.RandomHorizontalFlip(p=0.5),
        v2.RandomVerticalFlip(p=0.5),
        RandomTranspose(),
        v2.RandomChannelPermutation(),
        v2.RandomInvert(p=0.5),
    ]


def _none(input: InputContract) -> list[v2.Transform]:
    return []


PRESETS: dict[str, Callable[[InputContract], list[v2.Transform]]] = {
    "rt_detr": _rt_detr,
    "flip": _flip,
    "finetune": _finetune,
    "shapes": _shapes,
    "none": _none,
    "detr": _detr,
}
