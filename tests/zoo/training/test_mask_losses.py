"""Mask losses: value and gradient of autograd, in blocks, without keeping anything of the image's size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from zoo.contract.batch import OutputSet, Pairs, Predictions, Step, Targets
from zoo.training import losses
from zoo.training.criterion import DiceTerm, MaskFocalTerm, SetCriterion
from zoo.training.losses import focal_and_dice
from zoo.training.matcher import HungarianMatcher, MatchCosts, softmax_cost


def example(count: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, 6, 8, generator=generator, dtype=dtype)
    masks = torch.rand(count, 23, 31, generator=generator) < 0.3
    masks[-1:] = False
    return logits.requires_grad_(), masks


def by_autograd(logits, masks):
    """torchvision's focal loss, and dice as its formula says."""
    large = F.interpolate(logits[:, None], masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    t = masks.to(large.dtype)
    focal = sigmoid_focal_loss(large, t, alpha=0.25, gamma=2.0).mean((1, 2))
    p = large.sigmoid()
    overlap, total = (p * t).sum((1, 2)), p.sum((1, 2)) + t.sum((1, 2))
    return focal, 1 - (2 * overlap + 1) / (total + 1)


@pytest.mark.parametrize("block", [1, 2 * 23 * 31, 1 << 22], ids=["one", "two", "all"])
def test_equals_autograd_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(losses, "_MASK_BLOCK", block)
    logits, masks = example()
    weights = torch.rand(2, 5, dtype=torch.float64)
    results = []
    for function in (focal_and_dice, by_autograd):
        focal, dice = function(logits, masks)
        [gradient] = torch.autograd.grad((weights[0] * focal + weights[1] * dice).sum(), logits)
        results.append((focal, dice, gradient))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[-1e4, 1e4], [80.0, -80.0]]]).requires_grad_()
    for masks in (torch.zeros(1, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)):
        focal, dice = focal_and_dice(logits, masks)
        [gradient] = torch.autograd.grad((focal + dice).sum(), logits)
        assert focal.isfinite().all()
        assert dice.isfinite().all()
        assert gradient.isfinite().all()


def test_nothing_of_the_size_of_the_image_is_kept():
    logits, masks = example()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        focal_and_dice(logits, masks)
    assert kept == [(2, *logits.shape)]


def test_without_gradient_there_is_only_the_value():
    logits, masks = example()
    with_gradient = focal_and_dice(logits, masks)
    without = focal_and_dice(logits.detach(), masks)
    for a, b in zip(with_gradient, without, strict=True):
        assert torch.equal(a, b)
        assert not b.requires_grad


def test_no_pair_costs_nothing_and_keeps_the_graph():
    logits, masks = example(0)
    focal, dice = focal_and_dice(logits, masks)
    assert focal.shape == dice.shape == (0,)
    (focal.sum() + dice.sum()).backward()
    assert logits.grad.shape == logits.shape


# -- terms ----------------------------------------------------------------------------------------


def test_terms_read_the_last_layer_and_divide_by_the_whole_step():
    generator = torch.Generator().manual_seed(3)
    stored = torch.randn(2, 4, 6, 8, generator=generator, dtype=torch.float64)
    asked = []

    def masks(image, query):
        asked.append((image.tolist(), query.tolist()))
        return stored[image, query]

    logits = torch.randn(3, 2, 4, 6, generator=generator, dtype=torch.float64)
    pairs = Pairs(torch.tensor([1, 0, 1]), torch.tensor([2, 3, 0]), torch.tensor([2, 0, 1]))
    boxes = torch.rand(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    sets = [
        OutputSet("decoder", Predictions(logits, boxes, masks=masks), matching=pairs, divisor=2.0),
        OutputSet("boxes_only", Predictions(logits, boxes), matching=pairs),
    ]
    wanted = torch.rand(3, 23, 31, generator=generator) < 0.5
    targets = Targets(torch.tensor([0, 1, 2]), torch.rand(3, 4).double(), (1, 2), wanted)
    matcher = HungarianMatcher(MatchCosts(label=1, l1=1, giou=1), softmax_cost)
    found = SetCriterion(matcher, [MaskFocalTerm(3.0), DiceTerm(5.0)])(
        sets, targets, Step(torch.tensor([1, 2, 4]), (23, 31), 0)
    )
    focal, dice = by_autograd(stored[pairs.image, pairs.query], wanted[pairs.target])
    assert found.keys() == {"decoder/mask_focal", "decoder/dice"}
    torch.testing.assert_close(found["decoder/mask_focal"], 3 * focal.sum()[None] / 14)
    torch.testing.assert_close(found["decoder/dice"], 5 * dice.sum()[None] / 14)
    assert asked == [([1, 0, 1], [2, 3, 0])], "the masks are computed once for both terms"
    with pytest.raises(ValueError, match="'decoder' predicts masks, but the batch has none"):
        SetCriterion(matcher, [DiceTerm(1.0)])(
            sets, targets._replace(masks=None), Step(torch.tensor([1, 2]), (1, 1), 0)
        )
