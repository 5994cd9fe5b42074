"""What every picture is made with: canvas, font, colours, and masks laid over an image.

Everything is painted with Pillow and its built-in font, so no display and no font file is needed.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFont
from torch import Tensor

from zoo.contract.labels import LabelMap

Picture = Image.Image
Colour = tuple[int, int, int]
Corners = tuple[int, int, int, int]  # xyxy, whole pixels, both ends inside
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Mask = npt.NDArray[np.bool_]
Owners = npt.NDArray[np.int32]  # [h, w] number of the layer that a pixel belongs to; -1: none

LEGIBLE = 480  # pictures with a longer side below this are enlarged before anything is painted on them
PAPER: Colour = (255, 255, 255)
INK: Colour = (40, 40, 40)

_FINE = 2  # masks are painted so many times finer than the picture, for smooth outlines
_FINE_PIXELS = 1 << 23  # but not where that takes more pixels
# of instances of one class, one after the other: what is added to hue and lightness
_SHADES = (
    (0.0, 0.0),
    (0.045, 0.15),
    (-0.045, -0.13),
    (0.085, -0.07),
    (-0.085, 0.11),
    (0.02, 0.24),
    (-0.02, -0.2),
)


class Layer(NamedTuple):
    """How the pixels of one segment are painted."""

    colour: Colour
    opacity: float  # of its inside, in [0, 1]
    line: float  # thickness of its outline in pixels of the picture; 0: none


def class_colour(head: int) -> Colour:
    """A bright colour for a head index, the same in every picture and run.

    Hues step by the golden ratio, so that neighbouring indices, often used together, stay apart.
    """
    hue = (0.58 + head * 0.6180339887) % 1.0
    lightness = (0.55, 0.42, 0.66)[head // 7 % 3]
    return _rgb(hue, lightness, 0.85)


def colour_of(label_map: LabelMap, head: int) -> Colour:
    """The colour that the class list gives, else `class_colour`."""
    return label_map.color_of_head.get(head) or class_colour(head)


def shade(colour: Colour, number: int) -> Colour:
    """The colour of instance `number` of a class: the first has the class's own, others one beside it."""
    turn, lift = _SHADES[number % len(_SHADES)]
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in colour))
    if number % len(_SHADES) == 0:
        return colour
    return _rgb((hue + turn) % 1.0, min(max(lightness + lift, 0.22), 0.82), saturation)


def light(colour: Colour) -> Colour:
    """The colour, lightened where it is too dark for a line on a photograph."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in colour))
    return _rgb(hue, min(max(lightness + 0.12, 0.55), 0.85), saturation)


def dark(colour: Colour) -> Colour:
    """The colour, darkened so that white text is read on it."""
    hue, _, saturation = colorsys.rgb_to_hls(*(v / 255 for v in colour))
    return _rgb(hue, 0.17, min(saturation, 0.6))


def name_of(label_map: LabelMap, head: int) -> str:
    """The name of a class, also of an index that has none."""
    return label_map.name_of_head.get(head, f"class {head}")


def seen_rgb(image: Tensor) -> Tensor:
    """[C, h, w] to three channels for the eye: one is repeated, two stand for red and blue, of more the first three."""
    if len(image) == 1:
        return image.expand(3, -1, -1)
    return image[[0, 1, 1]] if len(image) == 2 else image[:3]


def canvas(image: Tensor | Picture, longest: int | None) -> tuple[Picture, float]:
    """An RGB copy to paint on, and its size over the image's.

    Args:
        image: PIL image or [3, h, w] uint8.
        longest: longer side of the copy; None for the image's own, at least `LEGIBLE`.

    Raises:
        ValueError: for a tensor of another type or shape.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image is {image.dtype} {tuple(image.shape)}; pictures are uint8 [3, h, w]")
        image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    longer = max(image.size)
    scale = (longest or max(longer, LEGIBLE)) / longer
    picture = image.convert("RGB")  # a copy even of an RGB image
    if scale != 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    return picture, scale


def reduced(picture: Picture, longest: int) -> Picture:
    """The picture itself, or a smaller one whose longer side is `longest`."""
    if max(picture.size) <= longest:
        return picture
    scale = longest / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def font_of(size: int) -> Font:
    """Pillow's own font, so many pixels high."""
    return ImageFont.load_default(size=size)


