"""Bipartite matching of queries and objects: all sets and layers, one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.contract.batch import OutputSet, Targets
from zoo.contract.boxes import iou_and_giou_of_corners


@dataclass(frozen=True, kw_only=True)
class MatchCosts:
    """Weights of the three parts of the matching cost."""

    label: float
    l1: float
    giou: float


class LabelCost(Protocol):
    """The label part of the matching cost, low where a query fits the object's class."""

    def __call__(self, logits: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """(logits [L, B, Q, C], image [T], labels [T]) -> [T, L, Q]."""
        ...


def focal_cost(
    logits: Tensor, image: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of the object's class as if matched, minus as if not.

    Source: fundamentalvision/Deformable-DETR@11169a6 models/matcher.py; alpha and gamma are fixed there.
    """
    p = logits[:, image, :, labels].sigmoid()  # indices apart from each other put T first: [T, L, Q]
    background = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    return alpha * (1 - p) ** gamma * -(p + 1e-8).log() - background


def softmax_cost(logits: Tensor, image: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of the object's class among all classes and "no object", the last logit.

    Source: facebookresearch/detr@29901c5 models/matcher.py
    """
    return logits.softmax(-1)[:, image, :, labels].neg_()  # [T, L, Q]; one fused pass over memory


class Unite(Protocol):
    """Makes one set of pairs of several matchings."""

    def __call__(self, matched: Sequence[np.ndarray], shapes: Sequence[Sequence[int]]) -> np.ndarray:
        """(of each set [2, L*P] as `assign` returns it, (L, B, Q, ...) of each set) -> [2, G], see there."""
        ...


def union_of_matchings(matched: Sequence[np.ndarray], shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """Each query that some matching has, with the object that most of them give it: [2, G], by query.

    Rows are (image * Q + query, object). A query stands once, an object as often as it has queries. Where two objects
    have equally many matchings the official code takes the one that an unstable sort puts first, which depends on
    the machine; here it is the one that comes first in the image.

    Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/dfine_criterion.py
    """
    places = np.concatenate([m[0] % (s[1] * s[2]) for m, s in zip(matched, shapes, strict=True)])
    objects = np.concatenate([m[1] for m in matched])
    step = int(objects.max(initial=0)) + 1
    pairs, counts = np.unique(places * step + objects, return_counts=True)
    places, objects = np.divmod(pairs, step)
    order = np.lexsort((objects, -counts, places))
    first = np.unique(places[order], return_index=True)[1]
    return np.stack([places[order][first], objects[order][first]])


class HungarianMatcher:
    """Finds the cheapest one-to-one assignment of queries to objects, per layer, image and group.

    cost = label * label_cost + l1 * |b_q - b_t| - giou * GIoU(b_q, b_t)   (arXiv 2005.12872, eq. 1)
    """

    def __init__(self, costs: MatchCosts, label_cost: LabelCost) -> None:
        self.costs, self.label_cost = costs, label_cost

    def at(self, epoch: int) -> HungarianMatcher:
        """The matcher of an epoch, from 0: itself, unless its cost changes in the course of a training."""
        return self

    @torch.no_grad()
    def __call__(
        self, sets: Sequence[OutputSet], targets: Targets, unite: Unite | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches every set.

        Args:
            sets: of as many images and queries each, if they are united.
            targets: the objects of the images.
            unite: makes one set of pairs of all matchings, see `union_of_matchings`.

        Returns:
            for each set (rows [L*P], targets [L*P]), layer-major: rows index its predictions
            flattened to [L*B*Q], targets the rows of `targets`; P is the same in every layer. With `unite`
            the union follows, (image * Q + query [G], targets [G]).

        Raises:
            FloatingPointError: a cost is not finite; says in which set.
        """
        if not sets:
            return []
        device = targets.boxes.device
        image = targets.image_index
        costs = [self.cost(output, targets, image) for output in sets]
        flat = torch.cat([c.flatten() for c in costs]).cpu().numpy()  # the step's one device-to-host transfer
        matched, first = [], 0
        for output, cost in zip(sets, costs, strict=True):
            block = flat[first : first + cost.numel()].reshape(cost.shape)
            first += cost.numel()
            if not np.isfinite(block).all():
                raise FloatingPointError(
                    f"output set {output.name!r} has a non-finite matching cost: a prediction is nan or infinite, "
                    "or a box has no area"
                )
            matched.append(assign(block, targets.counts, output.predictions.logits.shape, output.groups))
        if unite is not None:
            matched.append(unite(matched, [output.predictions.logits.shape for output in sets]))
        # and its one transfer back, of all indices together
        together = torch.from_numpy(np.concatenate(matched, axis=1))
        if device.type == "cuda":
            together = together.pin_memory()
        parts = together.to(device, non_blocking=True).split([m.shape[1] for m in matched], dim=1)
        return [(part[0], part[1]) for part in parts]

    def cost(self, output: OutputSet, targets: Targets, image: Tensor) -> Tensor:
        """[T, L, Q]: each object against the queries of its own image."""
        logits, boxes = output.predictions.logits, output.predictions.boxes
        labels = torch.zeros_like(targets.labels) if output.class_agnostic else targets.labels
        # coordinate-major, so that every operation below reads contiguous memory
        predicted = boxes.permute(3, 1, 0, 2).contiguous()[:, image].unbind(0)  # 4 x [T, L, Q]
        wanted = targets.boxes.to(boxes.dtype).t()[:, :, None, None].unbind(0)  # 4 x [T, 1, 1]
        l1 = sum_of_differences(predicted, wanted)
        _, giou = iou_and_giou_of_corners(_corners(*predicted), _corners(*wanted))
        label = self.label_cost(logits, image, labels)
        return label.mul_(self.costs.label).add_(l1, alpha=self.costs.l1).sub_(giou, alpha=self.costs.giou)


def sum_of_differences(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    """L1 distance of boxes given as four coordinate tensors."""
    parts = [(x - y).abs_() for x, y in zip(a, b, strict=True)]
    return parts[0].add_(parts[1]).add_(parts[2]).add_(parts[3])


def _corners(cx: Tensor, cy: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    half_w, half_h = 0.5 * w.clamp(min=0), 0.5 * h.clamp(min=0)  # sides that have crossed enclose nothing
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def assign(cost: np.ndarray, counts: Sequence[int], shape: Sequence[int], groups: int) -> np.ndarray:
    """Solves every (layer, image, group) of a set on the host.

    Args:
        cost: [T, L, Q].
        counts: objects of each image.
        shape: (L, B, Q, ...) of the set's predictions.
        groups: Q is split into as many equal parts.

    Returns:
        [2, L*P] int64, layer-major: row in the flattened predictions, object.

    Raises:
        ValueError: Q is not divisible by groups.
    """
    layers, images, queries = shape[:3]
    if queries % groups:
        raise ValueError(f"{queries} queries cannot be split into {groups} equal groups")
    size = queries // groups
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows, objects = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for layer in range(layers):
        for image in np.flatnonzero(np.asarray(counts)):
            first, last = starts[image], starts[image + 1]
            for group in range(groups):
                # targets as rows: the fast orientation of SciPy's solver
                block = cost[first:last, layer, group * size : (group + 1) * size]
                target, query = linear_sum_assignment(block)
                rows.append((layer * images + image) * queries + group * size + query)
                objects.append(first + target)
    return np.stack([np.concatenate(rows), np.concatenate(objects)]).astype(np.int64)
