"""The input contract: how an image file becomes the tensor that a network saw in training.

It is written in a recipe or a manifest, and training, validation, prediction and export all use the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from zoo.contract.bands import MOST_CHANNELS
from zoo.contract.batch import Batch
from zoo.contract.photometric import distort_batch
from zoo.contract.pixels import LONGEST_SIDE
from zoo.contract.tiles import Tile, Tiles, whole

ResizeBackend = Literal["fast", "pil"]
_CACHED_ROWS = 96


_WORDS = {"resize": ("stretch", "shortest"), "backend": ("fast", "pil"), "padding": ("batch", "step")}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """Resize rule, padding and normalisation of a network's input.

    Attributes:
        resize: `stretch` to `size` ignoring aspect (RT-DETR), or `shortest` (DETR): shorter side to
            `size[0]`, longer at most `size[1]`.
        size: (height, width) for `stretch`; (shortest, longest) for `shortest`.
        mean, std: per channel, of images in [0, 1]; empty for none.
        backend: `pil` resizes as the official code does; `fast` (uint8 tensors with antialias)
            stays within one grey level of it at a fraction of the time.
        padding: `batch` pads to the largest image of a micro-batch (published), `step` to that of
            the whole optimizer step (exact under any split).
        tiles: how images are cut first; each tile and the whole image are then resized. None: not at all.
        channels: of an image; the first convolution has as many.
        scale: (lowest, highest) value of each channel, or one pair for all, which become black and white, see
            `zoo.contract.bands`; empty for 8-bit levels as they are.
    """

    resize: Literal["stretch", "shortest"]
    size: tuple[int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    backend: ResizeBackend = "fast"
    padding: Literal["batch", "step"] = "batch"
    tiles: Tiles | None = None
    channels: int = 3
    scale: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for key, valid in _WORDS.items():
            if getattr(self, key) not in valid:
                raise ValueError(f"{key} is {getattr(self, key)!r:.40}; it is one of {', '.join(valid)}")
        levels = (self.mean, self.std)
        if not all(isinstance(v, (tuple, list)) and all(map(_is_finite, v)) for v in levels):
            raise ValueError(f"mean {self.mean!r:.60} and std {self.std!r:.60} must be finite numbers")
        self._check_channels()
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.channels):
            number = "three" if self.channels == 3 else str(self.channels)
            raise ValueError(f"mean {self.mean} and std {self.std} must both have {number} values, or none")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std {self.std} must be above 0")
        if not isinstance(self.tiles, Tiles | None):
            raise ValueError(f"tiles is {self.tiles!r:.60}; it has size and overlap, or is null for none")
        sides = self.size if isinstance(self.size, (tuple, list)) else ()
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        if len(sides) != 2 or not whole or min(sides) < 1 or max(sides) > LONGEST_SIDE:
            raise ValueError(
                f"size must be two positive integers up to {LONGEST_SIDE}, not {self.size!r:.60}"
            )

    def _check_channels(self) -> None:
        if type(self.channels) is not int or not 1 <= self.channels <= MOST_CHANNELS:
            raise ValueError(f"channels is {self.channels!r:.40}; an image has 1 to {MOST_CHANNELS}")
        if not self.is_rgb and self.backend == "pil":
            raise ValueError("backend: pil reads RGB alone; with channels or scale take backend: fast")
        pairs = self.scale if isinstance(self.scale, (tuple, list)) else ("",)
        good = all(
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and all(map(_is_number, pair))
            and pair[0] < pair[1]
            for pair in pairs
        )
        if not good or len(pairs) not in (0, 1, self.channels):
            raise ValueError(
                f"scale is {self.scale!r:.60}; it has one pair [lowest, highest], or {self.channels} such"
            )

    @property
    def is_rgb(self) -> bool:
        """Whether images are read as 8-bit RGB, whatever their files have."""
        return self.channels == 3 and not self.scale

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> InputContract:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key or an invalid value.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items()}
            if isinstance(values.get("scale"), tuple):
                values["scale"] = tuple(tuple(v) if isinstance(v, list) else v for v in values["scale"])
            tiles = values.get("tiles")
            if isinstance(tiles, dict):
                cut: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tiles.items()}
                values["tiles"] = Tiles(**cut)
            return cls(**values)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"the input contract is invalid:  {str(error)[:120]}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for manifests and checkpoints; what is not used (tiles, channels, scale) has no key."""
        rare = ("tiles", "channels", "scale")
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in rare}
        if self.channels != 3:
            plain["channels"] = self.channels
        if self.scale:
            plain["scale"] = [list(pair) for pair in self.scale]
        if self.tiles is not None:
            plain["tiles"] = {"size": list(self.tiles.size), "overlap": self.tiles.overlap}
        return plain

    def with_tiles(self, tiles: Tiles | None) -> InputContract:
        """The same contract with other tiles, or none."""
        return replace(self, tiles=tiles)

    def with_backend(self, backend: ResizeBackend) -> InputContract:
        """The same contract with another resize backend."""
        return replace(self, backend=backend)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of an image of `height` x `width` after the resize."""
        if self.resize == "stretch":
            return self.size
        return shortest_side_size(height, width, *self.size)

    def view_batches(self, height: int, width: int, most: int) -> Iterator[list[Tile]]:
        """The views of an image cut by `tiles`, at most `most` together, all of one size after the resize.

        So no padding changes what is found in a view.
        """
        tiles = self.tiles
        views = [whole(height, width)] if tiles is None else tiles.views(height, width)
        for _, alike in groupby(views, key=lambda tile: self.resized_size(*tile.size)):
            together = list(alike)
            yield from (together[n : n + most] for n in range(0, len(together), most))

    def resize_image(self, image: Image.Image | Tensor) -> Tensor:
        """An RGB PIL image or [3, h, w] uint8 tensor to the resized [3, h', w'] uint8 tensor."""
        if self.backend == "pil" and isinstance(image, Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        if isinstance(image, Image.Image):
            if self.backend == "pil":
                height, width = self.resized_size(image.height, image.width)
                if (image.height, image.width) != (height, width):
                    image = image.resize((width, height), Image.Resampling.BILINEAR)
                return image_to_tensor(image)  # the shortest rule is not idempotent: never a second time
            image = image_to_tensor(image)
        return resize_pixels(image, self.resized_size(*image.shape[-2:]))

    def normalize(self, batch: Batch) -> Batch:
        """uint8 images to float32 in [0, 1], then mean and std; on whatever device they are.

        A photometric distortion that the workers have not applied (`batch.photometric`) comes first.
        """
        if batch.images.dtype != torch.uint8:
            raise ValueError(f"images are already {batch.images.dtype}; normalize takes uint8")
        images = batch.images.to(torch.float32)
        if batch.photometric is not None:
            images = distort_batch(images, batch.photometric)
        normalize_levels(images, self.mean, self.std)
        if self.mean:
            # padding is zero after normalisation, as the official collate pads normalised images
            images.masked_fill_(batch.padding[:, None], 0.0)
        return replace(batch, images=images, photometric=None)


def normalize_levels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float32 levels [..., 3, H, W] in place to [0, 1], then, if given, mean and std of each channel.

    Equals (images / 255 - mean) / std to the bit. On the CPU it goes by rows that fit into the cache, so
    that a large image is read from memory once and not three times.
    """
    rows = _CACHED_ROWS if images.device.type == "cpu" else max(1, images.shape[-2])
    for part in images.split(rows, dim=-2):
        part.div_(255)
        for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
            part[..., channel, :, :].sub_(m).div_(s)
    return images


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB PIL image to a [3, h, w] uint8 view on the decoder's HWC memory.

    Not made contiguous on purpose: the uint8 antialiased resize is three times faster on HWC strides.
    """
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_pixels(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, h, w] uint8 to [3, *size], bilinear with antialias, as backend `fast` does.

    A part cut out of a larger image is copied first: three times faster than resizing the view.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if image.stride(0) == 1:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return TF.resize(image, list(size), antialias=True)


def shortest_side_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """(h, w) of DETR's resize rule, with its rounding.

    Source: facebookresearch/detr@29901c5 datasets/transforms.py, get_size_with_aspect_ratio: the
    target of the shorter side is rounded half to even, the longer side is truncated. No side becomes 0.
    """
    small, large = min(height, width), max(height, width)
    if large / small * shortest > longest:
        shortest = round(longest * small / large)
        if shortest < 1:  # the official code makes a side of 0 and fails
            return (1, longest) if height < width else (longest, 1)
    if small == shortest:
        return height, width
    if width < height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)
