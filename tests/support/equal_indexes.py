"""Two annotation indexes are the same: files, columns to the type, outlines."""

import numpy as np
from tiny_sets import INDEX_COLUMNS

from datamodules.index import AnnotationIndex


def assert_equal(ours: AnnotationIndex, theirs: AnnotationIndex) -> None:
    assert ours.files.tolist() == theirs.files.tolist()
    for name in INDEX_COLUMNS:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other), name
    for row in range(len(ours)):
        found = [[s and s.to_coco() for s in index.segmentations(row)] for index in (ours, theirs)]
        assert found[0] == found[1]
