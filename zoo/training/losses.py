"""Losses of set prediction: of labels, summed per decoder layer, and of masks, one value a pair.

Each label loss takes the logits of one output set and where its matched entries are, and never builds a one-hot
target: the loss of "no object" is summed over all entries and then corrected at the matched ones. The
gradient is the closed form, computed with the value, so the backward pass is one multiplication.
The mask losses do the same, and so keep nothing at the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_BLOCK = 65536  # entries; a few temporaries of it fit into a second-level cache, and none is new memory
_MASK_BLOCK = 1 << 22  # pixels of masks at the size of the image that are processed at a time


class LabelLoss(Protocol):
    """A loss of labels, summed over each decoder layer."""

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """(logits [L, ..., C], matched [M], quality [M]) -> [L], sums over a layer, not yet divided by anything.

        `matched` indexes the flattened logits at (row, class) of each pair, as many in every layer, layer-major;
        `quality` is the IoU of the pair, without gradient.
        """
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
        return gradient * grad.view(-1, *[1] * (gradient.dim() - 1)), None, None


# (entries, where their gradient goes) -> value of each entry, as if no object were there
Background = Callable[[Tensor, Tensor], Tensor]


def _as_if_no_object(x: Tensor, background: Background) -> tuple[Tensor, Tensor]:
    """Sums [L] of the value over [L, ...], and the gradient of each entry, contiguous.

    On the CPU a block at a time: temporaries stay in the cache, where new memory of whole tensors costs more
    than the arithmetic.
    """
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.device.type != "cpu":
        return background(x, gradient).flatten(1).sum(1), gradient
    sums = x.new_zeros(len(x))
    for total, layer, into in zip(sums, x, gradient, strict=True):
        parts = layer.reshape(-1).split(_BLOCK), into.view(-1).split(_BLOCK)
        for part, of_part in zip(*parts, strict=True):
            total += background(part, of_part).sum()
    return sums, gradient


class Varifocal:
    """Varifocal loss (arXiv 2008.13367, equation 2) with the IoU of the pair as target.

    Unmatched: alpha p^gamma BCE(x, 0), the factor without gradient. Matched: q BCE(x, q).
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """Shapes as of `LabelLoss`."""
        return _soft_targets(logits, matched, quality, quality, self.alpha, self.gamma)


class MatchabilityAware:
    """Matchability-aware loss (arXiv 2412.04234, equation 3): the IoU of the pair, to gamma, as target.

    Unmatched: p^gamma BCE(x, 0), the factor without gradient. Matched: BCE(x, q^gamma).
    """

    def __init__(self, gamma: float = 1.5) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """Shapes as of `LabelLoss`."""
        target = quality**self.gamma
        return _soft_targets(logits, matched, torch.ones_like(target), target, 1.0, self.gamma)


# the label losses that a recipe of D-FINE or RT-DETRv2 chooses from
LABEL_LOSSES: dict[str, type[LabelLoss]] = {"vfl": Varifocal, "mal": MatchabilityAware}


def _soft_targets(
    logits: Tensor, matched: Tensor, weight: Tensor, target: Tensor, alpha: float, gamma: float
) -> Tensor:
    """[L]: `weight` BCE(x, `target`) of the matched entries, alpha p^gamma BCE(x, 0) of the others."""

    def background(x: Tensor, gradient: Tensor) -> Tensor:
        p = x.sigmoid()
        factor = _power(p, gamma).mul_(alpha)
        torch.mul(factor, p, out=gradient)
        return softplus(x, p).mul_(factor)

    x = logits.detach()
    sums, gradient = _as_if_no_object(x, background)
    x_matched = x.take(matched)
    value = weight * F.binary_cross_entropy_with_logits(x_matched, target, reduction="none")
    value = value - background(x_matched, torch.empty_like(x_matched))
    gradient.view(-1)[matched] = weight * (x_matched.sigmoid() - target)
    return _SumPerLayer.apply(logits, torch.column_stack([sums, value.view(len(x), -1)]), gradient)


def _power(p: Tensor, gamma: float) -> Tensor:
    """p^gamma; for the published exponents from products, in a tenth of the time."""
    if gamma == 2.0:
        return p * p
    return p.sqrt().mul_(p) if gamma == 1.5 else p**gamma


def softplus(x: Tensor, p: Tensor) -> Tensor:
    """log(1 + e^x), without gradient, of x and its sigmoid.

    To the last bits of F.softplus, which on the CPU depends on log1p: that takes ten times as long in torch 2.14 as in
    2.10 and 2.15. Here it is max(x, 0) - log(max(p, 1 - p)), where the rounding of 1 - p is corrected to first order.
    """
    if x.device.type != "cpu":
        return F.softplus(x, threshold=40.0)
    rest = 1 - p
    rounding = p - (1 - rest)
    return rounding.sub_(torch.maximum(p, rest).log_()).add_(x.clamp(min=0))


