"""What a data set holds, for people (`lines`) and for programs (`to_dict`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datamodules.index import AnnotationIndex, Fault
from zoo.labels import LabelMap


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split, after faulty images and objects were left out."""

    images: int
    objects: int  # crowds included
    crowd: int
    empty: int  # images without any object


@dataclass(frozen=True)
class ClassSummary:
    """One row of the class table."""

    name: str
    source_id: int
    head_index: int
    counts: dict[str, int]  # split -> objects


@dataclass(frozen=True)
class DataSummary:
    """The data set as it was understood, and everything wrong with it."""

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

    def lines(self, max_faults: int = 10) -> list[str]:
        """For the terminal: splits, classes, counts of faults by kind and the first of them."""
        out = [f"format {self.format}"]
        for name, split in self.splits.items():
            crowd = f", {split.crowd} of them crowds" if split.crowd else ""
            out.append(
                f"{name}: {split.images} images, {split.objects} objects{crowd}, {split.empty} images "
                "without any"
            )
        out += [
            f"class {row.head_index} {row.name!r} (id {row.source_id} in the source): "
            + ", ".join(f"{count} in {split}" for split, count in row.counts.items())
            for row in self.classes
        ]
        kinds = Counter((f.severity, f.kind) for f in self.faults)
        out += [f"{number} x {severity} {kind}" for (severity, kind), number in kinds.items()]
        out += [f"  {fault}" for fault in self.faults[:max_faults]]
        if len(self.faults) > max_faults:
            out.append(f"  ... and {len(self.faults) - max_faults} more")
        return out


def summarize(
    format: str, splits: Mapping[str, AnnotationIndex], label_map: LabelMap, faults: Iterable[Fault]
) -> DataSummary:
    """Counts splits and classes."""
    classes = [
        ClassSummary(
            name, source, head, {s: int((index.source_ids == source).sum()) for s, index in splits.items()}
        )
        for name, source, head in zip(
            label_map.names, label_map.source_ids, label_map.head_indices, strict=True
        )
    ]
    counted = {
        name: SplitSummary(
            images=len(index),
            objects=index.num_objects,
            crowd=int(index.crowd.sum()),
            empty=int((np.diff(index.offsets) == 0).sum()),
        )
        for name, index in splits.items()
    }
    return DataSummary(format, counted, classes, list(faults))
