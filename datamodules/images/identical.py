"""Byte-identical image files: of files of equal size only, so that few are read."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex

Rows = NDArray[np.int64]


def identical_files(index: AnnotationIndex) -> list[Rows]:
    """The rows of each group of image files that are equal byte for byte.

    Raises:
        OSError: if a file cannot be read.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for row in range(len(index)):
        # the length of an image inside a shard is known only by reading it
        by_size[-1 if index.store is not None else index.path(row).stat().st_size].append(row)
    copies: dict[bytes, list[int]] = defaultdict(list)
    for rows in by_size.values():
        for row in rows if len(rows) > 1 else ():
            copies[hashlib.sha256(index.images.read(index.files[row])).digest()].append(row)
    return [np.asarray(rows, dtype=np.int64) for rows in copies.values() if len(rows) > 1]
