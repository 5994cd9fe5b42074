"""The ground truth of an image of an index: targets of a training, annotations of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from datamodules.index import AnnotationIndex
from datamodules.transforms.targets import ImageTargets, training_targets
from zoo.contract.batch import RLE, Annotations
from zoo.contract.labels import LabelMap
from zoo.contract.segments import PanopticSegmentation


def read_targets(index: AnnotationIndex, row: int, label_map: LabelMap) -> ImageTargets:
    """Training targets of an image, labels as head indices."""
    objects = index.objects(row)
    return training_targets(
        torch.from_numpy(objects.boxes_xywh),
        _head_indices(objects.source_ids, label_map),
        objects.crowd.tolist(),
        index.size(row),
    )


def _head_indices(source_ids: np.ndarray, label_map: LabelMap) -> list[int]:
    return [label_map.head_of_source[i] for i in source_ids.tolist()]


def read_annotations(index: AnnotationIndex, row: int, label_map: LabelMap) -> Annotations:
    """What COCO evaluation needs, as the annotation file has it; without masks."""
    objects = index.objects(row)
    return Annotations(
        boxes_xywh=torch.from_numpy(objects.boxes_xywh),
        areas=torch.from_numpy(objects.areas),
        labels=torch.tensor(_head_indices(objects.source_ids, label_map), dtype=torch.int64),
        crowd=torch.from_numpy(objects.crowd),
        counts=(len(objects.source_ids),),
    )


def with_codes(every: Annotations, kept: list[int], codes: Iterable[RLE]) -> Annotations:
    """The objects `kept` of an image, with a mask for each as COCO's run-length code."""
    return Annotations(
        every.boxes_xywh[kept], every.areas[kept], every.labels[kept], every.crowd[kept], (len(kept),), tuple(codes)
    )  # fmt: skip


class Evaluated(NamedTuple):
    """What evaluation needs to know about an image."""

    targets: ImageTargets  # without masks or with, which are not used
    annotations: Annotations
    panoptic: PanopticSegmentation | None = None


@dataclass(frozen=True)
class Truth:
    """Reads the ground truth of an image: boxes; subclasses also read masks or segments. Its pickle is small."""

    def targets(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> ImageTargets:
        """Training targets of an image, labels as head indices."""
        return read_targets(index, row, label_map)

    def evaluated(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> Evaluated:
        """What evaluation needs to know about an image."""
        targets = read_targets(index, row, label_map)
        return Evaluated(targets, read_annotations(index, row, label_map))
