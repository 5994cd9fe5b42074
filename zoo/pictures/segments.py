"""Pictures of panoptic segmentations: every segment in its colour, outlined, and named inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from zoo.contract.labels import LabelMap
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.pictures.detections import gallery
from zoo.pictures.name_places import Place, Places
from zoo.pictures.painting import (
    INK,
    LEGIBLE,
    PAPER,
    Colour,
    Font,
    Layer,
    Owners,
    Picture,
    canvas,
    colour_of,
    dark,
    font_of,
    name_of,
    paint,
    resized_owners,
    shade,
    shortened,
)

_THING_OPACITY, _STUFF_OPACITY = 0.5, 0.42
_FITS = 0.97  # share of a name that is in its segment, where it is said to fit
_NEARLY = {True: 0.5, False: 0.8}  # is_thing -> the least share; what has less goes into the legend
_WHITE: Colour = (255, 255, 255)


class _Shown(NamedTuple):
    """A segment of the picture."""

    number: int  # its layer
    segment: Segment
    name: str
    colour: Colour
    area: int  # pixels of the picture


class _Style(NamedTuple):
    """One way to write a name; a tag is the text and a margin around it."""

    text: str
    font: Font
    width: int
    height: int
    margin: int


def paint_panoptic(
    image: Tensor | Picture,
    segmentation: PanopticSegmentation,
    label_map: LabelMap,
    longest: int | None = None,
) -> Picture:
    """The image with every segment: tint, outline, and name with score at its widest place.

    Colours are those of the class list; things of one class differ in shade. Segments that have no room for
    their name are listed below the image, which makes the picture higher.

    Args:
        image: PIL image or [3, h, w] uint8, of the size of the segmentation.
        segmentation: predicted, or ground truth.
        label_map: names the classes.
        longest: longer side of the picture without its legend; None keeps the image's own, enlarged where
            too small to read a name on.

    Raises:
        ValueError: image and segmentation differ in size.
    """
    size = tuple(image.shape[1:]) if isinstance(image, Tensor) else (image.height, image.width)
    if size != segmentation.size:
        raise ValueError(
            f"segmentation of {segmentation.size} (h, w) on an image of {size}; give them one size"
        )
    picture, _ = canvas(image, longest)
    owners = resized_owners(_owners(segmentation), (picture.height, picture.width))
    shown = _shown(segmentation, label_map, owners)
    line = max(1.0, min(picture.size) / 600)
    layers = [
        Layer(s.colour, *((_THING_OPACITY, 1.5 * line) if s.segment.is_thing else (_STUFF_OPACITY, line)))
        for s in shown
    ]
    picture = paint(picture, _owners(segmentation) if picture.size < size[::-1] else owners, layers)
    unnamed = _write_names(picture, owners, [s for s in shown if s.area])
    return _with_legend(picture, unnamed)


def compare_panoptic(
    image: Tensor | Picture,
    predicted: PanopticSegmentation,
    truth: PanopticSegmentation,
    label_map: LabelMap,
    longest: int = LEGIBLE,
) -> Picture:
    """Prediction on the left, ground truth on the right, each with its caption."""
    return gallery(
        [paint_panoptic(image, one, label_map, longest) for one in (predicted, truth)],
        columns=2,
        captions=[
            f"prediction: {len(predicted.segments)} segments",
            f"ground truth: {len(truth.segments)} segments",
        ],
    )


def _owners(segmentation: PanopticSegmentation) -> Owners:
    """The number in the list of each pixel's segment, -1 where it has none."""
    owners = np.full(segmentation.size, -1, dtype=np.int32)
    ids = segmentation.ids.numpy()
    order = sorted(range(len(segmentation.segments)), key=lambda k: segmentation.segments[k].id)
    if order:
        listed = np.array([segmentation.segments[k].id for k in order])
        place = np.searchsorted(listed, ids).clip(max=len(order) - 1)
        found = listed[place] == ids
        owners[found] = np.array(order, dtype=np.int32)[place[found]]
    return owners


def _shown(segmentation: PanopticSegmentation, label_map: LabelMap, owners: Owners) -> list[_Shown]:
    areas = np.bincount(owners[owners >= 0], minlength=len(segmentation.segments))
    seen: Counter[int] = Counter()
    shown = []
    for number, segment in enumerate(segmentation.segments):
        colour = colour_of(label_map, segment.label)
        if segment.is_thing:
            colour = shade(colour, seen[segment.label])
            seen[segment.label] += 1
        name = _plain_name(label_map, segment.label) + (" (crowd)" if segment.crowd else "")
        shown.append(_Shown(number, segment, name, colour, int(areas[number])))
    return shown


