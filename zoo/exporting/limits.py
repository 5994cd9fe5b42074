"""How far an exported file may be from its source, by precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from zoo.runtimes.facts import Precision


@dataclass(frozen=True)
class Limits:
    """Above one of these an export fails.

    Attributes:
        logits: difference of a logit.
        boxes: difference of a box's coordinate, as a share of the image.
        masks: difference of a mask's logit; lower precisions are judged by the pixels that masks lose.
        pixels: share of the pixels of masks that are lost, see `masks_lost`.
        score: difference of a paired detection's score.
        tied: share of the images whose queries differ by more although their detections do not. Networks that choose
            their queries choose others where scores are nearly equal, and then all queries of the image differ.
        unpaired: share of detections without a partner.
        ap: what AP may lose; an AP that is higher by more fails only in fp32, where it cannot be right either.
        block: difference of a block's output as a share of its largest value, from which it is named.
    """

    logits: float
    boxes: float
    masks: float
    pixels: float
    score: float
    tied: float
    unpaired: float
    ap: float
    block: float


# fp32: rounding alone; measured 2e-5 of a logit of 16. Lower precisions are judged by what is found, not by how
LIMITS: Mapping[Precision, Limits] = {
    "fp32": Limits(
        logits=2e-3,
        boxes=2e-4,
        masks=2e-3,
        pixels=0.02,
        score=1e-3,
        tied=0.25,
        unpaired=0.0,
        ap=1e-4,
        block=1e-3,
    ),
    "fp16": Limits(
        logits=1.0,
        boxes=0.05,
        masks=inf,
        pixels=0.02,
        score=0.05,
        tied=1.0,
        unpaired=0.02,
        ap=2e-3,
        block=0.02,
    ),
    "int8": Limits(
        logits=inf, boxes=inf, masks=inf, pixels=1.0, score=1.0, tied=1.0, unpaired=1.0, ap=1e-2, block=0.5
    ),
}
