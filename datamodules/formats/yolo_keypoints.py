"""Key points after the box in the rows of YOLO's pose labels: how many there are, by data.yaml or by the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.index import Fault
from datamodules.reading.text import as_utf8
from zoo.storage.opening import open_file

BOX = 5  # numbers of a row without key points: class cx cy w h
_LOOKED_AT = 200  # label files with rows that are examined for key points
_HEAD = 1 << 16  # bytes of each that are read
_ENOUGH = 4  # rows whose points all lie in their box by chance in less than one set of a thousand
_MARGIN = 0.02  # of the image's side by which a key point may lie outside its box
_OUTLINES = ("segment", "obb")  # `task:` of data.yaml for which long rows are polygons


@dataclass
class KeyPoints:
    """The numbers after the box in each row.

    Attributes:
        number: key points of an object.
        dims: numbers of each: x and y, and whether it is visible.
        rows: how many rows had them.
        guessed: whether data.yaml does not name them and they were recognised by the rows alone.
    """

    number: int
    dims: int
    rows: int = 0
    guessed: bool = False

    @property
    def row(self) -> int:
        """Numbers of a row."""
        return BOX + self.number * self.dims

    def __str__(self) -> str:
        return f"{self.number} key points of {self.dims} numbers"

    def fault(self, file: str) -> Fault:
        """A note that only the boxes are used; a warning if the key points were guessed."""
        done = f"{self.rows} rows have {self} after the box; the boxes are used and the key points are not"
        if not self.guessed:
            return Fault("note", "key_points", file, None, done)
        say = f"kpt_shape: [{self.number}, {self.dims}]"
        message = (
            f"{done}; that is guessed from the rows: all have {self.row} numbers and the points lie in the box; "
            f"write {say} in data.yaml, or `task: segment` if they are polygons"
        )
        return Fault("warning", "key_points", file, None, message)


def key_points(file: Path | None, content: Mapping[str, Any], labels: Iterable[Path]) -> KeyPoints | None:
    """The shape of the key points, by data.yaml or by the rows; None if there are none.

    Args:
        file: data.yaml.
        content: its values.
        labels: label files; only the first are looked into.

    Raises:
        ValueError: if data.yaml gives a shape that is none.
    """
    given = content.get("kpt_shape")
    if given is not None:
        shape = given if isinstance(given, list) else []
        whole = [int(str(v)) for v in shape if str(v).isdecimal()]
        if len(shape) != 2 or len(whole) != 2 or not 0 < whole[0] < 10_000 or whole[1] not in (2, 3):
            raise ValueError(
                f"{file}: kpt_shape is {given!r}; it must be [number of key points, 2 or 3], e.g. [17, 3]"
            )
        return KeyPoints(whole[0], whole[1])
    if str(content.get("task", "")).lower() in _OUTLINES:
        return None
    with_rows = filter(None, map(_rows, labels))
    return _guessed([row for own in islice(with_rows, _LOOKED_AT) for row in own])


def _rows(file: Path) -> list[list[float]]:
    """The rows at the beginning of a label file; none if one is not made of numbers, which is reported later."""
    if not file.is_file():
        return []
    with open_file(file) as stream:
        data = stream.read(_HEAD)
    lines = as_utf8(data).decode("utf-8-sig", errors="replace").split("\n")
    if len(data) == _HEAD:
        lines.pop()  # cut off
    try:
        rows = [[float(value) for value in line.replace(",", " ").split()] for line in lines]
    except ValueError:
        return []
    return [row for row in rows if row]


def _guessed(rows: list[list[float]]) -> KeyPoints | None:
    """The shape that fits all rows: they are equally long, and the points after the box lie in it.

    A polygon's first two points, taken for a box, hold the others by chance only.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or (length := lengths.pop()) <= BOX + 1:
        return None
    values = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        return None
    for dims in (3, 2):
        if (length - BOX) % dims:
            continue
        points = values[:, BOX:].reshape(len(rows), -1, dims)
        flagged = dims == 3 and np.isin(points[..., 2], (0, 1, 2)).all()
        if dims == 3 and not flagged:
            continue
        if _inside(values, points).all() and (flagged or (len(rows) >= _ENOUGH and not _turned(values))):
            return KeyPoints(points.shape[1], dims, guessed=True)
    return None


def _inside(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N, K] whether a key point lies in its box; one at 0, 0 is not labelled."""
    middle, half = values[:, None, 1:3], values[:, None, 3:5] / 2
    near = (np.abs(points[..., :2] - middle) <= half + _MARGIN).all(axis=-1)
    return near | (points[..., :2] == 0).all(axis=-1)


def _turned(values: np.ndarray) -> bool:
    """Whether all rows are four corners of which opposite ones have one middle: turned boxes."""
    if values.shape[1] != 9:
        return False
    corners = values[:, 1:].reshape(-1, 4, 2)
    return bool(np.allclose(corners[:, 0] + corners[:, 2], corners[:, 1] + corners[:, 3], atol=0.02))
