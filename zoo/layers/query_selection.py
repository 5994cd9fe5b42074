"""Queries selected from the tokens of an encoder (RT-DETR, arXiv 2304.08069, §4.3).

Sources, lyuwenyu/RT-DETR@068dfde: rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py,
rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_decoder.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.contract.batch import Predictions

Choice = Callable[[Tensor, int], Tensor]  # (logits [B, S, C], how many) -> tokens [B, Q]


@dataclass(frozen=True)
class Selection:
    """Queries selected from the encoder, and the encoder's own predictions for them."""

    content: Tensor  # [B, Q, dim], detached
    reference: Tensor  # [B, Q, 4] logits, detached
    encoder: Predictions  # [B, Q, .], with gradient


def by_best_class(logits: Tensor, count: int) -> Tensor:
    """The tokens with the highest logit of any class."""
    return logits.max(-1).values.topk(count, dim=1).indices


def by_any_class(logits: Tensor, count: int) -> Tensor:
    """The tokens of the highest logits of all classes together: a token is chosen once a class."""
    best = logits.flatten(1).topk(count, dim=1).indices
    return torch.div(best, logits.shape[-1], rounding_mode="floor")


def select_queries(
    memory: Tensor,
    sizes: Sequence[tuple[int, int]],
    count: int,
    *,
    project: nn.Module,
    score: nn.Module,
    box: nn.Module,
    choose: Choice = by_best_class,
) -> Selection:
    """Some tokens become queries; their boxes start at anchors.

    Args:
        memory: [B, S, dim], tokens of all levels, row-major and concatenated.
        sizes: (H, W) of each level.
        count: Q.
        project: from tokens to what the two heads read and the queries take over.
        score: [.., dim] to [.., C] logits.
        box: [.., dim] to [.., 4], added to the logits of the anchor.
        choose: which tokens.
    """
    anchors, valid = anchor_logits(sizes, memory.device)
    tokens = project(memory * valid.to(memory.dtype)[:, None])
    logits = score(tokens)
    best = choose(logits, count)
    chosen = best[..., None]
    # the box head runs on the selected tokens only: the others' boxes are never used
    selected = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1]))
    offsets = box(selected)
    boxes = offsets + anchors.to(offsets.dtype)[best]
    encoder = Predictions(logits.gather(1, chosen.expand(-1, -1, logits.shape[-1])), boxes.sigmoid())
    return Selection(selected.detach(), boxes.detach(), encoder)


def anchor_logits(
    sizes: Sequence[tuple[int, int]], device: torch.device, scale: float = 0.05, margin: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Anchors of all tokens as logits [S, 4] float32, and which lie well inside the image [S] bool.

    Those outside are +inf, so that a selected one would stay where it is.
    """
    anchors = []
    for level, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=device),
            torch.arange(width, dtype=torch.float32, device=device),
            indexing="ij",
        )
        side = torch.full_like(x, scale * 2.0**level)
        anchors.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height, side, side], -1).view(-1, 4))
    together = torch.cat(anchors)
    valid = ((together > margin) & (together < 1 - margin)).all(-1)
    logits = torch.log(together / (1 - together))
    return torch.where(valid[:, None], logits, torch.inf), valid
