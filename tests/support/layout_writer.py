"""Writes small data sets as people lay them out: a file tree in a few words, an object in each image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.formats.detect import read

SIZE = (96, 72)
BOX = (6.0, 9.0, 30.0, 20.0)  # x, y, width, height of the object in each image
ROW = "0 0.21875 0.263888889 0.3125 0.277777778"  # the same as YOLO has it
XML = (
    "<annotation><filename>{name}</filename><size><width>96</width><height>72</height><depth>3</depth></size>"
    "<object><name>cat</name><bndbox><xmin>7</xmin><ymin>10</ymin><xmax>36</xmax><ymax>29</ymax></bndbox></object>"
    "</annotation>"
)


@lru_cache
def picture(seed: int, suffix: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, {"jpg": "JPEG", "jpeg": "JPEG"}.get(suffix.lower(), suffix))
    return stream.getvalue()


def write(root: Path, name: str, content: str | bytes | Mapping[str, Any] | list[Any] = "") -> None:
    """One file: a picture by its suffix, json of a value, or the text."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not content and path.suffix.lower() in (".jpg", ".png", ".jpeg"):
        content = picture(sum(name.encode()) % 97, path.suffix[1:])
    elif not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def images(root: Path, names: Iterable[str]) -> None:
    for name in names:
        write(root, name)


def coco(names: Iterable[str], first: int = 1, categories: tuple[str, ...] = ("cat",)) -> dict[str, Any]:
    """A COCO file with one object in each image."""
    every = list(names)
    return {
        "images": [{"id": first + i, "file_name": n, "width": 96, "height": 72} for i, n in enumerate(every)],
        "annotations": [
            {
                "id": first + i,
                "image_id": first + i,
                "category_id": 1,
                "bbox": list(BOX),
                "area": 600,
                "iscrowd": 0,
            }
            for i in range(len(every))
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
    }


def voc(root: Path, folder: str, pictures: str, stems: Iterable[str], suffix: str = ".png") -> None:
    """xml files in `folder`, images in `pictures`."""
    for stem in stems:
        write(root, f"{pictures}/{stem}{suffix}")
        write(root, f"{folder}/{stem}.xml", XML.format(name=f"{stem}{suffix}"))


def yolo(root: Path, folder: str, pictures: str, stems: Iterable[str], suffix: str = ".jpg") -> None:
    """txt files in `folder`, images in `pictures`."""
    for stem in stems:
        write(root, f"{pictures}/{stem}{suffix}")
        write(root, f"{folder}/{stem}.txt", ROW + "\n")


def stems(split: str, number: int) -> list[str]:
    return [f"{split}{i}" for i in range(number)]


def holds(root: Path, make: Callable[[Path], None], format: str, splits: dict[str, int]) -> None:
    """The folder is read as that format, each image found and with its one object, and nothing is wrong."""
    make(root)
    source = read(root)
    assert source.format == format
    assert {s: (len(i), i.num_objects) for s, i in source.splits.items()} == {
        s: (n, n) for s, n in splits.items()
    }
    assert list(source.classes.values()) == ["cat"]
    for index in source.splits.values():
        assert index.boxes_xywh.tolist() == [pytest.approx(BOX, abs=1e-3)] * len(index)
        assert all((root / file).is_file() for file in index.files.tolist())
    assert [str(f) for f in source.faults if f.severity != "note"] == []
