"""What published files of RT-DETRv2 and the families after it hold beside weights, and our networks compute.

No shape tells these apart, so they are compared: a network with 4 points on each of three levels has tensors of the
same shapes as one with 3, 6 and 3, and is another function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.query_selection import anchor_logits

TOLERANCE = 0.01  # relative; files may be of half precision
# 1 / points of each point of a layer, under the official name and those of transformers; fine to coarse
_POINTS = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:cross|encoder)_attn\.n(?:um)?_points_scale$")
# logits of the anchors of the input that was evaluated, and which of them lie well inside it
_ANCHORS, _VALID = "decoder.anchors", "decoder.valid_mask"


def refuse_other_constants(state: Mapping[str, Tensor], decoder: nn.Module) -> None:
    """Compares the constants of a published state dict, as far as it has them, with what `decoder` computes.

    Anchors may be of any input size, as ours are always of the size at hand.

    Raises:
        ValueError: naming the tensor, and what it is in either.
    """
    layers: Any = decoder.decoder.layers  # type: ignore[union-attr]
    for key, value in state.items():
        found = _POINTS.search(key)
        if found and int(found[1]) < len(layers):
            _compare_points(key, value, layers[int(found[1])].cross_attn.points)
    if _ANCHORS in state:
        _compare_anchors(state[_ANCHORS], state.get(_VALID), len(layers[0].cross_attn.points))


def _compare_points(key: str, value: Tensor, points: Sequence[int]) -> None:
    ours = torch.cat([torch.full((n,), 1 / n) for n in points])
    if value.numel() != ours.numel() or not torch.allclose(
        value.flatten().float(), ours, rtol=TOLERANCE, atol=0
    ):
        theirs = [round(1 / v, 2) if v else v for v in value.flatten().tolist()]
        raise ValueError(
            f"{key} is 1 over {', '.join(f'{n:g}' for n in theirs)}: those points are spread otherwise over the levels "
            f"than {list(points)}, the num_points of this model"
        )


def _compare_anchors(anchors: Tensor, valid: Tensor | None, levels: int) -> None:
    anchors = anchors.reshape(-1, 4).float()
    cells, rest = divmod(len(anchors), sum(4**level for level in range(levels)))  # of the coarsest map
    for height in [] if rest else [h for h in range(1, cells + 1) if cells % h == 0]:
        scales = [2**level for level in reversed(range(levels))]
        ours, inside = anchor_logits([(height * s, cells // height * s) for s in scales], anchors.device)
        if torch.allclose(anchors[inside], ours[inside], rtol=TOLERANCE, atol=TOLERANCE):
            if valid is None or torch.equal(valid.flatten().bool(), inside):
                return
    raise ValueError(
        f"{_ANCHORS} or {_VALID}: {len(anchors)} anchors that are no centres of the places of {levels} maps with sides "
        "of 0.05, twice that, ..., as this model has them"
    )
