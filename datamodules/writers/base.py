"""What the writers of all formats have in common."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from datamodules.index import AnnotationIndex
from datamodules.index.segmentation import Segmentation


class Labelled(NamedTuple):
    """One object.

    Attributes:
        annotation_id: its id in the source.
        source_id: class id in the source.
        box: x, y, w, h in pixels.
        area: square pixels, by the source.
        crowd: whether it is a region of many.
        outline: polygons or RLE, None if it has none.
    """

    annotation_id: int
    source_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    outline: Segmentation | None


@dataclass(frozen=True)
class LabelledImage:
    """One image with its objects.

    Attributes:
        name: path below the folder of its split.
        image_id: its id in the source.
        size: (h, w) of the frame of the boxes.
        objects: crowds included.
    """

    name: str
    image_id: int
    size: tuple[int, int]
    objects: tuple[Labelled, ...]


class Writer(Protocol):
    """Writes the annotations of a data set below a folder, image by image.

    `losses` counts what the format cannot hold: words for a person -> how often. `dropped` are the objects
    that were left out for it, by split.
    """

    losses: Counter[str]
    dropped: Counter[str]
    flat: bool

    def image_path(self, split: str, name: str) -> Path:
        """Where the image belongs."""
        ...

    def add(self, split: str, image: LabelledImage) -> None:
        """Writes one image."""
        ...

    def close(self) -> None:
        """Finishes the files, when all images are written."""
        ...


def labelled_images(index: AnnotationIndex, names: list[str]) -> Iterator[LabelledImage]:
    """The images of a split in order, under their new names."""
    image_ids, offsets, annotation_ids = index.image_ids, index.offsets, index.annotation_ids
    for row, name in enumerate(names):
        objects = index.objects(row)
        outlines = index.segmentations(row)
        own = annotation_ids[int(offsets[row]) : int(offsets[row + 1])].tolist()
        yield LabelledImage(
            name,
            int(image_ids[row]),
            index.size(row),
            tuple(
                Labelled(annotation_id, source_id, (box[0], box[1], box[2], box[3]), area, crowd, outline)
                for annotation_id, source_id, box, area, crowd, outline in zip(
                    own, objects.source_ids.tolist(), objects.boxes_xywh.tolist(), objects.areas.tolist(),
                    objects.crowd.tolist(), outlines, strict=True,
                )
            ),
        )  # fmt: skip


class BoxWriter:
    """What the writers share whose format has boxes alone and knows classes by name."""

    def __init__(self, root: Path, classes: Mapping[int, str]) -> None:
        self.losses: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._root, self._classes = root, {i: one_line(name) for i, name in classes.items()}
        changed = "class names with spaces at an end or control characters, which are taken out"
        self.losses[changed] = sum(self._classes[i] != name for i, name in classes.items())
        same = len(classes) - len(set(self._classes.values()))
        self.losses["classes of the same name as another, which become one"] = same

    def plain_objects(self, image: LabelledImage, split: str) -> list[Labelled]:
        """The objects that the format can hold; counts in `losses` and `dropped` what it cannot."""
        kept = without_crowds(image, split, self.losses, self.dropped)
        self.losses["outlines"] += sum(labelled.outline is not None for labelled in kept)
        unheld_areas(kept, self.losses)
        return kept


def without_crowds(
    image: LabelledImage, split: str, losses: Counter[str], dropped: Counter[str]
) -> list[Labelled]:
    """The objects without crowd regions, which are counted."""
    kept = [labelled for labelled in image.objects if not labelled.crowd]
    number = len(image.objects) - len(kept)
    losses["crowd regions, left out"] += number
    dropped[split] += number
    return kept


def unheld_areas(kept: Sequence[Labelled], losses: Counter[str]) -> None:
    """Counts areas that differ from that of the box, so that the copy loses them."""
    losses["areas that are not those of the box"] += sum(
        labelled.area != labelled.box[2] * labelled.box[3] for labelled in kept
    )


def one_line(name: str) -> str:
    """A class name as a line of text can hold it: without spaces at its ends and without control characters."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in name).strip()