def shortened(text: str, font: Font, width: int) -> str:
    """The text, cut with dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def owners_of(masks: Sequence[Mask], size: tuple[int, int]) -> Owners:
    """[h, w] which of the masks has each pixel: the first of those that overlap. `size` is (h, w)."""
    owners = np.full(size, -1, dtype=np.int32)
    for number in reversed(range(len(masks))):
        owners[masks[number]] = number
    return owners


def resized_owners(owners: Owners, size: tuple[int, int]) -> Owners:
    """The map at another (h, w); edges of an enlarged one are smooth, not stairs."""
    if owners.shape == size:
        return owners
    shape = (size[1], size[0])
    if size[0] < owners.shape[0]:
        return np.asarray(Image.fromarray(owners).resize(shape, Image.Resampling.NEAREST))
    best = np.zeros(size, dtype=np.uint8)
    found = np.full(size, -1, dtype=np.int32)
    for number in np.unique(owners):
        share = Image.fromarray((owners == number).astype(np.uint8) * 255)
        shares = np.asarray(share.resize(shape, Image.Resampling.BILINEAR))
        higher = shares > best
        best[higher], found[higher] = shares[higher], number
    return found


def paint(picture: Picture, owners: Owners, layers: Sequence[Layer]) -> Picture:
    """The picture under its segments: a tint of each one's colour, and an outline inside its edge.

    Pixels without a segment stay as they are.

    Args:
        picture: RGB.
        owners: number of the layer of each pixel, at any size of the picture's shape.
        layers: by number.
    """
    if not layers:
        return picture
    width, height = picture.size
    fine = _FINE if width * height * _FINE**2 <= _FINE_PIXELS else 1
    owners = resized_owners(owners, (height * fine, width * fine))
    tint = np.array([layer.colour for layer in layers] + [(0, 0, 0)], dtype=np.float32)  # -1 is the last
    line = np.array([light(layer.colour) for layer in layers] + [(0, 0, 0)], dtype=np.float32)
    opacity = np.array([layer.opacity for layer in layers] + [0], dtype=np.float32)
    reach = np.array([layer.line for layer in layers] + [0], dtype=np.float32) * fine
    outline = _outline(owners, reach)
    colours = np.where(outline[..., None], line[owners], tint[owners])
    alpha = np.where(outline, np.float32(0.95), opacity[owners])
    # premultiplied, so that colours of different opacity mix as they are seen
    colours, alpha = _mean_of_blocks(colours * alpha[..., None], fine), _mean_of_blocks(alpha, fine)
    pixels = np.asarray(picture, dtype=np.float32) * (1 - alpha[..., None]) + colours
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _outline(owners: Owners, reach: npt.NDArray[np.float32]) -> Mask:
    """Pixels that are no farther than the reach of their layer from its edge.

    Towards a layer of a longer reach there is no outline, else two lines would run beside each other.
    """
    across, down = owners[:, 1:] == owners[:, :-1], owners[1:] == owners[:-1]
    longest = reach[owners]
    ring = np.zeros(owners.shape, dtype=bool)
    ring[:, 1:] |= ~across & (longest[:, 1:] >= longest[:, :-1])
    ring[:, :-1] |= ~across & (longest[:, :-1] >= longest[:, 1:])
    ring[1:] |= ~down & (longest[1:] >= longest[:-1])
    ring[:-1] |= ~down & (longest[:-1] >= longest[1:])
    ring &= longest > 0
    for step in range(2, int(reach.max()) + 1):  # grows within each layer
        grown = ring.copy()
        grown[:, 1:] |= ring[:, :-1] & across
        grown[:, :-1] |= ring[:, 1:] & across
        grown[1:] |= ring[:-1] & down
        grown[:-1] |= ring[1:] & down
        ring |= grown & (longest >= step)
    return ring


def _mean_of_blocks(values: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    height, width, *rest = values.shape
    if side == 1:
        return values
    blocks = values.reshape(height // side, side, width // side, side, *rest)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def _rgb(hue: float, lightness: float, saturation: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)
