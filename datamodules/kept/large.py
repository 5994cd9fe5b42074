"""Which data sets are kept as an index on the disk: the large ones, which take long to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source
from datamodules.kept.cache import Build, cached
from datamodules.kept.watch import LayoutWatch, TreeWatch

LARGE_BYTES = 16 << 20  # of annotation files
LARGE_COUNT = 20_000  # files


def keep_layout(
    way: tuple[object, ...], files: Sequence[Path], folders: Sequence[Path], build: Build
) -> Source:
    """Reads a published layout whose images are not opened, and keeps its index if it is large.

    See `LayoutWatch` for how a change of the data set is noticed.

    Args:
        way: names the folder and how it is read.
        files: the annotation files.
        folders: the folders of the images.
        build: reads the data set.
    """
    if sum(file.stat().st_size for file in files) < LARGE_BYTES:
        return build(Scratch())
    return cached(way, LayoutWatch(files, folders), build)


def keep_tree(way: tuple[object, ...], root: Path, build: Build) -> Source:
    """Reads a folder of any format whose images are opened, and keeps its index if it is large; see `TreeWatch`."""
    return cached(way, TreeWatch(root), build) if _is_large(root) else build(Scratch())


def _is_large(root: Path) -> bool:
    count = size = 0
    for place, _, names in os.walk(root):
        count += len(names)
        size += sum(os.path.getsize(f"{place}/{name}") for name in names if name.lower().endswith(".json"))
        if count >= LARGE_COUNT or size >= LARGE_BYTES:
            return True
    return False
