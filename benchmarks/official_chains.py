"""The official image chains of DETR and RT-DETR, restated in PIL operations with their numbers given.

What the transforms of this project are compared with, by the tests for equality and by the benchmark for
speed. Sources: facebookresearch/detr@29901c5 datasets/{coco,transforms}.py; lyuwenyu/RT-DETR@068dfde
rtdetr_pytorch/configs/rtdetr/include/dataloader.yml, whose operations are torchvision's on PIL images.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import functional, v2
from torchvision.transforms.v2 import functional as TF

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIDES = list(range(480, 801, 32))
Target = dict[str, Tensor]  # boxes [n, 4] xyxy pixels, labels [n], masks [n, h, w] where there are any


def mirrored(picture: Image.Image, target: Target) -> tuple[Image.Image, Target]:
    target = dict(target)
    sign, shift = torch.tensor([-1, 1, -1, 1]), torch.tensor([picture.width, 0, picture.width, 0])
    target["boxes"] = target["boxes"][:, [2, 1, 0, 3]] * sign + shift
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target


def side_rule(width: int, height: int, side: int, longest: int | None) -> tuple[int, int]:
    """(h, w): the shorter side becomes `side`, unless the longer one would pass `longest`."""
    small, large = float(min(width, height)), float(max(width, height))
    if longest is not None and large / small * side > longest:
        side = round(longest * small / large)
    if (width <= height and width == side) or (height <= width and height == side):
        return height, width
    return (int(side * height / width), side) if width < height else (side, int(side * width / height))


def resized(picture: Image.Image, target: Target, size: tuple[int, int]) -> tuple[Image.Image, Target]:
    target, (height, width) = dict(target), size
    x, y = float(width) / float(picture.width), float(height) / float(picture.height)
    target["boxes"] = target["boxes"] * torch.as_tensor([x, y, x, y])
    if "masks" in target:
        masks = target["masks"][:, None].float()
        target["masks"] = torch.nn.functional.interpolate(masks, size, mode="nearest")[:, 0] > 0.5
    return picture.resize((width, height), Image.Resampling.BILINEAR), target


def cropped(
    picture: Image.Image, target: Target, region: tuple[int, int, int, int]
) -> tuple[Image.Image, Target]:
    """Of (top, left, height, width); objects without area left are dropped."""
    top, left, height, width = region
    boxes = target["boxes"] - torch.as_tensor([left, top, left, top])
    corners = torch.min(boxes.reshape(-1, 2, 2), torch.as_tensor([width, height], dtype=torch.float32))
    corners = corners.clamp(min=0)
    keep = (corners[:, 1] > corners[:, 0]).all(dim=1)
    target = dict(target, boxes=corners.reshape(-1, 4))
    if "masks" in target:
        target["masks"] = target["masks"][:, top : top + height, left : left + width]
    return picture.crop((left, top, left + width, top + height)), {k: v[keep] for k, v in target.items()}


def unit_boxes(boxes: Tensor, width: int, height: int) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(-1)
    centred = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)
    return centred / torch.tensor([width, height, width, height], dtype=torch.float32)


def to_float(picture: Image.Image) -> Tensor:
    """[3, h, w] float32 in [0, 1]."""
    return TF.to_dtype(TF.pil_to_tensor(picture), torch.float32, scale=True)


@dataclass(frozen=True)
class DetrChoices:
    """What one image of DETR's training chain draws."""

    flip: bool
    side: int
    before: int | None = None  # the shorter side before the crop; None for no crop
    region: tuple[int, int, int, int] | None = None  # top, left, height, width


def draw_detr(random: Random, width: int, height: int) -> DetrChoices:
    flip = random.random() < 0.5
    if random.random() < 0.5:
        return DetrChoices(flip, random.choice(SIDES))
    before = random.choice([400, 500, 600])
    height, width = side_rule(width, height, before, None)
    w, h = random.randint(384, min(width, 600)), random.randint(384, min(height, 600))
    region = (random.randint(0, height - h), random.randint(0, width - w), h, w)
    return DetrChoices(flip, random.choice(SIDES), before, region)


def detr_train(picture: Image.Image, target: Target, choices: DetrChoices) -> tuple[Image.Image, Target]:
    """DETR's training chain up to the resized picture, boxes in its pixels."""
    if choices.flip:
        picture, target = mirrored(picture, target)
    if choices.before is not None:
        picture, target = resized(picture, target, side_rule(*picture.size, choices.before, None))
        picture, target = cropped(picture, target, choices.region)
    return resized(picture, target, side_rule(*picture.size, choices.side, 1333))


