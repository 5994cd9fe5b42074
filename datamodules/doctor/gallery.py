"""Pictures for the page of a data check: the worst images with their boxes, and leaked pairs."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image, ImageDraw

from datamodules.doctor import Examination
from datamodules.doctor.duplicates import Pair
from datamodules.images.decoding import decode_seen
from datamodules.index import AnnotationIndex, Fault
from datamodules.index.object_rules import Box

_SIDE = 340  # pixels of the longer side
_ARM = 7  # pixels of half a cross
_MARGIN = 26  # around the image, so that boxes past its edge are seen
_WEIGHT = {"error": 100, "warning": 10, "note": 1}
_RIGHT, _WRONG, _PAPER = (64, 160, 255), (255, 45, 70), (236, 238, 242)


class Card(NamedTuple):
    """One picture of the gallery."""

    picture: str  # JPEG as base64; empty if it cannot be decoded
    title: str
    lines: tuple[tuple[str, str, str], ...]  # severity, kind, message


class PairCard(NamedTuple):
    """Two images that are one picture."""

    left: str
    right: str
    title: str
    how: str


def worst(found: Examination, number: int = 24) -> list[Card]:
    """The images with the gravest faults, the gravest first; notes alone bring none in."""
    told = defaultdict(list)
    for fault in found.faults:
        told[_stem(fault.file)].append(fault)
    places = [
        (sum(_WEIGHT[f.severity] for f in told[key]), split, row, told[key])
        for split, index in found.source.splits.items()
        for row, key in enumerate(map(_stem, index.files))
        if key in told and any(f.severity != "note" for f in told[key])
    ]
    places.sort(key=lambda place: -place[0])
    cards = [_card(found.source.splits[split], row, faults) for _, split, row, faults in places[:number]]
    listed = {_stem(file) for index in found.source.splits.values() for file in index.files}
    lost = [
        (key, faults) for key, faults in told.items() if key not in listed and key and _is_image(faults[0])
    ]
    return cards + [_blank(faults) for _, faults in lost[: max(0, number - len(cards))]]


def _stem(file: str) -> str:
    """What an image and its label file have in common."""
    kinds = {"images", "labels", "jpegimages", "annotations"}
    parts = (
        [p for p in PurePosixPath(file).with_suffix("").parts if p.lower() not in kinds]
        if file != "."
        else []
    )
    return "/".join(parts)


def _is_image(fault: Fault) -> bool:
    return PurePosixPath(fault.file).suffix.lower() in {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
    }


def _card(index: AnnotationIndex, row: int, faults: list[Fault]) -> Card:
    wrong = {f.id for f in faults if f.severity != "note"}
    first = int(index.offsets[row])
    ids = index.annotation_ids[first : int(index.offsets[row + 1])].tolist()
    picture = _painted(index, row, [i in wrong for i in ids], [f.box for f in faults if f.box is not None])
    return Card(picture, index.files[row], _lines(faults))


def _blank(faults: list[Fault]) -> Card:
    return Card("", faults[0].file, _lines(faults))


def _lines(faults: list[Fault], most: int = 4) -> tuple[tuple[str, str, str], ...]:
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    rows = [
        (f[0].severity, kind + (f" × {len(f)}" if len(f) > 1 else ""), f[0].message)
        for kind, f in kinds.items()
    ]
    return tuple(rows[:most])


def _painted(index: AnnotationIndex, row: int, wrong: list[bool], left_out: Sequence[Box] = ()) -> str:
    """The image on paper with its boxes, blue, those at fault red and on top, also those that were left out."""
    name, size = index.files[row], index.size(row)
    try:
        image = decode_seen(index.images, name, index.image_id(row), size)
    except ValueError:
        return ""
    scale = _SIDE / max(image.size)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    sheet = Image.new("RGB", (inner[0] + 2 * _MARGIN, inner[1] + 2 * _MARGIN), _PAPER)
    sheet.paste(image.resize(inner, Image.Resampling.LANCZOS), (_MARGIN, _MARGIN))
    pen = ImageDraw.Draw(sheet)
    boxes = [*index.objects(row).boxes_xywh.tolist(), *left_out]
    wrong = [*wrong, *(True for _ in left_out)]
    for k in sorted(range(len(boxes)), key=lambda k: wrong[k]):
        x, y, w, h = (v * scale for v in boxes[k])
        left, top = (min(max(v + _MARGIN, 1), side - 3) for v, side in zip((x, y), sheet.size, strict=True))
        right, bottom = (
            min(max(v + _MARGIN, low + 1), side - 2)
            for v, low, side in zip((x + w, y + h), (left, top), sheet.size, strict=True)
        )
        corners = (round(left), round(top), max(round(right), round(left)), max(round(bottom), round(top)))
        pen.rectangle(corners, outline=_WRONG if wrong[k] else _RIGHT, width=3 if wrong[k] else 2)
        if not (w and h):
            _cross(pen, (corners[0] + corners[2]) // 2, (corners[1] + corners[3]) // 2)
    return _jpeg(sheet)


def _cross(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """Marks a box without area, which has nothing else to be seen by."""
    pen.line((x - _ARM, y - _ARM, x + _ARM, y + _ARM), fill=_WRONG, width=3)
    pen.line((x - _ARM, y + _ARM, x + _ARM, y - _ARM), fill=_WRONG, width=3)


def leaked(found: Examination, number: int = 12) -> list[PairCard]:
    """Pairs of images across splits that are one picture, the surest first."""
    every = [(first, second, pair) for (first, second), pairs in found.pairs.items() for pair in pairs]
    every.sort(key=lambda entry: (entry[2].how != "the same bytes", -entry[2].likeness))
    return [_pair(found, *entry) for entry in every[:number]]


def _pair(found: Examination, first: str, second: str, pair: Pair) -> PairCard:
    ours, theirs = found.source.splits[first], found.source.splits[second]
    return PairCard(
        _painted(ours, pair.train, [False] * len(ours.objects(pair.train).areas)),
        _painted(theirs, pair.other, [False] * len(theirs.objects(pair.other).areas)),
        f"{ours.files[pair.train]}  |  {theirs.files[pair.other]}",
        f"{first} and {second}: {pair.how} ({pair.likeness:.2f})",
    )


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
