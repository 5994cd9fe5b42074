"""Writes YOLO: data.yaml, images/<split>/ and labels/<split>/ with one txt an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from datamodules.writers.base import Labelled, LabelledImage, unheld_areas, without_crowds

_FAR = 1.5  # readers take larger numbers for pixels
_FITS = 0.01  # pixels; COCO's boxes are rounded to it
_MOVES = 1.0  # pixels by which the edges of an outline and of its box may differ
_NO_OUTLINE = "; such an outline is left out, the box is written"


class YoloWriter:
    """Boxes, outlines and classes by position; no crowds, ids or areas.

    A row is `class cx cy w h` or `class x1 y1 x2 y2 ...`. A file has one kind of rows: programs that find one outline
    in it read the numbers of a box as two points. In such a file a box without an outline is written as four corners.
    """

    flat = False

    def __init__(self, root: Path, classes: Mapping[int, str], splits: list[str]) -> None:
        self.losses: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._root = root
        self._position = {source_id: i for i, source_id in enumerate(classes)}
        if list(classes) != list(range(len(classes))):
            self.losses["class ids, which become positions 0, 1, 2, ..."] = len(classes)
        content: dict[str, object] = {split: f"images/{split}" for split in splits}
        content |= {"nc": len(classes), "names": list(classes.values())}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        (root / "data.yaml").write_text(text, encoding="utf-8")

    def image_path(self, split: str, name: str) -> Path:
        """In images/<split>."""
        return self._root / "images" / split / name

    def add(self, split: str, image: LabelledImage) -> None:
        """Writes the label file of one image, numbers with all digits."""
        rows: dict[str, None] = {}
        kept = without_crowds(image, split, self.losses, self.dropped)
        unheld_areas(kept, self.losses)
        outlines = [self._outline(labelled) for labelled in kept]
        outlined = any(outline is not None for outline in outlines)
        for labelled, outline in zip(kept, outlines, strict=True):
            values = self._box(labelled, image.size) if outline is None else _shares(outline, image.size)
            if outlined and outline is None:
                self.losses[
                    "boxes without an outline beside objects that have one, written as their corners"
                ] += 1
                values = _corners(values)
            row = " ".join([str(self._position[labelled.source_id]), *map(repr, values)])
            if row in rows:
                self.losses["second copies of the same box of the same class, left out"] += 1
                self.dropped[split] += 1
            rows[row] = None
        path = (self._root / "labels" / split / image.name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")

    def _box(self, labelled: Labelled, size: tuple[int, int]) -> list[float]:
        """Centre and sides as shares of the image of (h, w) `size`."""
        (x, y, w, h), (height, width) = labelled.box, size
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        if max(map(abs, values)) <= _FAR:
            return values
        self.losses["parts of boxes far outside of the image, cut off"] += 1
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        return [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]

    def _outline(self, labelled: Labelled) -> NDArray[np.float64] | None:
        """[k, 2] points of the one polygon that a row can hold; None if the object has none such."""
        if labelled.outline is None:
            return None
        if labelled.outline.rle is not None:
            self.losses[f"outlines given as masks (RLE){_NO_OUTLINE}"] += 1
            return None
        parts = [polygon.reshape(-1, 2) for polygon in labelled.outline.polygons]
        points = np.concatenate(parts)
        x, y, w, h = labelled.box
        edges = np.concatenate([points.min(axis=0), points.max(axis=0)])
        miss = float(np.abs(edges - (x, y, x + w, y + h)).max())
        if miss > _MOVES or len(points) < 3:
            self.losses[f"outlines that miss the edge of their box by more than a pixel{_NO_OUTLINE}"] += 1
            return None
        if miss > _FITS:
            self.losses[
                "boxes that miss the edge of their outline by up to a pixel; that edge is the box"
            ] += 1
        if len(parts) > 1:
            self.losses["outlines of several parts, joined to one by lines without width"] += 1
        return joined(parts)

    def close(self) -> None:
        """Does nothing: every image was written whole."""


def joined(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """[k, 2] one polygon of the same area and extent: each part [n, 2] is entered and left at its nearest point."""
    whole = parts[0]
    for part in parts[1:]:
        distances = ((whole[:, None] - part[None]) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        around = np.concatenate([part[j:], part[: j + 1]])
        whole = np.concatenate([whole[: i + 1], around, whole[i:]])
    return whole


def _shares(points: NDArray[np.float64], size: tuple[int, int]) -> list[float]:
    shares: list[float] = (points / (size[1], size[0])).ravel().tolist()
    return shares


def _corners(box: list[float]) -> list[float]:
    """cx, cy, w, h to the four corners."""
    cx, cy, w, h = box
    x0, y0, x1, y1 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    return [x0, y0, x1, y0, x1, y1, x0, y1]
