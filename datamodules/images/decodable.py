"""Which images of a data set can be decoded, found out by decoding each of them once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from datamodules.images.probe import probe_all
from datamodules.index import AnnotationIndex
from datamodules.index.faults import Fault
from datamodules.progress import Meter

FEW_IMAGES = 64  # a worker; below it starting one costs more than it saves
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of each period, or `max`


def corrupt_image(file: str, image_id: int, why: str) -> Fault:
    """The fault of an image that cannot be decoded."""
    message = f"it cannot be decoded: {why}; replace it or remove it from the annotations"
    return Fault("error", "corrupt_image", file, image_id, message)


def corrupt_images(
    splits: Mapping[str, AnnotationIndex], progress: Meter | None = None
) -> dict[str, dict[int, Fault]]:
    """Split -> row -> fault of each image that cannot be decoded; an image that is in two splits is decoded once.

    Raises:
        OSError: if a process that decodes is killed.
    """
    total = len({name for index in splits.values() for name in index.files.tolist()})
    reasons: dict[str, str] = {}  # of every image seen; empty for a good one
    found: dict[str, dict[int, Fault]] = {}
    for split, index in splits.items():
        names = index.files.tolist()
        new = [name for name in dict.fromkeys(names) if name not in reasons]
        for k, seen in probe_all(index.images, new, min(usable_cores(), len(new) // FEW_IMAGES)):
            reasons[new[k]] = seen.error
            if progress is not None:
                progress(len(reasons), total)
        found[split] = {
            row: corrupt_image(name, index.image_id(row), reasons[name])
            for row, name in enumerate(names)
            if reasons[name]
        }
    return found


def without(
    splits: Mapping[str, AnnotationIndex], corrupt: Mapping[str, Mapping[int, Fault]]
) -> dict[str, AnnotationIndex]:
    """The splits without the images in `corrupt` (split -> row -> fault) and their objects."""
    return {
        split: index.take([row for row in range(len(index)) if row not in corrupt[split]])
        if corrupt.get(split)
        else index
        for split, index in splits.items()
    }


def usable_cores() -> int:
    """Cores that this process may use, at least 1: a batch system limits them by affinity, a container by quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(most) / int(period))))
    except (OSError, ValueError):  # no control group of this kind, or `max`
        return cores
