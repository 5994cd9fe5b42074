"""Raw masks to instances and panoptic segments of the original images.

Every size is (h, w). The *processed* size of an image is what the network saw of it, without padding; masks
cover the padded batch, whose size is the largest processed height and width in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from zoo.contract.batch import RLE, Batch, Detections, MaskFunction, Predictions
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.prediction.postprocess import BestClassSoftmax, at_least_float32, best_classes

Size = tuple[int, int]
_AT_ONCE = 1 << 24  # pixels of enlarged masks, or of masks in the original image, in memory at a time


@dataclass(frozen=True)
class InstanceMasks:
    """Every query's mask beside its detection, in the original image: DETR's rule for segm AP.

    Attributes:
        threshold: a pixel belongs to a mask whose probability is above this.
    """

    threshold: float

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, processed_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        """The detections of `BestClassSoftmax`, each with its mask as run lengths.

        Raises:
            ValueError: the predictions have no masks, or a size is missing.
        """
        masks = masks_of(predictions, processed_sizes, original_sizes)
        detections = BestClassSoftmax()(predictions, original_sizes)
        if not detections:
            return []
        order = best_classes(predictions.logits)[2]
        padded = padded_size(processed_sizes)
        found = []
        for image, sizes in enumerate(zip(detections, processed_sizes, original_sizes, strict=True)):
            one, processed, original = sizes
            logits = masks(torch.full_like(order[image], image), order[image])
            codes: tuple[RLE, ...] = ()
            # in parts: a hundred masks of a large photograph take gigabytes
            for part in logits.split(max(1, _AT_ONCE // (original[0] * original[1]))):
                codes += run_lengths(binary_masks(part, padded, processed, original, self.threshold))
            found.append(one._replace(masks=codes))
        return found


def binary_masks(logits: Tensor, padded: Size, processed: Size, original: Size, threshold: float) -> Tensor:
    """[K, h, w] bool masks in the original image, of logits [K, h', w'] over the padded one.

    Enlarged bilinearly to the padded size, cropped to the processed size, compared with the threshold, and resized
    to the nearest pixel.
    """
    height, width = processed
    parts = [torch.zeros(0, *original, dtype=torch.bool, device=logits.device)]
    for part in logits.split(max(1, _AT_ONCE // (padded[0] * padded[1]))):
        inside = enlarged(part, padded)[:, :height, :width].sigmoid() > threshold
        parts.append(F.interpolate(inside[:, None].byte(), original)[:, 0].bool())
    return torch.cat(parts)


def run_lengths(masks: Tensor) -> tuple[RLE, ...]:
    """COCO's compressed run lengths of [K, h, w] bool masks."""
    return tuple(coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).byte().cpu().numpy())))


