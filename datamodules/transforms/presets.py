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
from datamodules.transforms.geometry import RandomTranspose, SafeIoUCrop, ZoomCrop
from zoo.preprocess import InputContract, image_to_tensor


class Transformed(NamedTuple):
    """An image as the network gets it, and its objects."""

    image: Tensor  # [3, h, w] uint8
    labels: Tensor  # [n] int64
    boxes: Tensor  # [n, 4] float32 cxcywh in [0, 1]


class TrainTransform:
    """A preset on one image: random part in torchvision v2, then resize and normalised boxes.

    Draws from torch's global generator; the dataset seeds it for every image.
    """

    def __init__(self, random: v2.Transform | None, input: InputContract) -> None:
        self._random = random
        self._input = input

    def __call__(self, image: Image.Image, targets: ImageTargets) -> Transformed:
        """An RGB image and its targets to what a `Sample` holds."""
        pixels: Any = image if self._input.backend == "pil" else tv_tensors.Image(image_to_tensor(image))
        canvas = (image.height, image.width)
        if self._random is not None:
            boxes = tv_tensors.BoundingBoxes(targets.boxes_xyxy, format="XYXY", canvas_size=canvas)  # type: ignore[call-overload]
            out = self._random({"image": pixels, "boxes": boxes, "labels": targets.labels})
            pixels, canvas = out["image"], tuple(out["boxes"].canvas_size)
            targets = ImageTargets(out["labels"], out["boxes"].as_subclass(torch.Tensor))
        if isinstance(pixels, Tensor):
            pixels = pixels.as_subclass(torch.Tensor)
        resized = self._input.resize_image(pixels)
        labels, boxes = resized_targets(targets, canvas, (resized.shape[-2], resized.shape[-1]))
        return Transformed(resized, labels, boxes)


def build_transform(name: str, input: InputContract, flip_both: bool = False) -> TrainTransform:
    """The preset of that name.

    Args:
        name: `rt_detr`, `flip`, `finetune`, `shapes` or `none`.
        input: the contract whose resize ends every preset.
        flip_both: also flip top to bottom; for images without an upright, as from a microscope.

    Raises:
        ValueError: if there is no such preset, naming those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"train_transform {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    steps = PRESETS[name]()
    if flip_both and name != "shapes":
        steps.append(v2.RandomVerticalFlip(p=0.5))
    return TrainTransform(v2.Compose(steps) if steps else None, input)


def _rt_detr() -> list[v2.Transform]:
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


def _flip() -> list[v2.Transform]:
    return [v2.RandomHorizontalFlip(p=0.5)]


def _finetune() -> list[v2.Transform]:
    return [
        v2.RandomHorizontalFlip(p=0.5),
        ZoomCrop(smallest=0.6),
        v2.SanitizeBoundingBoxes(min_size=1),
        v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.15),
    ]


def _shapes() -> list[v2.Transform]:
    return [
        v2.RandomHorizontalFlip(p=0.5),
        v2.RandomVerticalFlip(p=0.5),
        RandomTranspose(),
        v2.RandomChannelPermutation(),
        v2.RandomInvert(p=0.5),
    ]


def _none() -> list[v2.Transform]:
    return []


PRESETS: dict[str, Callable[[], list[v2.Transform]]] = {
    "rt_detr": _rt_detr,
    "flip": _flip,
    "finetune": _finetune,
    "shapes": _shapes,
    "none": _none,
}