def detr_end(picture: Image.Image, target: Target) -> tuple[Tensor, Target]:
    """To [0, 1], normalised, by the functions that the official code calls; boxes in [0, 1]."""
    image = functional.normalize(functional.to_tensor(picture), MEAN, STD)
    return image, dict(target, boxes=unit_boxes(target["boxes"], *picture.size))


@dataclass(frozen=True)
class RtDetrChoices:
    """What one image of RT-DETR's training chain draws; None where a part is left out."""

    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: float | None
    contrast_first: bool
    channels: tuple[int, ...]
    zoom: tuple[int, int, int, int] | None  # top, left, height, width of the canvas
    crop: tuple[int, int, int, int] | None  # top, left, height, width
    flip: bool


def draw_rt_detr(picture: Image.Image, target: Target) -> RtDetrChoices:
    """By torchvision's own classes, from torch's global generator."""
    colors = v2.RandomPhotometricDistort().make_params([picture])
    boxes, zoom, crop = target["boxes"], None, None
    height, width = picture.height, picture.width
    if torch.rand(1) < 0.5:
        left, top, right, bottom = v2.RandomZoomOut().make_params([picture])["padding"]
        height, width = height + top + bottom, width + left + right
        boxes = boxes + torch.tensor([left, top, left, top])
        zoom = (top, left, height, width)
    if len(boxes) and torch.rand(1) < 0.8:
        on_canvas = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        found = v2.RandomIoUCrop().make_params([on_canvas])
        crop = tuple(found[side] for side in ("top", "left", "height", "width")) if found else None
    order = colors["channel_permutation"]
    return RtDetrChoices(
        *(colors[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")),
        contrast_first=colors["contrast_before"],
        channels=(0, 1, 2) if order is None else tuple(order.tolist()),
        zoom=zoom,
        crop=crop,
        flip=bool(torch.rand(1) < 0.5),
    )


def hue_shifted(picture: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(shift * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def distorted(picture: Image.Image, c: RtDetrChoices) -> Image.Image:
    if c.brightness is not None:
        picture = ImageEnhance.Brightness(picture).enhance(c.brightness)
    if c.contrast is not None and c.contrast_first:
        picture = ImageEnhance.Contrast(picture).enhance(c.contrast)
    if c.saturation is not None:
        picture = ImageEnhance.Color(picture).enhance(c.saturation)
    if c.hue is not None:
        picture = hue_shifted(picture, c.hue)
    if c.contrast is not None and not c.contrast_first:
        picture = ImageEnhance.Contrast(picture).enhance(c.contrast)
    if c.channels != (0, 1, 2):
        bands = picture.split()
        picture = Image.merge("RGB", [bands[k] for k in c.channels])
    return picture


def rt_detr_train(picture: Image.Image, target: Target, c: RtDetrChoices) -> tuple[Image.Image, Target]:
    """RT-DETR's training chain up to 640 x 640, boxes in its pixels."""
    picture, target = distorted(picture, c), dict(target)
    if c.zoom is not None:
        top, left, height, width = c.zoom
        canvas = Image.new("RGB", (width, height))
        canvas.paste(picture, (left, top))
        picture = canvas
        target["boxes"] = target["boxes"] + torch.tensor([left, top, left, top], dtype=torch.float32)
        if "masks" in target:
            _, h, w = target["masks"].shape
            around = (left, width - left - w, top, height - top - h)
            target["masks"] = torch.nn.functional.pad(target["masks"], around)
    if c.crop is not None:
        top, left, height, width = c.crop
        centre = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
        low, high = torch.tensor([left, top]), torch.tensor([left + width, top + height])
        held = ((centre > low) & (centre < high)).all(dim=1)
        picture, target = cropped(picture, {k: v[held] for k, v in target.items()}, c.crop)
    target = without_small(target)
    if c.flip:
        picture, target = mirrored(picture, target)
    picture, target = resized(picture, target, (640, 640))
    return picture, without_small(target)


def without_small(target: Target) -> Target:
    keep = ((target["boxes"][:, 2:] - target["boxes"][:, :2]) >= 1).all(dim=1)
    return {k: v[keep] for k, v in target.items()}


def rt_detr_end(picture: Image.Image, target: Target) -> tuple[Tensor, Target]:
    """To [0, 1]; boxes in [0, 1]."""
    return to_float(picture), dict(target, boxes=unit_boxes(target["boxes"], *picture.size))