@dataclass(frozen=True, kw_only=True)
class PanopticRule:
    """Which queries become segments, and how they share the pixels.

    Attributes:
        score_threshold: a query whose best class, "no object" included, has no more than this is dropped.
        min_area: segments of at most so many pixels of the original image are dropped.
        crop_padding: false is the official code: masks of the padded batch are squeezed onto the image
            without its padding, so that only an image without padding, such as a batch of one, is right.
            true cuts the padding off first.
    """

    score_threshold: float
    min_area: int
    crop_padding: bool

    def __post_init__(self) -> None:
        if self.min_area < 0:
            raise ValueError(f"panoptic.min_area is {self.min_area} pixels; it must be at least 0")

    @torch.no_grad()
    def __call__(
        self,
        predictions: Predictions,
        processed_sizes: Sequence[Size],
        original_sizes: Sequence[Size],
        things: Collection[int],
    ) -> list[PanopticSegmentation]:
        """The segments of each image.

        Args:
            predictions: logits [B, Q, C + 1], the last "no object"; masks are computed for kept queries only.
            processed_sizes: of each image.
            original_sizes: of each image.
            things: head indices of countable classes, `LabelMap.things`; all others are stuff.

        Raises:
            ValueError: the predictions have no masks, or a size is missing.
        """
        masks_of(predictions, original_sizes)
        found = []
        kept = self.kept_masks(predictions, processed_sizes)
        for original, (labels, scores, logits) in zip(original_sizes, kept, strict=True):
            facts = zip(labels.tolist(), scores.tolist(), strict=True)
            candidates = [Candidate(label, label in things, score) for label, score in facts]
            found.append(shared_pixels(logits, candidates, original, self.min_area))
        return found

    def kept_masks(
        self, predictions: Predictions, processed_sizes: Sequence[Size]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(labels [K], scores [K], masks' logits [K, h, w] at its size) of each image's queries that it keeps."""
        masks = masks_of(predictions, processed_sizes)
        scores, labels = at_least_float32(predictions.logits).softmax(-1).max(-1)
        kept = (labels != predictions.logits.shape[-1] - 1) & (scores > self.score_threshold)
        padded = padded_size(processed_sizes)
        for image, processed in enumerate(processed_sizes):
            query = kept[image].nonzero()[:, 0]
            logits = masks(torch.full_like(query, image), query)
            if self.crop_padding:
                logits = enlarged(logits, padded)[:, : processed[0], : processed[1]]
            else:
                logits = enlarged(logits, processed)
            yield labels[image, query], scores[image, query], logits


class Candidate(NamedTuple):
    """A query that may become a segment."""

    label: int
    is_thing: bool
    score: float


def shared_pixels(
    logits: Tensor, candidates: Sequence[Candidate], original: Size, min_area: int
) -> PanopticSegmentation:
    """Gives each pixel to the query with the highest mask, and drops segments that are too small.

    In the first round all pixels of queries of one stuff class go to the first of these queries. The others
    then have no pixels and are dropped with the small segments. Each further round gives every pixel to the
    remaining query with the highest mask, whatever its class. Ids count from 0 after the last round, so the
    first segment has the id 0, which is void elsewhere. Both follow the official code, with which the
    published PQ was measured. If no segment remains, the map is all zero.

    Args:
        logits: [K, h, w] at the processed size.
        candidates: class, kind and score of each of the K queries.
        original: size of the result.
        min_area: see `PanopticRule`.
    """
    left = torch.arange(len(candidates), device=logits.device)
    owner = _first_of_stuff(candidates).to(logits.device)
    while len(left):
        # the official code takes a softmax over queries first, which does not change the argmax
        highest = resized_nearest(logits[left].argmax(0), original)
        id_map = owner[highest]
        areas = id_map.flatten().bincount(minlength=len(left))
        large = areas > min_area
        if large.all():
            chosen = (candidates[query] for query in left.tolist())
            segments = tuple(
                Segment(number, one.label, one.is_thing, area, score=one.score)
                for number, (one, area) in enumerate(zip(chosen, areas.tolist(), strict=True))
            )
            return PanopticSegmentation(id_map.int().cpu(), segments)
        left = left[large]
        owner = torch.arange(len(left), device=logits.device)
    return PanopticSegmentation(torch.zeros(original, dtype=torch.int32), ())


def _first_of_stuff(candidates: Sequence[Candidate]) -> Tensor:
    """[K] the query itself, or the first one of its class where that is stuff."""
    first: dict[int, int] = {}
    owner = [n if c.is_thing else first.setdefault(c.label, n) for n, c in enumerate(candidates)]
    return torch.tensor(owner, dtype=torch.int64)


def resized_nearest(values: Tensor, size: Size) -> Tensor:
    """[h, w] to `size` with Pillow's nearest filter, as the official code resizes a PIL image."""
    rows = _nearest(values.shape[0], size[0]).to(values.device)
    columns = _nearest(values.shape[1], size[1]).to(values.device)
    return values[rows[:, None], columns]


@lru_cache(maxsize=256)
def _nearest(before: int, after: int) -> Tensor:
    line = Image.fromarray(np.arange(before, dtype=np.int32)[None])
    resized = np.asarray(line.resize((after, 1), Image.Resampling.NEAREST))
    return torch.from_numpy(resized[0].astype(np.int64))


def enlarged(logits: Tensor, size: Size) -> Tensor:
    """[K, h, w] to [K, *size], bilinear, in float32 or better."""
    if not len(logits):
        return logits.new_zeros(0, *size)
    logits = at_least_float32(logits)
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def sizes_without_padding(batch: Batch) -> list[Size]:
    """The processed size of each image, from the padding of its batch."""
    visible = ~batch.padding
    heights, widths = visible.any(2).sum(1).tolist(), visible.any(1).sum(1).tolist()
    return list(zip(heights, widths, strict=True))


def padded_size(sizes: Sequence[Size]) -> Size:
    """The size of the batch that images of these sizes are padded to."""
    return max((h for h, _ in sizes), default=0), max((w for _, w in sizes), default=0)


def masks_of(predictions: Predictions, *sizes: Sequence[Size]) -> MaskFunction:
    """The masks of predictions for as many images as there are sizes.

    Raises:
        ValueError: the predictions have no masks, or the numbers differ.
    """
    if predictions.masks is None:
        raise ValueError("the model predicts no masks; use one with a mask head, e.g. DetrSegmentationModule")
    images = len(predictions.logits)
    if any(len(s) != images for s in sizes):
        raise ValueError(f"{[len(s) for s in sizes]} sizes for predictions of {images} images; give one each")
    return predictions.masks
