"""A summary of a data set, for people (`lines`) and for programs (`to_dict`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datamodules.index import AnnotationIndex, Fault, by_kind
from datamodules.index.faults import NOT_READ
from zoo.contract.labels import LabelMap

_LEFT_OUT = NOT_READ | {"ambiguous_image", "no_segmentation", "missing_png"}


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split, after faulty images and objects were left out.

    Attributes:
        listed: images that the annotations list.
        images: those of them that can be used.
        objects: without crowds, which are not trained on.
        crowd: crowds.
        empty: images without any object but crowds.
    """

    listed: int
    images: int
    objects: int
    crowd: int
    empty: int


@dataclass(frozen=True)
class ClassSummary:
    """One row of the class table."""

    name: str
    source_id: int
    head_index: int
    counts: dict[str, int]  # split -> objects, without crowds


@dataclass(frozen=True)
class DataSummary:
    """The data set as it was read, and its faults."""

    format: str
    splits: dict[str, SplitSummary]
    classes: list[ClassSummary]
    faults: list[Fault]

    @property
    def errors(self) -> list[Fault]:
        """The faults that keep training from starting."""
        return [f for f in self.faults if f.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: format, splits, classes, faults."""
        return asdict(self)

    def lines(self, examples: int = 2) -> list[str]:
        """For the terminal: splits, classes, and each kind of fault with its count and first examples."""
        out = [f"format {self.format}"]
        for name, split in self.splits.items():
            listed = f" of {split.listed} listed" if split.listed != split.images else ""
            crowds = f" and {counted(split.crowd, 'crowd')}" if split.crowd else ""
            out.append(
                f"{name}: {counted(split.images, 'image')}{listed}, {counted(split.objects, 'object')}{crowds}, "
                f"{counted(split.empty, 'image')} without any"
            )
        out += [
            f"class {row.head_index} {row.name!r} (id {row.source_id} in the source): "
            + ", ".join(f"{count} in {split}" for split, count in row.counts.items())
            for row in self.classes
        ]
        for faults in by_kind(self.faults):
            out.append(f"{faults[0].severity} {faults[0].kind}: {len(faults)}")
            out += [f"  {fault.where}: {fault.message}" for fault in faults[:examples]]
            if len(faults) > examples:
                out.append(f"  ... and {len(faults) - examples} more (zoo data check lists them)")
        return out


def summarize(
    format: str, splits: Mapping[str, AnnotationIndex], label_map: LabelMap, faults: Iterable[Fault]
) -> DataSummary:
    """Counts splits and classes."""
    every = list(faults)
    of_class = {name: index.source_ids[~index.crowd] for name, index in splits.items()}
    classes = [
        ClassSummary(name, source, head, {s: int((ids == source).sum()) for s, ids in of_class.items()})
        for name, source, head in zip(
            label_map.names, label_map.source_ids, label_map.head_indices, strict=True
        )
    ]
    counted = {name: _of_split(name, index, every) for name, index in splits.items()}
    return DataSummary(format, counted, classes, every)


def _of_split(name: str, index: AnnotationIndex, faults: Iterable[Fault]) -> SplitSummary:
    row = index.image_rows[~index.crowd]
    left_out = sum(1 for fault in index.faults if fault.kind in _LEFT_OUT)
    # of Objects365: one fault of a folder, whose id says how many
    left_out += sum(int(str(f.id).split()[0]) for f in index.faults if f.kind == "missing_images")
    # of VOC: a line of a split's list without an xml is a fault of the folder
    left_out += sum(f.kind == "missing_annotation" and f.file.endswith(f"/{name}.txt") for f in faults)
    return SplitSummary(
        listed=len(index) + left_out,
        images=len(index),
        objects=len(row),
        crowd=int(index.crowd.sum()),
        empty=len(index) - len(np.unique(row)),
    )


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
