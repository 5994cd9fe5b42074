"""Geometric transforms that torchvision does not have, as torchvision v2 transforms."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

_SMALLEST_CROPPED = 8  # RandomIoUCrop divides by the side of a crop of at least .3 of the image


class SafeIoUCrop(v2.RandomIoUCrop):
    """torchvision's crop, which leaves images alone whose crop could have a side of 0 pixels."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Empty for tiny images, else torchvision's."""
        if min(_canvas(flat_inputs)) < _SMALLEST_CROPPED:
            return {}
        params: dict[str, Any] = super().make_params(flat_inputs)
        return params


class ZoomCrop(v2.Transform):
    """Crops a part of the same aspect; objects whose centre is outside are dropped, the others clipped.

    Needs `SanitizeBoundingBoxes` behind it: dropped boxes are marked by zeros, as RandomIoUCrop does.
    """

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws side (a share of the image's, uniform in [smallest, 1]) and place."""
        height, width = _canvas(flat_inputs)
        scale, down, right = (
            (self.smallest + (1 - self.smallest) * torch.rand(1)).item(),
            *torch.rand(2).tolist(),
        )
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        return {
            "top": int((height - h + 1) * down),
            "left": int((width - w + 1) * right),
            "height": h,
            "width": w,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops an image or boxes."""
        if not isinstance(inpt, tv_tensors.BoundingBoxes):
            return self._call_kernel(TF.crop, inpt, **params)
        boxes = inpt.as_subclass(torch.Tensor)
        low = torch.tensor([params["left"], params["top"]])
        size = torch.tensor([params["width"], params["height"]])
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centre >= low) & (centre < low + size)).all(dim=1)
        cropped = TF.crop(inpt, **params)
        cropped[~inside] = 0
        return cropped


class RandomTranspose(v2.Transform):
    """Swaps rows and columns with probability one half."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether."""
        return {"swap": bool(torch.rand(1) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Swaps an image or boxes."""
        if not params["swap"]:
            return inpt
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            height, width = inpt.canvas_size
            swapped = inpt.as_subclass(torch.Tensor)[:, [1, 0, 3, 2]]
            return tv_tensors.BoundingBoxes(swapped, format="XYXY", canvas_size=(width, height))
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(inpt.as_subclass(torch.Tensor).transpose(-1, -2), like=inpt)
        if isinstance(inpt, Image.Image):
            return inpt.transpose(Image.Transpose.TRANSPOSE)
        return inpt


def _canvas(flat_inputs: list[Any]) -> tuple[int, int]:
    height, width = v2.query_size(flat_inputs)
    return height, width
