"""The photometric operations: they change colours and leave places as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from datamodules.transforms.plan import Placed
from datamodules.transforms.targets import ImageTargets
from zoo.contract.photometric import Distortion, luma, shift_hue


class _Colors:
    """Neither targets nor sizes change."""

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        return targets

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@dataclass(frozen=True)
class Distort(_Colors):
    """RandomPhotometricDistort with its random numbers drawn. Must come before any zoom-out.

    On uint8 tensors it gives the very levels of torchvision's, except for hue, whose float arithmetic is not
    torchvision's: there one pixel in some thousands differs by a level. The official code uses PIL's, which
    works on 256 hues and so differs from both by half a level in the mean.
    """

    distortion: Distortion

    def on_tensor(self, placed: Placed) -> Placed:
        if len(placed.image) == 3:
            return placed._replace(image=distort(placed.image, self.distortion))
        d = self.distortion
        return placed._replace(image=_of_channels(placed.image, d.brightness, d.contrast))

    def on_pil(self, image: Image.Image) -> Image.Image:
        d = self.distortion
        if d.brightness != 1:
            image = TF.adjust_brightness(image, d.brightness)
        if d.contrast != 1 and d.contrast_first:
            image = TF.adjust_contrast(image, d.contrast)
        if d.saturation != 1:
            image = TF.adjust_saturation(image, d.saturation)
        if d.hue != 0:
            image = TF.adjust_hue(image, d.hue)
        if d.contrast != 1 and not d.contrast_first:
            image = TF.adjust_contrast(image, d.contrast)
        return image if d.channels == (0, 1, 2) else permuted(image, d.channels)


@dataclass(frozen=True)
class Jitter(_Colors):
    """Brightness, contrast and saturation, torchvision's ColorJitter, in a drawn order.

    Attributes:
        order: which of the three (0, 1, 2 as they stand below) comes first, second, third.
        brightness, contrast, saturation: factors.
    """

    order: tuple[int, int, int]
    brightness: float
    contrast: float
    saturation: float

    def on_tensor(self, placed: Placed) -> Placed:
        """Equals torchvision on uint8."""
        if len(placed.image) != 3:
            return placed._replace(image=_of_channels(placed.image, self.brightness, self.contrast))
        planes = placed.image.to(torch.float32, memory_format=torch.contiguous_format)
        for which in self.order:
            if which == 0:
                planes.mul_(self.brightness).clamp_(max=255).floor_()
            elif which == 1:
                _contrast(planes, self.contrast)
            else:
                _blend(planes, luma(planes), self.saturation)
        return placed._replace(image=interleaved(planes))

    def on_pil(self, image: Image.Image) -> Image.Image:
        for which in self.order:
            if which == 0:
                image = TF.adjust_brightness(image, self.brightness)
            elif which == 1:
                image = TF.adjust_contrast(image, self.contrast)
            else:
                image = TF.adjust_saturation(image, self.saturation)
        return image


@dataclass(frozen=True)
class PermuteChannels(_Colors):
    """Puts the channels in another order: `channels` are the old positions of the three new ones."""

    channels: tuple[int, int, int]

    def on_tensor(self, placed: Placed) -> Placed:
        if len(placed.image) != 3:
            return placed
        return placed._replace(image=placed.image[list(self.channels)])

    def on_pil(self, image: Image.Image) -> Image.Image:
        return permuted(image, self.channels)


@dataclass(frozen=True)
class Invert(_Colors):
    """Each level v becomes 255 - v."""

    def on_tensor(self, placed: Placed) -> Placed:
        return placed._replace(image=TF.invert(placed.image))

    def on_pil(self, image: Image.Image) -> Image.Image:
        return TF.invert(image)


def permuted(image: Image.Image, channels: tuple[int, int, int]) -> Image.Image:
    """An image with its channels in another order."""
    bands = image.split()
    return Image.merge("RGB", [bands[c] for c in channels])


def distort(image: Tensor, d: Distortion) -> Tensor:
    """[3, h, w] uint8 to the same, distorted."""
    if (d.contrast, d.saturation, d.hue, d.channels) == (1, 1, 0, (0, 1, 2)):
        return image if d.brightness == 1 else _levels(image.float().mul_(d.brightness).clamp_(max=255))
    planes = image.to(torch.float32, memory_format=torch.contiguous_format)
    if d.brightness != 1:
        planes.mul_(d.brightness).clamp_(max=255).floor_()
    if d.contrast != 1 and d.contrast_first:
        _contrast(planes, d.contrast)
    if d.saturation != 1:
        _blend(planes, luma(planes), d.saturation)
    if d.hue != 0:
        shift_hue(planes, d.hue)
    if d.contrast != 1 and not d.contrast_first:
        _contrast(planes, d.contrast)
    return interleaved(planes, d.channels)


def _of_channels(image: Tensor, brightness: float, contrast: float) -> Tensor:
    """[C, h, w] uint8 that is not RGB: brightness, then contrast about the mean of each channel.

    Saturation, hue and order of channels are of colours and left out.
    """
    planes = image.to(torch.float32, memory_format=torch.contiguous_format)
    planes.mul_(brightness).clamp_(max=255).floor_()
    _blend(planes, planes.mean(dim=(-2, -1), keepdim=True), contrast)
    return torch.from_numpy(planes.permute(1, 2, 0).contiguous().numpy().astype(np.uint8)).permute(2, 0, 1)


def _contrast(planes: Tensor, factor: float) -> None:
    _blend(planes, luma(planes).mean(dim=(-3, -2, -1), keepdim=True), factor)


def _blend(planes: Tensor, other: Tensor, factor: float) -> None:
    planes.mul_(factor).add_(other, alpha=1 - factor).clamp_(0, 255).floor_()


def _levels(levels: Tensor) -> Tensor:
    # numpy's conversion is four times faster than torch's and keeps the strides too
    return torch.from_numpy(levels.numpy().astype(np.uint8))


def interleaved(planes: Tensor, channels: tuple[int, int, int] = (0, 1, 2)) -> Tensor:
    """[3, h, w] float levels to uint8 in HWC memory order, on which the resize is quick."""
    _, height, width = planes.shape
    image = np.empty((height, width, 3), dtype=np.uint8)
    for new, old in enumerate(channels):
        np.copyto(image[..., new], planes[old].numpy(), casting="unsafe")
    return torch.from_numpy(image).permute(2, 0, 1)
