"""Losses of refined distributions: of their place (FGL), and of earlier layers that learn from the last (DDF).

arXiv 2410.13842, equations 5 and 6. Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/dfine_criterion.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.layers.distribution import Bins


class _ValueAndGradient(torch.autograd.Function):
    """A value per row whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[..., None], None, None


def localisation(logits: Tensor, bins: Bins) -> Tensor:
    """Cross entropy of each row with its two bins by their shares: ([..., bins], [...]) to [...]."""
    x = logits.detach().log_softmax(-1)
    left, right, share = bins.left[..., None], bins.left[..., None] + 1, bins.right_share[..., None]
    share = share.to(x.dtype)
    value = -(x.gather(-1, left) * (1 - share) + x.gather(-1, right) * share)[..., 0]
    gradient = x.exp_()
    gradient.scatter_add_(-1, left, share - 1)
    gradient.scatter_add_(-1, right, -share)
    result: Tensor = _ValueAndGradient.apply(logits, value, gradient)
    return result


def distillation(student: Tensor, teacher: Tensor, temperature: float = 5.0) -> Tensor:
    """T^2 KL(teacher || student) of both at temperature T, row by row; the teacher gets no gradient.

    ([L, ..., bins], [..., bins]) to [L, ...].
    """
    target = (teacher.detach() / temperature).softmax(-1)
    entropy = torch.special.entr(target).sum(-1)
    x = (student.detach() / temperature).log_softmax(-1)
    value = (x * target).sum(-1).add_(entropy).mul_(-(temperature**2))
    gradient = x.exp_().sub_(target).mul_(temperature)
    result: Tensor = _ValueAndGradient.apply(student, value, gradient)
    return result
