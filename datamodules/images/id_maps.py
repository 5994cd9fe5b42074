"""The PNG id maps of panoptic data: where they lie, and which annotation a colour is. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datamodules.index import AnnotationIndex

# the id of a segment is the low part of its annotation id: other images may have it too
_SEGMENTS = 256**3


def annotation_id(number: int, segment_id: int) -> int:
    """Id of a segment that no other segment of the split has; `number` counts the images."""
    return number * _SEGMENTS + segment_id


def segment_id(annotation_id: int) -> int:
    """Inverse of `annotation_id`: the colour in the PNG."""
    return annotation_id % _SEGMENTS


@dataclass(frozen=True)
class PngFolder:
    """Where the id maps lie.

    Attributes:
        root: the folder.
        others: image id -> file name, of the id maps whose name is not that of their image with .png.
    """

    root: str
    others: Mapping[int, str] = field(default_factory=dict)

    def path(self, index: AnnotationIndex, row: int) -> Path:
        """The PNG of image `row`."""
        own = PurePosixPath(index.files[row]).stem + ".png"
        return Path(self.root, self.others.get(index.image_id(row), own))