class SigmoidFocal:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5) on hard 0/1 targets."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """Shapes as of `LabelLoss`; `quality` is not used."""
        x = logits.detach()
        sums, gradient = _as_if_no_object(x, self._background)
        # an object is background mirrored: p -> 1 - p, alpha -> 1 - alpha
        x_matched = x.take(matched)
        of_objects = torch.empty_like(x_matched)
        mirror = self.alpha / (1 - self.alpha)
        value = self._background(-x_matched, of_objects).mul_(mirror)
        value -= self._background(x_matched, torch.empty_like(x_matched))
        gradient.view(-1)[matched] = of_objects.mul_(-mirror)
        return _SumPerLayer.apply(logits, torch.column_stack([sums, value.view(len(x), -1)]), gradient)

    def _background(self, x: Tensor, gradient: Tensor) -> Tensor:
        """(1 - alpha) p^gamma softplus(x) of each entry."""
        p = x.sigmoid()
        factor = _power(p, self.gamma).mul_(1 - self.alpha)
        value = softplus(x, p).mul_(factor)
        # factor (gamma (1 - p) softplus + p), in terms of value
        torch.addcmul(self.gamma * value, p, factor.sub_(value, alpha=self.gamma), out=gradient)
        return value


class SoftmaxCrossEntropy:
    """Cross entropy over classes and "no object", the last logit, which counts `no_object` as much."""

    def __init__(self, no_object: float) -> None:
        self.no_object = no_object

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """Shapes as of `LabelLoss`; `quality` is not used."""
        log_p = logits.detach().log_softmax(-1)  # one fused pass; logsumexp is four
        classes = log_p.shape[-1]
        row = torch.div(matched, classes, rounding_mode="floor")
        value = log_p[..., -1] * -self.no_object
        value.view(-1)[row] = -log_p.view(-1)[matched]
        gradient = log_p.exp_()
        matched_gradient = gradient.view(-1, classes)[row]
        gradient.mul_(self.no_object)[..., -1] -= self.no_object
        gradient.view(-1, classes)[row] = matched_gradient
        gradient.view(-1)[matched] -= 1
        return _SumPerLayer.apply(logits, value, gradient)


def focal_and_dice(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid focal (alpha 0.25, gamma 2) and dice loss of each mask, at the size of the targets.

    The logits are enlarged bilinearly. focal is the mean over pixels; dice is
    1 - (2 sum p t + 1) / (sum p + sum t + 1). Source: facebookresearch/detr@29901c5 models/segmentation.py

    Args:
        logits: [P, h, w].
        masks: [P, H, W] bool.

    Returns:
        focal [P], dice [P].
    """
    focal, dice = _FocalAndDice.apply(logits, masks)
    return focal, dice


class _FocalAndDice(torch.autograd.Function):
    """Works through the masks in blocks; keeps two gradients at the size of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        focal, dice = logits.new_zeros(2, len(logits)).unbind()
        learns = ctx.needs_input_grad[0]
        gradients = torch.empty_like(logits[None].expand(2 if learns else 0, *logits.shape))
        size = max(1, _MASK_BLOCK // max(1, masks.shape[1] * masks.shape[2]))
        for start in range(0, len(logits), size):
            part = slice(start, start + size)
            with torch.enable_grad():
                small = logits[part].detach().requires_grad_(learns)
                large = F.interpolate(small[:, None], masks.shape[1:], mode="bilinear", align_corners=False)
            values, by_pixel = _losses_of_pixels(large.detach()[:, 0].flatten(1), masks[part].flatten(1))
            focal[part], dice[part] = values
            for into, gradient in zip(gradients, by_pixel, strict=False):
                into[part] = torch.autograd.grad(large, small, gradient.view_as(large), retain_graph=True)[0]
        ctx.save_for_backward(gradients)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal: Tensor, dice: Tensor) -> tuple[Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return gradients[0] * focal[:, None, None] + gradients[1] * dice[:, None, None], None


def _losses_of_pixels(x: Tensor, masks: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(focal, dice) [P] of logits [P, N] against bool [P, N], and their gradients [P, N]."""
    t = masks.to(x.dtype)
    p = x.sigmoid()
    # of a pixel of the object the same as of background, mirrored: x -> -x, alpha -> 1 - alpha
    sign = 1 - 2 * t
    weight = (0.75 - 0.5 * t) / x.shape[1]
    wrong = (t - p).abs()  # 1 - probability of what the pixel is
    softplus = F.softplus(x * sign, threshold=40.0)
    factor = weight * wrong * wrong
    focal = (factor * softplus).sum(1)
    focal_gradient = sign * factor * (2 * (1 - wrong) * softplus + wrong)
    above = 2 * (p * t).sum(1) + 1
    below = p.sum(1) + t.sum(1) + 1
    ratio = above / below
    dice_gradient = (ratio[:, None] - 2 * t) / below[:, None] * p * (1 - p)
    return (focal, 1 - ratio), (focal_gradient, dice_gradient)
