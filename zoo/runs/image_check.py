"""Decodes and compares the images of a small data set before a fine-tuning."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from zoo.runs.console import counted, is_rank_zero, quoted

if TYPE_CHECKING:
    from datamodules.base import DetectionDataModule
    from datamodules.index import Fault

# what two busy cores decode in some ten seconds; a larger set is left to `zoo data check`
MOST_IMAGES = 2000
MOST_BYTES = 300 << 20
_SHOWN = 5


def image_check(data: DetectionDataModule, place: str) -> tuple[list[Fault], list[str]]:
    """Decodes and compares the images of a small set.

    Args:
        data: read.
        place: the folder or address, for the line to copy.

    Returns:
        warnings about the images, and notes for the user: what was checked, or why nothing was.

    Raises:
        ValueError: if images cannot be decoded, unless the data module skips what is broken.
    """
    splits = data.read().splits
    number = sum(map(len, splits.values()))
    way = f"zoo data check {quoted(place)}"
    unseen = "so damaged images and copies between splits stay unseen"
    if any(index.store is not None for index in splits.values()):
        return [], [f"images: inside shards, not looked at, {unseen}; `{way}` finds them"]
    if is_large(data):
        limit = f"more than {MOST_IMAGES} or {MOST_BYTES >> 20} MB"
        return [], [f"images: {number}, {limit}, not looked at, {unseen}; `{way}` finds them"]
    if not is_rank_zero():
        return [], []
    start = time.monotonic()
    faults = image_faults_of(data)
    broken = [f for f in faults if f.kind == "corrupt_image"]
    if broken and not data.skip_broken:
        shown = "\n".join(f"  {f}" for f in broken[:_SHOWN])
        raise ValueError(
            f"the data set has {counted(len(broken), 'image')} that cannot be decoded:\n{shown}\n"
            f"Replace them; `{way}` lists all, and with --fix CLEAN it writes a copy without them; or train on the "
            "others: --data.skip_broken true"
        )
    notes = [f"images: all {number} decoded and compared in {time.monotonic() - start:.0f} s"]
    for split, index in splits.items():
        own = {f.file for f in faults if f.kind in ("leak", "near_leak")} & set(index.files.tolist())
        if own:
            notes.append(
                f"{len(own)} of {counted(len(index), f'{split} image')} are in another split too, or nearly: "
                f"the score on {split} is not that of unseen data"
            )
    return [replace(f, severity="warning") for f in faults if f.severity != "note"], notes


def is_large(data: DetectionDataModule) -> bool:
    """Whether decoding all images takes more time than a check in passing may."""
    return sum(map(len, data.read().splits.values())) > MOST_IMAGES or _size(data) > MOST_BYTES


def _size(data: DetectionDataModule) -> int:
    """Bytes of all image files; a missing one is reported when it is decoded."""
    total = 0
    for index in data.read().splits.values():
        for row in range(len(index)):
            try:
                total += os.stat(index.path(row)).st_size
            except OSError:
                continue
    return total


def image_faults_of(data: DetectionDataModule) -> list[Fault]:
    """What the pixels of all images show: damage, copies."""
    from datamodules.doctor import image_faults, probe_splits

    splits = data.read().splits
    faults = image_faults(splits, probe_splits(splits, None, None))[0]
    _known[data.digest()] = faults
    return faults


def known_image_faults(data: DetectionDataModule) -> list[Fault]:
    """What `image_faults_of` last found in this process; no image is read."""
    return _known.get(data.digest(), [])


_known: dict[str, list[Fault]] = {}  # by the digest of the data, which knows files by their names
