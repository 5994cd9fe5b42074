"""Writes an annotation file like that of Objects365, of any size, and its (empty) image files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

PATCH = 34_000  # images of one folder, as published
CLASSES = 365
_BLOCK = 200_000


def write_source(root: Path, images: int, boxes: int, outlined: float, seed: int) -> Path:
    """annotations/instances_train2017.json and train2017/patchN/*.jpg below `root`; returns the json.

    Annotations come in random order, ids too. Of the boxes, a share `outlined` has a polygon, and of those
    one in fifty is a crowd with an RLE.
    """
    generator = np.random.default_rng(seed)
    file = root / "annotations" / "instances_train2017.json"
    file.parent.mkdir(parents=True)
    widths, heights = generator.integers(400, 1200, images), generator.integers(300, 1000, images)
    ids = generator.permutation(images * 2)[:images]
    with file.open("w") as out:
        out.write('{"images": [')
        for first in range(0, images, _BLOCK):
            rows = range(first, min(first + _BLOCK, images))
            _touch(root, rows)
            lines = (
                f'{{"height": {heights[i]}, "id": {ids[i]}, "license": 5, "width": {widths[i]}, "file_name": '
                f'"{_name(i)}", "url": ""}}'
                for i in rows
            )
            out.write((", " if first else "") + ", ".join(lines))
        out.write('], "annotations": [')
        for first in range(0, boxes, _BLOCK):
            count = min(_BLOCK, boxes - first)
            out.write(
                (", " if first else "")
                + ", ".join(_objects(generator, first, count, ids, widths, heights, outlined))
            )
        categories = [{"name": f"class {i}", "id": i} for i in range(1, CLASSES + 1)]
        out.write('], "licenses": [], "categories": ' + json.dumps(categories) + "}")
    return file


def _name(image: int) -> str:
    return f"patch{image // PATCH}/objects365_v1_{image:08d}.jpg"


def _touch(root: Path, rows: range) -> None:
    for patch in {i // PATCH for i in rows}:
        (root / "train2017" / f"patch{patch}").mkdir(parents=True, exist_ok=True)
    for i in rows:
        (root / "train2017" / _name(i)).touch()


def _objects(generator, first, count, ids, widths, heights, outlined):
    rows = generator.integers(0, len(ids), count)
    size = np.stack([widths[rows], heights[rows]], axis=1)
    corner = np.round(generator.random((count, 2)) * 0.7 * size, 4)
    extent = np.round((0.02 + generator.random((count, 2)) * 0.25) * size, 4)
    boxes = np.concatenate([corner, extent], axis=1).tolist()
    classes = generator.integers(1, CLASSES + 1, count).tolist()
    with_outline = (generator.random(count) < outlined).tolist()
    crowds = (generator.random(count) < 0.02).tolist()
    sizes, image_ids = size.tolist(), ids[rows].tolist()
    for i in range(count):
        x, y, w, h = boxes[i]
        outline = ""
        crowd = int(with_outline[i] and crowds[i])
        if with_outline[i]:
            outline = f', "segmentation": {_outline(x, y, w, h, crowd, sizes[i])}'
        yield (
            f'{{"id": {first + i + 1}, "iscrowd": {crowd}, "isfake": 0, "area": {w * h:.4f}, "isreflected": 0, '
            f'"bbox": [{x}, {y}, {w}, {h}], "image_id": {image_ids[i]}, "category_id": {classes[i]}{outline}}}'
        )


def _outline(x, y, w, h, crowd, size):
    if crowd:
        column, length = int(x) * size[1] + int(y), max(1, int(h))
        return json.dumps(
            {"counts": [column, length, size[0] * size[1] - column - length], "size": size[::-1]}
        )
    steps = [(0, 0.5), (0.25, 0.1), (0.5, 0), (0.8, 0.2), (1, 0.5), (0.7, 0.9), (0.5, 1), (0.2, 0.8)]
    return json.dumps([[round(v, 2) for a, b in steps for v in (x + a * w, y + b * h)]])
