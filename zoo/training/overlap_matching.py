"""A matching whose cost becomes another one late in the training (DEIMv2, arXiv 2509.20787)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.contract.batch import OutputSet, Targets
from zoo.contract.boxes import cxcywh_to_ordered_xyxy, iou_and_giou_of_corners
from zoo.training.matcher import HungarianMatcher, LabelCost, MatchCosts


@dataclass(frozen=True, kw_only=True)
class OverlapMatching:
    """When queries are matched by probability and overlap alone, and how much the overlap counts.

    Attributes:
        from_epoch: the first epoch, from 0.
        power: of the IoU.
    """

    from_epoch: int
    power: float


class OverlapMatcher(HungarianMatcher):
    """cost = -p(class of the object) IoU(b_q, b_t)^power, without weights.

    An object that no box touches costs the same everywhere: it gets any query.
    """

    def __init__(self, power: float) -> None:
        self.power = power

    def cost(self, output: OutputSet, targets: Targets, image: Tensor) -> Tensor:
        """[T, L, Q]: each object against the queries of its own image."""
        logits, boxes = output.predictions.logits, output.predictions.boxes
        labels = torch.zeros_like(targets.labels) if output.class_agnostic else targets.labels
        found = cxcywh_to_ordered_xyxy(boxes.transpose(0, 1)[image]).unbind(-1)  # 4 x [T, L, Q]
        wanted = cxcywh_to_ordered_xyxy(targets.boxes.to(boxes.dtype))[:, None, None].unbind(
            -1
        )  # 4 x [T, 1, 1]
        overlap, _ = iou_and_giou_of_corners(found, wanted)
        return logits[:, image, :, labels].sigmoid().mul_(overlap**self.power).neg_()


class LateOverlapMatcher(HungarianMatcher):
    """`HungarianMatcher` in the first epochs, `OverlapMatcher` after them."""

    def __init__(self, costs: MatchCosts, label_cost: LabelCost, late: OverlapMatching) -> None:
        super().__init__(costs, label_cost)
        self.from_epoch, self.late = late.from_epoch, OverlapMatcher(late.power)

    def at(self, epoch: int) -> HungarianMatcher:
        """See `HungarianMatcher.at`."""
        return self.late if epoch >= self.from_epoch else self
