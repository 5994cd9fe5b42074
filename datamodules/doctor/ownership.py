"""Two images with one id: it cannot be known which of them an annotation is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from datamodules.index import AnnotationIndex, Fault

_GEOMETRY = frozenset({"outside", "partly_outside", "segmentation_outside_box", "segmentation_size"})


def shared_ids(faults: Iterable[Fault]) -> dict[int, str]:
    """Image ids that are used twice -> the file that came second."""
    return {f.id: f.file for f in faults if f.kind == "duplicate_image_id" and isinstance(f.id, int)}


def reassigned(faults: list[Fault], splits: Mapping[str, AnnotationIndex]) -> list[Fault]:
    """Moves faults of boxes that do not fit the first image of a shared id to the second, where they likely belong."""
    shared = shared_ids(faults)
    second_of = {
        str(index.files[row]): shared[image_id]
        for index in splits.values()
        for row, image_id in enumerate(index.image_ids.tolist() if shared else [])
        if image_id in shared
    }
    return [
        replace(
            f,
            severity="error",
            kind="ambiguous_image",
            file=second_of[f.file],
            message=f"its image id is that of {f.file} too, which it does not fit: {f.message}",
        )
        if f.kind in _GEOMETRY and f.file in second_of
        else f
        for f in faults
    ]
