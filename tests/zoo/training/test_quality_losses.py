"""Label losses whose target is the IoU of the pair, against their formula written out with a one-hot target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.training.losses import LabelLoss, MatchabilityAware, Varifocal, softplus


def by_formula(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(x, target, reduction="none")
    return (weight.detach() * bce).flatten(1).sum(1)


def varifocal(x: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
    return by_formula(x, quality, torch.where(matched, quality, 0.75 * x.sigmoid() ** 2))


def matchability_aware(x: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
    weight = torch.where(matched, torch.ones_like(x), x.sigmoid() ** 1.5)
    return by_formula(x, quality**1.5, weight)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [(Varifocal(), varifocal), (MatchabilityAware(), matchability_aware)],
    ids=["VFL", "MAL"],
)
@pytest.mark.parametrize("pairs", [0, 6])  # as many in both layers
def test_value_and_gradient_are_those_of_the_formula(loss: LabelLoss, formula, pairs: int) -> None:
    generator = torch.Generator().manual_seed(pairs)
    ours = (4 * torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    index = torch.cat(
        [18 * layer + torch.randperm(18, generator=generator)[: pairs // 2] for layer in (0, 1)]
    )
    quality = torch.rand(pairs, generator=generator, dtype=torch.float64)
    matched, target = torch.zeros(36, dtype=torch.bool), torch.zeros(36, dtype=torch.float64)
    matched[index], target[index] = True, quality
    values = loss(ours, index, quality), formula(theirs, matched.view(2, 6, 3), target.view(2, 6, 3))
    torch.testing.assert_close(values[0], values[1])
    factors = torch.tensor([1.0, 3.0], dtype=torch.float64)
    for value in values:
        (value * factors).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_pair_without_overlap_is_background_to_one_of_them() -> None:
    """VFL leaves it alone; MAL pulls its logit down with full weight."""
    logits, index, quality = torch.zeros(1, 1, 1), torch.tensor([0]), torch.zeros(1)
    assert Varifocal()(logits, index, quality).item() == 0
    assert MatchabilityAware()(logits, index, quality).item() == pytest.approx(0.6931472)


def test_softplus_is_accurate_to_the_last_bits():
    """Also where 1 + e^x rounds to 1, in blocks of memory that is not contiguous, and at what is no number."""
    x = torch.cat([torch.linspace(-80, 80, 150_001), torch.linspace(-1, 1, 10_001)]).expand(2, -1).t()
    exact = F.softplus(x.double(), threshold=1000.0)
    assert ((softplus(x, x.sigmoid()) - exact) / exact).abs().max() < 3e-7
    odd = torch.tensor([float("-inf"), float("inf"), float("nan")])
    ends = softplus(odd, odd.sigmoid())
    assert ends[:2].tolist() == [0.0, float("inf")]
    assert ends[2].isnan()
