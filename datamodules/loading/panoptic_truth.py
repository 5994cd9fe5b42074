"""Panoptic ground truth of an image: its PNG id map, and its segments as the index has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from datamodules.images.id_maps import PngFolder, segment_id
from datamodules.index import AnnotationIndex
from datamodules.loading.mask_truth import MaskTruth
from datamodules.loading.truth import Evaluated, Truth, read_annotations, with_codes
from datamodules.transforms.targets import ImageTargets
from zoo.contract.batch import Annotations
from zoo.contract.labels import LabelMap
from zoo.contract.segments import VOID, PanopticSegmentation, Segment, ids_of_png, mask_boxes


@dataclass(frozen=True)
class PanopticTruth(Truth):
    """Boxes, masks and segments from the PNG. Stuff and crowds are objects like others.

    Attributes:
        pngs: the id maps.
        lenient: leave out segments without pixels and pixels without a segment instead of refusing the image.
        instances: objects for box and mask AP, with the same rows as the panoptic index; None: the segments of things.
        masks: whether training gets the masks too, or only the boxes that are computed from them.
    """

    pngs: PngFolder
    lenient: bool = False
    instances: AnnotationIndex | None = None
    masks: bool = True

    def panoptic(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> PanopticSegmentation:
        """The segmentation at the size of the image, segments in the order of the annotation file.

        Raises:
            ValueError: naming the PNG, if it cannot be read, has another size, or disagrees with the file.
        """
        path = self.pngs.path(index, row)
        found = read_segmentation(path, index, row, label_map)
        faults = found.faults()
        if not faults:
            return found
        if not self.lenient:
            raise ValueError(
                f"{path} (image id {index.image_id(row)}): {'; '.join(faults[:4])}; `zoo data check` lists all "
                "such files; correct them, or set skip_broken: true to leave such segments out"
            )
        return _agreed(found)

    def targets(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> ImageTargets:
        """Every segment, crowds and stuff included; a box ends on the last pixel of its segment, not behind it.

        Source: facebookresearch/detr@29901c5 datasets/coco_panoptic.py
        """
        return _targets(self.panoptic(index, row, label_map), self.masks)

    def evaluated(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> Evaluated:
        """With the segmentation; annotations are the instances, or the things with masks from the PNG."""
        found = self.panoptic(index, row, label_map)
        targets = _targets(found, False)  # masks are not used here and cost a resize each
        if self.instances is None:
            return Evaluated(targets, _things(found, index, row, label_map), found)
        if self.instances.image_id(row) != index.image_id(row):
            raise ValueError(
                f"row {row} is image {self.instances.image_id(row)} of the instances and {index.image_id(row)} "
                "of the panoptic data; read both with one datamodule"
            )
        instances = MaskTruth(self.lenient).evaluated(self.instances, row, label_map)
        return Evaluated(targets, instances.annotations, found)


def _targets(found: PanopticSegmentation, with_masks: bool) -> ImageTargets:
    masks = found.masks()
    labels = torch.tensor([s.label for s in found.segments], dtype=torch.int64)
    return ImageTargets(labels, mask_boxes(masks), masks if with_masks else None)


def _things(
    found: PanopticSegmentation, index: AnnotationIndex, row: int, label_map: LabelMap
) -> Annotations:
    """Boxes and areas as the annotation file has them, masks from the PNG."""
    masks = dict(zip((s.id for s in found.segments), found.masks(), strict=True))
    every = read_annotations(index, row, label_map)
    ids = [segment_id(i) for i in index.objects(row).ids.tolist()]
    kept = [
        number
        for number, (own, label) in enumerate(zip(ids, every.labels.tolist(), strict=True))
        if label in label_map.things and own in masks
    ]
    codes = (coco_mask.encode(np.asfortranarray(masks[ids[k]].numpy().astype(np.uint8))) for k in kept)
    return with_codes(every, kept, codes)


def read_segmentation(
    path: Path, index: AnnotationIndex, row: int, label_map: LabelMap
) -> PanopticSegmentation:
    """The PNG with the segments of the index, whether or not they agree.

    Raises:
        ValueError: naming the file, if it cannot be read or its size is not that of the image.
    """
    try:
        ids = ids_of_png(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} (image id {index.image_id(row)}): {error}") from error
    size = index.size(row)
    if ids.shape != size:
        raise ValueError(
            f"{path} (image id {index.image_id(row)}) is {ids.shape[1]}x{ids.shape[0]}, its image is "
            f"{size[1]}x{size[0]} (width x height); export the PNG at the size of the image"
        )
    values, counts = np.unique(ids, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    objects = index.objects(row)
    segments = []
    rows = zip(objects.ids.tolist(), objects.source_ids.tolist(), objects.crowd.tolist(), strict=True)
    for number, source, crowd in rows:
        own, label = segment_id(number), label_map.head_of_source[source]
        segments.append(Segment(own, label, label in label_map.things, pixels.get(own, 0), crowd))
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def _agreed(found: PanopticSegmentation) -> PanopticSegmentation:
    """Only the segments that are both in the PNG and in the json."""
    segments: dict[int, Segment] = {}
    for segment in found.segments:
        if segment.area:
            segments.setdefault(segment.id, segment)
    listed = torch.tensor(sorted(segments), dtype=torch.int32)
    ids = torch.where(torch.isin(found.ids, listed), found.ids, VOID)
    return PanopticSegmentation(ids.to(torch.int32), tuple(segments.values()))
