"""The files of a finished job, written from its journal an image at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from zoo.bulk.images import LeftOut
from zoo.bulk.journal import Line
from zoo.storage.durable import write_atomically

JSON, PARQUET = ".json", ".parquet"
IMAGES = ".images.json"  # behind the name of the output
_ROWS = 65536  # of a row group

# numbers as results.json has them, so that both files say the same
SCHEMA = pa.schema([
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("category_id", pa.int64()),
    ("label", pa.string()),
    ("score", pa.float64()),
    ("x", pa.float64()),
    ("y", pa.float64()),
    ("box_width", pa.float64()),
    ("box_height", pa.float64()),
    ("segmentation", pa.string()),  # counts of COCO's compressed run lengths; null without masks
])  # fmt: skip


def images_file(output: Path) -> Path:
    """results.json.images.json beside results.json: COCO's `images` and `categories`, and what the job was.

    The whole name is kept: results.parquet may be another job's.
    """
    return output.with_name(output.name + IMAGES)


def pictures_folder(output: Path) -> Path:
    """The id maps of a panoptic model: beside the json and called as it is, as in COCO."""
    return output.with_suffix("")


def write_images(path: Path, info: Line, categories: list[Line], lines: Iterable[Line]) -> None:
    """A COCO file without annotations, to which results.json belongs."""

    def content(file: BinaryIO) -> None:
        file.write(b'{"info": ' + _encoded(info))
        file.write(b',\n"categories": ' + _encoded(categories))
        file.write(b',\n"annotations": [],\n"images": [')
        _write_rows(file, (image for line in lines for image in _images(line)))
        file.write(b"]}\n")

    write_atomically(path, content)


def write_results(path: Path, lines: Iterable[Line]) -> None:
    """COCO's results: a list of detections, images in their order."""

    def content(file: BinaryIO) -> None:
        file.write(b"[")
        _write_rows(file, (row for line in lines for row in line["results"]))
        file.write(b"]\n")

    write_atomically(path, content)


def write_panoptic(path: Path, categories: list[Line], lines: Iterable[Line], again: Iterable[Line]) -> None:
    """COCO's panoptic file; the same lines twice, for the images and for their annotations."""

    def content(file: BinaryIO) -> None:
        file.write(b'{"categories": ' + _encoded(categories) + b',\n"images": [')
        _write_rows(file, (image for line in lines for image in _images(line)))
        file.write(b'],\n"annotations": [')
        _write_rows(file, (row for line in again for row in line["results"]))
        file.write(b"]}\n")

    write_atomically(path, content)


def write_parquet(path: Path, categories: list[Line], lines: Iterable[Line]) -> None:
    """A row a detection, images in their order."""
    names = {category["id"]: category["name"] for category in categories}

    def content(file: BinaryIO) -> None:
        rows: list[Line] = []
        with pq.ParquetWriter(file, SCHEMA) as writer:
            for line in lines:
                rows += _parquet_rows(line, names)
                if len(rows) >= _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))

    write_atomically(path, content)


def info_of(path: Path) -> Line | None:
    """What the job of an images file was; None if it is no such file. Its images are not read."""
    with open(path, "rb") as file:
        first = file.readline()
    try:
        info = json.loads(first.rstrip()[:-1] + b"}")["info"]
        return info if isinstance(info, dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def left_out_of(lines: Iterable[Line]) -> list[LeftOut]:
    """The images without detections, and why."""
    return [LeftOut(*entry) for line in lines for entry in line["left_out"]]


def _images(line: Line) -> Iterator[Line]:
    for image_id, name, height, width in line["images"]:
        yield {"id": image_id, "file_name": name, "height": height, "width": width}


def _parquet_rows(line: Line, names: dict[int, str]) -> Iterator[Line]:
    images = {image["id"]: image for image in _images(line)}
    for row in line["results"]:
        image, (x, y, width, height) = images[row["image_id"]], row["bbox"]
        yield {
            "image_id": row["image_id"],
            "file_name": image["file_name"].encode("utf-8", "backslashreplace").decode(),
            "width": image["width"],
            "height": image["height"],
            "category_id": row["category_id"],
            "label": names[row["category_id"]],
            "score": row["score"],
            "x": x,
            "y": y,
            "box_width": width,
            "box_height": height,
            "segmentation": row["segmentation"]["counts"] if "segmentation" in row else None,
        }


def _write_rows(file: BinaryIO, rows: Iterable[Any]) -> None:
    separator = b"\n"
    for row in rows:
        file.write(separator + _encoded(row))
        separator = b",\n"


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
