"""How far two panoptic predictions of the same images lie apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.contract.batch import Batch, Predictions
from zoo.contract.segments import PanopticSegmentation
from zoo.prediction.masks import resized_nearest, sizes_without_padding
from zoo.training.module import DetectionModule


class SegmentDifference(NamedTuple):
    """Pixels of some images."""

    pixels: int
    apart: int  # that belong to another segment
    decided: int  # of them, those whose best two masks differ by more than rounding can


def segment_difference(
    module: DetectionModule, source: Predictions, file: Predictions, batch: Batch
) -> SegmentDifference:
    """Compares the segments of images.

    A pixel belongs to the query with the highest mask. Where two masks are equal but for rounding, either is right:
    masks that differ by at most d between source and file decide alike wherever the best two are more than 2 d apart.

    Args:
        module: of the source, with a panoptic rule and a label map.
        source: its predictions.
        file: those of the file.
        batch: the images.
    """
    assert module.panoptic is not None
    assert module.label_map is not None
    sizes, found = sizes_without_padding(batch), SegmentDifference(0, 0, 0)
    segments = [
        module.panoptic(one, sizes, batch.original_sizes, module.label_map.things) for one in (source, file)
    ]
    apart = (source.masks_of_all() - file.masks_of_all()).abs().amax((1, 2, 3))
    kept = module.panoptic.kept_masks(source, sizes)
    for image, (mine, theirs, (*_, logits)) in enumerate(zip(*segments, kept, strict=True)):
        other = other_pixels(mine, theirs)
        decided = torch.ones_like(other)
        if len(logits) > 1:
            best = logits.topk(2, dim=0).values
            decided = resized_nearest(best[0] - best[1] > 2 * apart[image], batch.original_sizes[image])
        counts = other.numel(), int(other.sum()), int((other & decided).sum())
        found = SegmentDifference(*(a + b for a, b in zip(found, counts, strict=True)))
    return found


def other_pixels(source: PanopticSegmentation, file: PanopticSegmentation) -> Tensor:
    """[h, w] bool: not in the segment that is paired with the source's; pairs have one label and most pixels alike.

    Ids are no part of it: they count the segments, so that one that is gone renames all behind it.
    """
    shape = max(len(source.segments), 1), max(len(file.segments), 1)
    both = source.ids.long() * shape[1] + file.ids.long()
    shared = torch.bincount(both.flatten(), minlength=shape[0] * shape[1]).view(shape).numpy()
    labels = [np.array([segment.label for segment in one.segments] or [-1]) for one in (source, file)]
    shared = np.where(labels[0][:, None] == labels[1], shared, 0)
    partner = torch.full((shape[0],), -1)
    mine, theirs = linear_sum_assignment(-shared)
    partner[torch.from_numpy(mine)] = torch.from_numpy(theirs)
    alike = torch.from_numpy(labels[0][:, None] == labels[1])[source.ids.long(), file.ids.long()]
    return (partner[source.ids.long()] != file.ids) | ~alike
