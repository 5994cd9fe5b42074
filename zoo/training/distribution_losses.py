"""Losses of refined distributions: of their place (FGL), and of earlier layers that learn from the last (DDF).

arXiv 2410.13842, equations 5 and 6. Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/dfine_criterion.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.contract.batch import HUNGARIAN, Step
from zoo.layers.distribution import CORNERS, REFERENCE, Bins, bins_of, distances_of, weighting_function
from zoo.training.criterion import MatchedSet, Matches


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


def distillation(corners: Tensor, temperature: float = 5.0) -> Tensor:
    """T^2 KL(last layer || layer) of both at temperature T, row by row.

    The last layer teaches: its own value is 0, and it gets no gradient. [L, B, ..., bins] to [L, B, ...].
    """
    x = corners.detach()
    log_target = (x[-1] / temperature).log_softmax(-1)
    target = log_target.exp()
    entropy = -(log_target * target).sum(-1)
    gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    value = gradient.new_empty(gradient.shape[:-1])
    gradient[-1], value[-1] = 0, 0
    parts = [(x[:-1], target, gradient[:-1], value[:-1])]
    if x.device.type == "cpu":  # an image at a time, which stays in the cache
        layers = zip(x[:-1], gradient, value, strict=False)
        parts = [part for layer, *to in layers for part in zip(layer, target, *to, strict=True)]
    for logits, wanted, into, sums in parts:
        log_p = (logits / temperature).log_softmax(-1)
        torch.sum(log_p * wanted, -1, out=sums)
        torch.exp(log_p, out=into).sub_(wanted)
    value[:-1].add_(entropy).mul_(-temperature)
    result: Tensor = _ValueAndGradient.apply(corners, value, gradient)
    return temperature * result


class LocalisationTerm:
    """FGL: each pair's distributions are those of its object's sides, by the IoU of its box.

    Args:
        weight: of the term.
        reg_scale: see `zoo.layers.distribution`.
    """

    name = "fgl"
    needs_union = True  # its pairs are those of every layer

    def __init__(self, weight: float, reg_scale: float) -> None:
        self.weight, self.reg_scale = weight, reg_scale

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L]}, of the sets with distributions."""
        boxes, losses = matches.of_boxes, {}
        for matched, quality in zip(boxes.sets, boxes.split(boxes.overlaps[0].detach()), strict=True):
            extras, layers = matched.outputs.predictions.extras, matched.num_layers
            if CORNERS not in extras:
                continue
            count = len(quality) // layers
            # the pairs are the same in every layer, and so are reference, objects and bins
            pairs = matched.last_layer
            logits = extras[CORNERS][:, pairs.image, pairs.query].unflatten(-1, (4, -1))
            reference = extras[REFERENCE][0, pairs.image, pairs.query]
            wanted = matches.targets.boxes[pairs.target].to(reference.dtype)
            weighting = weighting_function(logits.shape[-1], self.reg_scale).to(reference)
            bins = bins_of(distances_of(wanted, reference, self.reg_scale), weighting)
            each = localisation(logits, Bins(*(b.expand(layers, -1, -1) for b in bins)))
            weighted = each * quality.view(layers, count, 1)
            losses[matched.outputs.name] = weighted.sum((1, 2)) / matched.normalizer
        return losses


class DistillationTerm:
    """DDF: the distributions of the last layer teach those before it, of all queries.

    A pair's weigh by the IoU of its box, those of other queries by the last layer's best class. Both parts are means,
    weighed by the square roots of their numbers in the matched sets, in denoising too.
    """

    name = "ddf"
    needs_union = True

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L - 1]}, of the sets with distributions of several layers."""
        boxes, losses = matches.of_boxes, {}
        refined = {
            m.outputs.name: (m, q)
            for m, q in zip(boxes.sets, boxes.split(boxes.overlaps[0].detach()), strict=True)
            if CORNERS in m.outputs.predictions.extras and m.num_layers > 1
        }
        counts = [_sides(m, matches.step) for m, _ in refined.values() if m.outputs.matching == HUNGARIAN]
        for name, (matched, quality) in refined.items():
            pairs, others = _parts(matched, quality)
            of_pairs, of_others = _sides(matched, matches.step)
            root, other_root = (_root(n, matches.step) for n in counts[0])
            losses[name] = (
                pairs / _at_least_one(of_pairs) * root + others / _at_least_one(of_others) * other_root
            ) / (root + other_root)
        return losses


def _parts(matched: MatchedSet, quality: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the sides of pairs, and of other queries, [L - 1] each."""
    predictions, layers = matched.outputs.predictions, matched.num_layers
    corners = predictions.extras[CORNERS].unflatten(-1, (4, -1))  # [L, B, Q, 4, bins]
    each = distillation(corners).sum(-1).flatten(1, 2)
    places = matched.rows[: len(quality) // layers]
    best = predictions.logits[-1].detach().amax(-1).sigmoid().flatten()
    weights = best.index_fill(0, places, 0.0)
    of_pairs = each[:, places] * quality.view(layers, len(places))
    return of_pairs.sum(1)[:-1], (each @ weights)[:-1]


def _sides(matched: MatchedSet, step: Step) -> tuple[float | Tensor, float | Tensor]:
    """How many sides of the whole step are a pair's, and another query's."""
    queries = matched.outputs.predictions.logits.shape[2]
    pairs = 4 * matched.normalizer if int(step.counts.sum()) else 0.0
    return pairs, 4.0 * len(step.counts) * queries - pairs


def _root(sides: float | Tensor, step: Step) -> Tensor:
    """In float32, and by 8 over the images, which has no influence but on rounding: as the official code has it."""
    return torch.as_tensor(sides * (8 / len(step.counts)), dtype=torch.float32).sqrt()


def _at_least_one(count: float | Tensor) -> float | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1.0)
