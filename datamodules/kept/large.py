"""Which data sets are kept as an index on the disk: the large ones, which take long to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source
from datamodules.kept.cache import cached
from datamodules.kept.watch import LayoutWatch, TreeWatch

LARGE_BYTES = 16 << 20  # of annotation files
LARGE_COUNT = 20_000  # files

Build = Callable[[Scratch], Source]


def keep_layout(
    way: tuple[object, ...], files: Sequence[Path], folders: Sequence[Path], build: Build
) -> Source:
    """A published layout, whose pictures are not looked into: see `LayoutWatch` for what is checked later.

    Args:
        way: names the folder and how it is read.
        files: the annotation files.
        folders: those of the images.
        build: reads it.
    """
    if sum(file.stat().st_size for file in files) < LARGE_BYTES:
        return build(Scratch())
    return cached(way, LayoutWatch(files, folders), build)


def keep_tree(way: tuple[object, ...], root: Path, build: Build) -> Source:
    """A folder of any format, whose pictures are looked into: see `TreeWatch` for what is checked later."""
    return cached(way, TreeWatch(root), build) if _is_large(root) else build(Scratch())


def _is_large(root: Path) -> bool:
    count = size = 0
    for place, _, names in os.walk(root):
        count += len(names)
        size += sum(os.path.getsize(f"{place}/{name}") for name in names if name.lower().endswith(".json"))
        if count >= LARGE_COUNT or size >= LARGE_BYTES:
            return True
    return False
