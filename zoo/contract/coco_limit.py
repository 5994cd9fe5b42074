"""COCO's AP counts 100 detections of each image and class, so AP has a ceiling if there are more objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DETECTIONS = 100  # of an image and class, at most; the last of COCO's maxDets
_RECALLS = 101  # thresholds that AP averages the precision over: 0, .01, ..., 1


class Ceiling(NamedTuple):
    """What the limit does to a set of images.

    Attributes:
        images: number of images that have more objects of a class than are counted.
        fullest: the (image, class) with the most objects, as they were given.
        objects: of that class in that image.
        ap: the largest AP that a perfect detector can have.
    """

    images: int
    fullest: tuple[int, int]
    objects: int
    ap: float

    def words(self) -> str:
        """The ceiling in words."""
        have = "1 image has" if self.images == 1 else f"{self.images} images have"
        return (
            f"COCO's AP counts {DETECTIONS} detections of an image and class, and {have} more objects of one class "
            f"(up to {self.objects}): AP is at most {self.ap:.2f} here, for a perfect detector"
        )


def ceiling(image: NDArray[Any], label: NDArray[Any]) -> Ceiling | None:
    """The limit's effect on objects (crowds left out), None where no image has more than 100 of a class.

    Args:
        image: [n] of each object, any whole numbers.
        label: [n] its class.
    """
    pairs, counts = np.unique(np.stack([image, label], axis=1), axis=0, return_counts=True)
    over = counts > DETECTIONS
    if not over.any():
        return None
    labels, group = np.unique(pairs[:, 1], return_inverse=True)
    group = group.reshape(-1)
    found = np.bincount(group, np.minimum(counts, DETECTIONS), len(labels))
    recall = found / np.bincount(group, counts, len(labels))
    # precision is 1 up to this recall and 0 beyond; a recall that meets a threshold has reached it
    reached = np.floor(recall * (_RECALLS - 1) + 1e-9) + 1
    most = int(counts.argmax())
    return Ceiling(
        len(np.unique(pairs[over, 0])),
        (int(pairs[most, 0]), int(pairs[most, 1])),
        int(counts[most]),
        float((reached / _RECALLS).mean()),
    )
