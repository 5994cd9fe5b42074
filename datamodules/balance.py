"""Repeat-factor sampling: images of rare classes are used more often, as LVIS does it.

Source: Gupta, Dollár, Girshick, LVIS (arXiv 1908.03195), section 4.2: of a class that a share f of the images has, the
factor is max(1, sqrt(t / f)) with a threshold t, and of an image the largest of its classes. Where images are cut, f is
still a share of the images, and a tile has the largest factor of the classes that it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex
from zoo.contract.seeds import derived_generator

_ONE = 1 << 20  # a factor in whole numbers, so that sums do not depend on their order


@dataclass(frozen=True)
class RareClass:
    """A class whose images are repeated.

    Attributes:
        source_id: of the class.
        images: that have it.
        factor: how often each of them is used in an epoch, in the mean, at least.
    """

    source_id: int
    images: int
    factor: float


@dataclass(frozen=True)
class Balance:
    """How often each image is used in an epoch.

    Attributes:
        threshold: share of the images, below which a class is rare.
        factors: [N] float64 of each image, 1 or more.
        rare: the classes that are repeated, the rarest first.
    """

    threshold: float
    factors: NDArray[np.float64]
    rare: tuple[RareClass, ...]

    @classmethod
    def of(cls, index: AnnotationIndex, threshold: float) -> Balance:
        """The factors of a training set; crowds do not count, for they are not trained on."""
        single = ~index.crowd
        row = index.image_rows[single]
        pairs = np.unique(np.stack([row, index.source_ids[single].astype(np.int64)]), axis=1)
        classes, which, images = np.unique(pairs[1], return_inverse=True, return_counts=True)
        of_class = np.maximum(1.0, np.sqrt(threshold / (images / max(1, len(index)))))
        factors = np.ones(len(index))
        np.maximum.at(factors, pairs[0], of_class[which])
        rare = [
            RareClass(int(c), int(n), float(f))
            for c, n, f in zip(classes, images, of_class, strict=True)
            if f > 1
        ]
        return cls(threshold, factors, tuple(sorted(rare, key=lambda r: (r.images, r.source_id))))

    @property
    def num_images(self) -> int:
        """Images of an epoch, repeats included: the same in every epoch."""
        return int(self._whole().sum()) // _ONE

    def order(self, seed: int, epoch: int, *draw: int) -> list[int]:
        """The images of an epoch in their order: row + copy * N for each copy of it; `draw` numbers other such orders.

        An image is used as often as its factor says, or once more or less than that, so that its mean over epochs is
        the factor. Where the paper rounds each image by a number of its own, here the images in a random order share
        one, as in systematic sampling: that keeps the number of images of an epoch, and the mean of each.
        """
        generator = derived_generator(seed, epoch, -2, *draw)
        number = len(self.factors)
        rows = torch.randperm(number, generator=generator).numpy()
        start = int(torch.randint(_ONE, (1,), generator=generator))
        ends = (np.cumsum(self._whole()[rows]) + start) // _ONE
        uses = np.diff(ends, prepend=0)
        repeated = np.repeat(rows, uses)
        copies = np.arange(len(repeated)) - np.repeat(np.cumsum(uses) - uses, uses)
        keys = repeated + number * copies
        shuffled = keys[torch.randperm(len(keys), generator=generator).numpy()]
        return shuffled[: self.num_images].tolist()

    def of_classes(self, source_ids: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """The factors of objects by their classes, 1 of those that are not rare."""
        factors = np.ones(len(source_ids))
        for rare in self.rare:
            factors[source_ids == rare.source_id] = rare.factor
        return factors

    def _whole(self) -> NDArray[np.int64]:
        return np.rint(self.factors * _ONE).astype(np.int64)

    def lines(self, names: Sequence[str], source_ids: Sequence[int], what: str = "images") -> list[str]:
        """What it did to `what`, for people: classes with their factors."""
        if not self.rare:
            return [
                f"balance {self.threshold:g}: every class is in more images than that share; nothing is repeated"
            ]
        name = dict(zip(source_ids, names, strict=True))
        told = ", ".join(
            f"{name.get(r.source_id, r.source_id)} x {r.factor:.2f} ({r.images} image{'' if r.images == 1 else 's'})"
            for r in self.rare[:8]
        )
        more = f" and {len(self.rare) - 8} more classes" if len(self.rare) > 8 else ""
        return [
            f"balance {self.threshold:g}: an epoch has {self.num_images} {what} instead of {len(self.factors)}; "
            f"repeated: {told}{more}"
        ]
