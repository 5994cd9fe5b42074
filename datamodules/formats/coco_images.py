"""The images of a COCO json as columns: as Python objects they would take most of the memory of a conversion."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from datamodules.index.columns import name_code, name_text
from datamodules.index.growing_columns import Scratch
from datamodules.index.object_rules import Int64
from datamodules.reading.json_stream import Piece, converted

_Side = Annotated[int, Meta(ge=0, le=2**62)]


class CocoImage(msgspec.Struct):
    """One image with any values."""

    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Usual(msgspec.Struct, gc=False):
    """One image with the usual types."""

    id: Int64
    file_name: str
    width: _Side
    height: _Side


USUAL_IMAGE = msgspec.json.Decoder(list[_Usual])


class Images:
    """All images of one file, in its order."""

    def __init__(self, scratch: Scratch) -> None:
        self._ids = array("q")
        self._sides = array("q")  # width and height of each
        self._names = scratch.column(np.uint8)
        self._ends = array("q", [0])
        self._odd: dict[int, CocoImage] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[CocoImage]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> CocoImage:
        if not 0 <= row < len(self):
            raise IndexError(f"image {row} of {len(self)}")
        if row in self._odd:
            return self._odd[row]
        name = name_text(self._names.array()[self._ends[row] : self._ends[row + 1]].tobytes())
        return CocoImage(self._ids[row], name, self._sides[2 * row], self._sides[2 * row + 1])

    def add(self, piece: Piece) -> None:
        """The images of one piece of the list.

        Raises:
            JsonError: if an element is no object.
        """
        usual: list[_Usual] = piece.values
        if not piece.typed:
            usual = [
                self._usual(row, image)
                for row, image in enumerate(converted(piece, list[CocoImage]), len(self))
            ]
        codes = [name_code(image.file_name) for image in usual]
        end = self._ends[-1]
        for image, code in zip(usual, codes, strict=True):
            end += len(code)
            self._ids.append(image.id)
            self._sides.append(image.width)
            self._sides.append(image.height)
            self._ends.append(end)
        self._names.write(b"".join(codes))

    def _usual(self, row: int, image: CocoImage) -> _Usual:
        """The image, or a stand-in for an odd one, which is kept as it is."""
        try:
            return msgspec.convert(msgspec.structs.asdict(image), _Usual)
        except msgspec.ValidationError:
            self._odd[row] = image
            return _Usual(0, "", 0, 0)
