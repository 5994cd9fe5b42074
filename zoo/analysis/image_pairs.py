"""The detections and objects of each image of an evaluation, and how far they overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zoo.evaluation.coco_evaluator import Collected, Flags, Floats, Integers


class ImagePairs(NamedTuple):
    """One image: D detections, best score first, N objects that are no crowd, C crowds."""

    image: int  # row of `Collected.images`
    found: Integers  # [D] rows of the detections
    objects: Integers  # [N] rows of the annotations
    crowds: Integers  # [C]
    iou: Floats  # [D, N]
    on_crowd: Floats  # [D, C] share of the detection that lies on the crowd
    same_class: Flags  # [D, N]
    same_crowd: Flags  # [D, C]


def image_pairs(data: Collected, lowest: float = 0.0, most: int | None = None) -> Iterator[ImagePairs]:
    """Every image, in the order of `data`; detections that tie in score keep their order.

    Args:
        data: boxes are compared, also where it has masks.
        lowest: detections that score less are left out.
        most: detections of an image, over all classes; None: all.
    """
    kept = np.flatnonzero(data.detections[:, 4] >= lowest)
    order = kept[np.lexsort((-data.detections[kept, 4], data.detection_image[kept]))]
    rows = np.arange(len(data.images) + 1)
    found_at = np.searchsorted(data.detection_image[order], rows)
    truth = np.argsort(data.annotation_image, kind="stable")
    truth_at = np.searchsorted(data.annotation_image[truth], rows)
    crowd = data.annotation_labels[:, 1].astype(bool)
    for image in range(len(data.images)):
        found = order[found_at[image] : found_at[image + 1]][:most]
        own = truth[truth_at[image] : truth_at[image + 1]]
        objects, crowds = own[~crowd[own]], own[crowd[own]]
        labels = data.detection_labels[found, None]
        yield ImagePairs(
            image, found, objects, crowds,
            overlaps(data.detections[found, :4], data.annotations[objects, :4], False),
            overlaps(data.detections[found, :4], data.annotations[crowds, :4], True),
            labels == data.annotation_labels[None, objects, 0],
            labels == data.annotation_labels[None, crowds, 0],
        )  # fmt: skip


def overlaps(found: Floats, truth: Floats, crowd: bool) -> Floats:
    """[D, N] IoU of boxes x, y, w, h as pycocotools computes it; of crowds the share of the detection."""
    from pycocotools import mask

    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    values: Floats = np.asarray(
        mask.iou(np.ascontiguousarray(found), np.ascontiguousarray(truth), [int(crowd)] * len(truth))
    )
    return values


def matched(pairs: ImagePairs, iou: float) -> Integers:
    """[D] the position in `pairs.objects` that each detection finds, -1 for none.

    By descending score each takes the object of its class that it overlaps most of those that are left, if that
    much, as COCO's evaluator does.
    """
    partner = np.full(len(pairs.found), -1, dtype=np.int64)
    left = np.where(pairs.same_class, pairs.iou, 0.0)
    if not left.size:
        return partner
    for d in np.flatnonzero((left >= iou).any(axis=1)):
        best = int(left[d].argmax())
        if left[d, best] >= iou:
            partner[d] = best
            left[:, best] = 0.0
    return partner