def _plain_name(label_map: LabelMap, head: int) -> str:
    """COCO's `sky-other-merged` as `sky`: the endings tell how its stuff classes were pooled."""
    name = name_of(label_map, head)
    plain = name.removesuffix("-merged").removesuffix("-other") if name.endswith("-merged") else name
    return name if plain in label_map.names else plain


def _write_names(picture: Picture, owners: Owners, shown: Sequence[_Shown]) -> list[_Shown]:
    """Writes every name that has room, the smallest segments first; returns those that have none."""
    places = Places(owners)
    pen = ImageDraw.Draw(picture, "RGBA")
    left = []
    for one in sorted(shown, key=lambda s: s.area):
        found = _placed(one, places, _styles(one, min(picture.size)))
        if found is None:
            left.append(one)
        else:
            places.take(found[0], found[1].width, found[1].height)
            _write(pen, one, *found)
    return left


def _styles(one: _Shown, shorter: int) -> list[_Style]:
    """Styles of a name, from the most informative to the smallest."""
    large = max(12, min(40, round(shorter / 30)))
    small = max(11, round(large * 0.75))
    score = "" if one.segment.score is None else f" {one.segment.score:.2f}"
    texts = [(one.name + score, large), (one.name + score, small)] + ([(one.name, small)] if score else [])
    return [_style(text, size) for text, size in texts]


def _style(text: str, size: int) -> _Style:
    font, margin = font_of(size), max(2, round(size / 5))
    return _Style(text, font, int(font.getlength(text)) + 2 * margin + 2, size + 2 * margin, margin)


def _placed(one: _Shown, places: Places, styles: Sequence[_Style]) -> tuple[Place, _Style] | None:
    for style in styles:
        place = places.find(one.number, style.width, style.height)
        if place is not None and place.inside >= _FITS:
            return place, style
    last = styles[-1]
    place = places.find(one.number, last.width, last.height)
    return None if place is None or place.inside < _NEARLY[one.segment.is_thing] else (place, last)


def _write(pen: ImageDraw.ImageDraw, one: _Shown, place: Place, style: _Style) -> None:
    """White on a dark tag for things, white with a dark rim for stuff, which is background."""
    middle = (place.left + style.width / 2, place.top + style.height / 2)
    if one.segment.is_thing:
        corners = (place.left, place.top, place.left + style.width - 1, place.top + style.height - 1)
        pen.rounded_rectangle(corners, radius=style.height / 4, fill=(*dark(one.colour), 205))
        pen.text(middle, style.text, _WHITE, style.font, anchor="mm")
    else:
        rim = max(1, round(style.height / 14))
        pen.text(
            middle,
            style.text,
            _WHITE,
            style.font,
            anchor="mm",
            stroke_width=rim,
            stroke_fill=(*dark(one.colour), 255),
        )


def _with_legend(picture: Picture, unnamed: Sequence[_Shown]) -> Picture:
    """The picture, and below it the classes of segments without a name in it, with their number."""
    if not unnamed:
        return picture
    counts = Counter(one.name for one in unnamed)
    colours = {one.name: one.colour for one in sorted(unnamed, key=lambda s: s.area)}  # of the largest
    size = max(12, min(28, round(min(picture.size) / 36)))
    font, side, line = font_of(size), round(size * 0.8), round(size * 1.6)
    entries, x, y = [], side, 0
    for name, count in sorted(counts.items()):
        text = shortened(name if count == 1 else f"{name} x{count}", font, picture.width - 4 * side)
        width = round(1.6 * side + font.getlength(text))
        if x > side and x + width > picture.width - side:
            x, y = side, y + line
        entries.append((x, y, text, colours[name]))
        x += width + round(1.2 * side)
    sheet = Image.new("RGB", (picture.width, picture.height + y + line + side), PAPER)
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for x, y, text, colour in entries:
        middle = picture.height + side / 2 + y + line / 2
        pen.rounded_rectangle(
            (x, middle - side / 2, x + side, middle + side / 2), radius=side / 4, fill=colour
        )
        pen.text((x + 1.6 * side, middle), text, INK, font, anchor="lm")
    return sheet
