"""Label losses of set prediction, summed per decoder layer.

Each takes the logits of one output set and where its matched entries are, and never builds a one-hot
target: the loss of "nothing here" is summed over all entries and the matched ones are put right. The
gradient is the closed form, computed with the value, so the backward pass is one multiplication.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LabelLoss(Protocol):
    """(logits [L, N, C], matched [M], quality [M]) -> [L].

    `matched` indexes the flattened logits at (row, class) of each pair; `quality` is the IoU of the
    pair, without gradient. The result is a sum over N and C, not yet divided by anything.
    """

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """See the class."""
        ...


class _SumPerLayer(torch.autograd.Function):
    """Sum of a loss over all entries of a layer, from its value and gradient per entry."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.flatten(1).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, 1, 1), None, None


class Varifocal:
    """Varifocal loss (arXiv 2008.13367, equation 2) with the IoU of the pair as target.

    Unmatched: alpha p^gamma BCE(x, 0), the factor without gradient. Matched: q BCE(x, q).
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """See `LabelLoss`."""
        x = logits.detach().contiguous()
        p = x.sigmoid()
        factor = (p * p if self.gamma == 2.0 else p**self.gamma).mul_(self.alpha)
        x_matched = x.flatten()[matched]
        p_matched = p.flatten()[matched]
        value = F.softplus(x, threshold=40.0).mul_(factor)
        bce = F.binary_cross_entropy_with_logits(x_matched, quality, reduction="none")
        value.view(-1)[matched] = quality * bce
        gradient = factor.mul_(p)
        gradient.view(-1)[matched] = quality * (p_matched - quality)
        return _SumPerLayer.apply(logits, value, gradient)


class SigmoidFocal:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5) on hard 0/1 targets."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """See `LabelLoss`; `quality` is not used."""
        x = logits.detach().contiguous()
        value, gradient = self._background(x)
        # an object is background mirrored: p -> 1 - p, alpha -> 1 - alpha
        object_value, object_gradient = self._background(-x.flatten()[matched])
        mirror = self.alpha / (1 - self.alpha)
        value.view(-1)[matched] = mirror * object_value
        gradient.view(-1)[matched] = -mirror * object_gradient
        return _SumPerLayer.apply(logits, value, gradient)

    def _background(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient of (1 - alpha) p^gamma softplus(x)."""
        p, softplus = x.sigmoid(), F.softplus(x, threshold=40.0)
        factor = (1 - self.alpha) * p**self.gamma
        return factor * softplus, factor * (self.gamma * (1 - p) * softplus + p)


class BinaryCrossEntropy:
    """Plain binary cross entropy on hard 0/1 targets."""

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """See `LabelLoss`; `quality` is not used."""
        target = torch.zeros_like(logits)
        target.view(-1)[matched] = 1
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)
