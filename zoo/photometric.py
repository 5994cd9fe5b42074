"""Photometric distortion of images in grey levels 0 to 255, with all its numbers drawn beforehand.

Each operation gives whole levels, rounded down, as torchvision's does on uint8 images. They work on
colour planes [..., 3, H, W] float32 in place, with python numbers for one image and [B, 1, 1, 1]
tensors for a batch, and never wait for a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Source: torchvision's rgb_to_grayscale
LUMA = (0.2989, 0.587, 0.114)
WIDTH = 12  # numbers of `Distortion.vector`


@dataclass(frozen=True)
class Distortion:
    """The drawn numbers of one image; the defaults leave it as it is.

    Attributes:
        brightness, contrast, saturation: factors.
        hue: shift as a share of the colour circle, in [-0.5, 0.5].
        contrast_first: contrast comes before saturation and hue, not behind them.
        channels: which channel each of the three new ones is.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True
    channels: tuple[int, int, int] = (0, 1, 2)

    def vector(self, inside: tuple[float, float, float, float]) -> Tensor:
        """[12] float32 for `distort_batch`.

        Args:
            inside: (x0, y0, x1, y1) in pixels of the sample's image: where it shows the photograph; the
                rest is the black border of a zoom-out, which stays black.
        """
        numbers = [self.brightness, self.contrast, self.saturation, self.hue, float(self.contrast_first)]
        return torch.tensor([*numbers, *self.channels, *inside], dtype=torch.float32)


def luma(planes: Tensor) -> Tensor:
    """[..., 1, H, W] whole grey levels of colour planes [..., 3, H, W]."""
    red, green, blue = planes.split(1, dim=-3)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).floor_()


def shift_hue(planes: Tensor, hue: float | Tensor) -> None:
    """Turns the colour circle by `hue`, a share of it; value and saturation stay.

    Equals HSV and back: with the largest and smallest channel v and v - c, and the shifted hue h in
    sixths, red is v - c * tent(h - 3), green v - c + c * tent(h - 2), blue v - c + c * tent(h - 4),
    where tent(x) is 2 - |x| within [0, 1]. Needs whole levels: a channel is then the largest just where
    1 - (v - channel) is above 0, which is quicker than comparing.
    """
    red, green, blue = planes.split(1, dim=-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    per_level = chroma.clamp_min(1).reciprocal_()
    is_red = (red - value).add_(1).clamp_min_(0)
    is_green = (green - value).add_(1).clamp_min_(0)
    is_green.addcmul_(is_green, is_red, value=-1)
    sixths = (green - blue).mul_(per_level).mul_(is_red)
    sixths.addcmul_((blue - red).mul_(per_level).add_(2), is_green)
    is_blue = is_red.add_(is_green).neg_().add_(1)
    sixths.addcmul_((red - green).mul_(per_level).add_(4), is_blue)
    sixths.add_(hue * 6)
    sixths.add_(torch.mul(sixths, 1 / 6, out=is_blue).floor_(), alpha=-6)  # into [0, 6)
    tent = torch.sub(sixths, 3, out=per_level)
    red.copy_(value.addcmul_(_tent(tent), chroma, value=-1))
    green.copy_(_tent(torch.sub(sixths, 2, out=tent)).mul_(chroma).add_(low))
    blue.copy_(_tent(torch.sub(sixths, 4, out=tent)).mul_(chroma).add_(low))
    # torchvision leaves [0, 1] by 255.999 and cuts off
    planes.mul_(255.999 / 255).floor_()


def _tent(x: Tensor) -> Tensor:
    return x.abs_().neg_().add_(2).clamp_(0, 1)
