"""Geometric transforms that torchvision does not have, as torchvision v2 transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from zoo.preprocess import Backend, InputContract

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


class RandomShortestSide(v2.Transform):
    """Resizes by DETR's rule to a shorter side drawn from a list; boxes follow the realised ratios.

    Args:
        sides: equally probable.
        longest: no longer side than this.
        backend: of the resize, see `InputContract`. The image becomes a uint8 tensor.
    """

    def __init__(self, sides: Sequence[int], longest: int, backend: Backend) -> None:
        super().__init__()
        self.contracts = [
            InputContract(resize="shortest", size=(side, longest), backend=backend) for side in sides
        ]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the side."""
        contract = self.contracts[int(torch.randint(len(self.contracts), ()))]
        return {"contract": contract, "size": contract.resized_size(*_canvas(flat_inputs))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes an image or boxes."""
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            return resized_boxes(inpt, params["size"])
        if isinstance(inpt, (tv_tensors.Image, Image.Image)):
            return tv_tensors.Image(params["contract"].resize_image(_plain(inpt)))
        return inpt


class RandomSizeCrop(v2.Transform):
    """DETR's crop: width, then height, uniform between two bounds (or the image's), at a uniform place.

    Boxes are clipped to the crop; those outside it are left without area, to be dropped by the caller.
    """

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws size and place."""
        height, width = _canvas(flat_inputs)
        w = self._side(width)
        h = self._side(height)
        top = int(torch.randint(height - h + 1, ()))
        left = int(torch.randint(width - w + 1, ()))
        return {"top": top, "left": left, "height": h, "width": w}

    def _side(self, available: int) -> int:
        largest = min(available, self.largest)
        return int(torch.randint(min(self.smallest, largest), largest + 1, ()))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops an image or boxes."""
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            return cropped_boxes(inpt, **params)
        return self._call_kernel(TF.crop, inpt, **params)


def resized_boxes(boxes: tv_tensors.BoundingBoxes, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Boxes of an image resized to (h, w) `size`."""
    height, width = boxes.canvas_size
    ratio = torch.tensor([size[1] / width, size[0] / height], dtype=torch.float32).repeat(2)
    return _xyxy(boxes.as_subclass(torch.Tensor) * ratio, size)


def cropped_boxes(
    boxes: tv_tensors.BoundingBoxes, top: int, left: int, height: int, width: int
) -> tv_tensors.BoundingBoxes:
    """Boxes of a crop, clipped to it."""
    moved = boxes.as_subclass(torch.Tensor) - torch.tensor([left, top, left, top], dtype=torch.float32)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    return _xyxy(torch.minimum(moved, limit).clamp(min=0), (height, width))


def _xyxy(boxes: Tensor, canvas: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)  # type: ignore[call-overload]


def _plain(image: Any) -> Any:
    return image.as_subclass(torch.Tensor) if isinstance(image, Tensor) else image


def _canvas(flat_inputs: list[Any]) -> tuple[int, int]:
    height, width = v2.query_size(flat_inputs)
    return height, width
