"""Instance masks from the outlines of an annotation file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask

from datamodules.index import AnnotationIndex, Fault
from datamodules.index.columns import ragged
from datamodules.index.segmentation import Segmentation
from datamodules.loading.truth import Evaluated, Truth, with_codes
from datamodules.transforms.targets import ImageTargets, training_targets
from zoo.contract.batch import RLE
from zoo.contract.labels import LabelMap


@dataclass(frozen=True)
class MaskTruth(Truth):
    """Boxes and masks: pycocotools turns polygons and run-length codes into pixels, an object's parts into one mask.

    Source: facebookresearch/detr@29901c5 datasets/coco.py, convert_coco_poly_to_mask

    Attributes:
        lenient: leave objects without an outline out of the evaluation, with their boxes, instead of refusing them.
    """

    lenient: bool = False

    def targets(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> ImageTargets:
        """Training targets with masks; crowds are left out, and so are objects without an outline."""
        size, objects = index.size(row), index.objects(row)
        wanted = np.flatnonzero(~objects.crowd).tolist()
        outlines = index.segmentations(row)
        drawn = [(k, outline) for k in wanted if (outline := outlines[k]) is not None]
        masks = torch.zeros(len(drawn), *size, dtype=torch.bool)
        for number, (_, outline) in enumerate(drawn):
            masks[number] = torch.from_numpy(outline.mask(*size))
        rows = [k for k, _ in drawn]
        return training_targets(
            torch.from_numpy(objects.boxes_xywh[rows]),
            [label_map.head_of_source[i] for i in objects.source_ids[rows].tolist()],
            objects.crowd[rows].tolist(),
            size,
            masks,
        )

    def evaluated(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> Evaluated:
        """With the outlines as run-length codes.

        Raises:
            ValueError: naming the image, if an object has no outline to evaluate, unless `lenient`.
        """
        outlines = index.segmentations(row)
        bare = [int(i) for i, o in zip(index.objects(row).ids, outlines, strict=True) if o is None]
        if bare and not self.lenient:
            raise ValueError(
                f"{index.path(row)} (image id {index.image_id(row)}): annotations {bare[:4]} have no outline, "
                "so masks cannot be evaluated; draw them, remove the annotations, or set skip_broken: true to "
                "evaluate without them"
            )
        known = super().evaluated(index, row, label_map)
        kept = [k for k, outline in enumerate(outlines) if outline is not None]
        codes = (coded(outline, index.size(row)) for outline in outlines if outline is not None)
        return known._replace(annotations=with_codes(known.annotations, kept, codes))


def coded(outline: Segmentation, size: tuple[int, int]) -> RLE:
    """COCO's compressed run-length code of an outline in an image of (h, w) `size`."""
    if outline.rle is None:
        parts = coco_mask.frPyObjects([p.tolist() for p in outline.polygons], *size)
        code: RLE = coco_mask.merge(parts)
        return code
    counts = outline.rle["counts"]
    if isinstance(counts, list):
        code = coco_mask.frPyObjects(dict(outline.rle), *size)
        return code
    return {"size": list(outline.rle["size"]), "counts": counts.encode("ascii")}


def bare_objects(splits: Mapping[str, AnnotationIndex]) -> list[Fault]:
    """`missing_outlines` of all splits; evaluation, other than training, needs those of crowds too."""
    return [f for name, index in splits.items() for f in missing_outlines(index, crowds=name != "train")]


def missing_outlines(index: AnnotationIndex, *, crowds: bool) -> Iterable[Fault]:
    """An error for each object, with or without `crowds`, that has no outline to draw its mask from."""
    outlines = index.columns.outlines
    rows = range(len(index.columns.image_ids)) if index.rows is None else index.rows
    positions = ragged(index.columns.offsets, rows)[0]
    if outlines is None:
        drawn = np.zeros(len(positions), dtype=np.bool_)
    else:
        parts = np.diff(outlines.polygon_offsets) + np.diff(outlines.rle_offsets)
        drawn = parts[positions] > 0
    owner = index.image_rows
    message = (
        "the object has a box and no outline, and masks are trained and evaluated; draw its outline, remove "
        "it, or set masks: false"
    )
    for number in np.flatnonzero(~drawn & (crowds | ~index.crowd)).tolist():
        file, own_id = index.files[int(owner[number])], int(index.annotation_ids[number])
        yield Fault("error", "no_outline", file, own_id, message)
