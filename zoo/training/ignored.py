"""Queries that found what is neither object nor background: no class is learned from them.

Such regions are the parts of objects that an edge of a tile has cut off, and crowds in tiles. COCO's evaluation treats
detections in a crowd the same way: neither right nor wrong.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from zoo.contract.batch import OutputSet, Targets
from zoo.contract.boxes import cxcywh_to_ordered_xyxy, cxcywh_to_xyxy

INSIDE = 0.5  # share of a box that lies in a region, from which it is ignored
_NEVER = 60.0  # logit at which a class, or "no object", has neither loss nor gradient


class Matched(Protocol):
    """An output set and its matched rows."""

    @property
    def outputs(self) -> OutputSet:
        """The predictions, [L, B, Q, ...]."""
        ...

    @property
    def rows(self) -> Tensor:
        """[L*P] into the predictions flattened to [L*B*Q]."""
        ...


def logits_to_learn(matched: Matched, targets: Targets, softmax: bool = False) -> Tensor:
    """[L, B, Q, C] logits; those of ignored queries are constants that agree with "no object".

    With `softmax` the last one means "no object". Without ignored regions they are the logits themselves.
    """
    predictions = matched.outputs.predictions
    if targets.ignored is None or not len(targets.ignored):
        return predictions.logits
    ignored = _inside(predictions.boxes.detach(), targets)
    ignored.view(-1)[matched.rows] = False
    nothing = predictions.logits.new_full((predictions.logits.shape[-1],), -_NEVER)
    if softmax:
        nothing[-1] = _NEVER
    return torch.where(ignored[..., None], nothing, predictions.logits)


def _inside(boxes: Tensor, targets: Targets) -> Tensor:
    """[L, B, Q] whether enough of each box, cxcywh [L, B, Q, 4], lies in an ignored region of its image."""
    assert targets.ignored is not None
    assert targets.ignored_counts is not None
    found = torch.zeros(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    for image, regions in enumerate(targets.ignored.split(targets.ignored_counts)):
        if len(regions):
            own = cxcywh_to_ordered_xyxy(boxes[:, image])[..., None, :]  # [L, Q, 1, 4]
            around = cxcywh_to_xyxy(regions.to(boxes.dtype))
            low, high = torch.maximum(own[..., :2], around[:, :2]), torch.minimum(own[..., 2:], around[:, 2:])
            shared = (high - low).clamp(min=0).prod(-1)
            area = (own[..., 2:] - own[..., :2]).prod(-1)
            found[:, image] = ((shared >= INSIDE * area) & (shared > 0)).any(-1)
    return found
