"""Contrastive denoising queries (DINO, arXiv 2203.03605, as RT-DETR uses them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.contract.batch import Batch, Pairs
from zoo.contract.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from zoo.contract.seeds import derived_generator


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """What a decoder's denoising part is made of.

    Attributes:
        num_queries: objects at most, beside the denoising queries.
        num_denoising: positive denoising queries aimed at (twice as many with the negatives); 0 for none.
        label_noise: half of this share of the denoising labels is replaced.
        box_noise: corners of positives move by up to this many half sizes.
    """

    num_queries: int
    num_denoising: int
    label_noise: float
    box_noise: float


EMPTY_BOX = (0.5, 0.5, 0.1, 0.1)  # of the padding in a step without objects, before its noise


class DenoisingQueries(NamedTuple):
    """Noised objects as extra decoder queries, K of them: `groups` x (positives, negatives)."""

    labels: Tensor  # [B, K] int64 after noise; num_classes on padding
    boxes_unactivated: Tensor  # [B, K, 4] logits of cxcywh after noise
    blocked: Tensor  # [K+Q, K+Q] bool, True = may not attend
    pairs: Pairs  # positives and their objects
    groups: int


def contrastive_denoising(
    batch: Batch,
    *,
    num_classes: int,
    num_queries: int,
    num_denoising: int,
    label_noise: float,
    box_noise: float,
    empty_group: bool = False,
    uncross: bool = False,
) -> DenoisingQueries | None:
    """Builds the denoising part of a micro-batch from the facts of its whole step.

    Group count and width come from the fullest image of the step: an image alone gets the same
    queries as in the undivided batch (padding queries are visible to the others, so width counts).

    Args:
        batch: with its step.
        num_classes: width of the head; padding has this number as its label.
        num_queries: see `DenoisingConfig`.
        num_denoising: see `DenoisingConfig`.
        label_noise: see `DenoisingConfig`.
        box_noise: see `DenoisingConfig`.
        empty_group: a step without objects gets one group of padding, which is background to the loss.
        uncross: a box whose corners the noise has moved past each other is the box between them; otherwise its
            side is 0.

    Returns:
        None when `num_denoising` is 0, or the step has no object at all and gets no group.
    """
    step = batch.step
    if step is None:
        raise ValueError("denoising needs Batch.step, the facts of the whole optimizer step; training only")
    nothing = step.max_count == 0
    if num_denoising == 0 or (nothing and not empty_group):
        return None
    width = max(1, step.max_count)
    groups = 1 if nothing else max(1, num_denoising // width)
    targets = batch.targets
    device = targets.labels.device
    labels = torch.full((len(batch), width), num_classes, dtype=torch.int64, device=device)
    padding = targets.boxes.new_tensor(EMPTY_BOX) if nothing else targets.boxes.new_zeros(4)
    boxes = padding.repeat(len(batch), width, 1)
    slot = torch.cat([torch.arange(n) for n in targets.counts]).to(device, non_blocking=True)
    image = targets.image_index
    labels[image, slot] = targets.labels
    boxes[image, slot] = targets.boxes
    noise = [
        # (seed, step, image) alone: a split into micro-batches cannot change a draw
        _draw_noise(derived_generator(step.seed, step.index, i), groups, width, num_classes, label_noise)
        for i in batch.image_ids
    ]
    new_labels = torch.stack([n.labels for n in noise]).to(device, non_blocking=True)
    relabel = torch.stack([n.relabel for n in noise]).to(device, non_blocking=True)
    shift = torch.stack([n.shift for n in noise]).to(device, non_blocking=True)
    is_object = (labels != num_classes).repeat(1, 2 * groups)
    noised_labels = torch.where(relabel & is_object, new_labels, labels.repeat(1, 2 * groups))
    noised_boxes = _shift_corners(boxes.repeat(1, 2 * groups, 1), box_noise * shift.to(boxes.dtype))
    if uncross:
        noised_boxes = noised_boxes.abs()
    return DenoisingQueries(
        labels=noised_labels,
        boxes_unactivated=inverse_sigmoid(noised_boxes),
        blocked=attention_block(groups, width, num_queries, device),
        pairs=positive_pairs(targets.counts, groups, width, device),
        groups=groups,
    )


class _Noise(NamedTuple):
    labels: Tensor  # [K] a uniform class
    relabel: Tensor  # [K] bool
    shift: Tensor  # [K, 4] of each corner in half widths and heights, signed


def _draw_noise(
    generator: torch.Generator, groups: int, width: int, num_classes: int, label_noise: float
) -> _Noise:
    """All random numbers of one image. Negatives (second half of a group) shift by 1 to 2, positives by 0 to 1."""
    total = 2 * groups * width
    labels = torch.randint(num_classes, (total,), generator=generator)
    relabel = torch.rand(total, generator=generator) < label_noise * 0.5
    sign = torch.randint(2, (total, 4), generator=generator) * 2 - 1
    negative = (torch.arange(total) // width % 2).unsqueeze(1)
    return _Noise(labels, relabel, sign * (torch.rand(total, 4, generator=generator) + negative))


def _shift_corners(boxes: Tensor, shift: Tensor) -> Tensor:
    """Cxcywh boxes with corners moved by `shift` half sizes and clipped to the image."""
    half = boxes[..., 2:].repeat(1, 1, 2) * 0.5
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + shift * half).clamp(0, 1))


def attention_block(groups: int, width: int, num_queries: int, device: torch.device) -> Tensor:
    """[K+Q, K+Q] bool: matching queries do not see denoising ones, groups do not see each other."""
    total = 2 * groups * width
    group = torch.arange(total + num_queries, device=device) // (2 * width)
    group[total:] = groups
    sees_other = group[:, None] != group[None, :]
    matching_column = (group == groups)[None, :]
    return sees_other & ~matching_column


def positive_pairs(counts: tuple[int, ...], groups: int, width: int, device: torch.device) -> Pairs:
    """Positive query k of each group belongs to object k of its image."""
    image, query, target, first = [], [], [], 0
    for index, count in enumerate(counts):
        within = torch.arange(count)
        start = torch.arange(groups)[:, None] * (2 * width)
        query.append((start + within).flatten())
        target.append((first + within).repeat(groups))
        image.append(torch.full((groups * count,), index))
        first += count
    stacked = torch.stack([torch.cat(image), torch.cat(query), torch.cat(target)])
    return Pairs(*stacked.to(device, non_blocking=True))
