"""Queries in an ignored region learn no class, whatever the loss; all others learn as ever."""

from __future__ import annotations

import pytest
import torch

from zoo.architectures.detr import SoftmaxLabelTerm
from zoo.contract.batch import OutputSet, Predictions, Step, Targets
from zoo.training.criterion import LabelTerm, MatchedSet, SetCriterion
from zoo.training.ignored import logits_to_learn
from zoo.training.losses import MatchabilityAware, SigmoidFocal, Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost

LAYERS, IMAGES, QUERIES, CLASSES = 2, 3, 6, 4
TERMS = {
    "focal": lambda: LabelTerm(1.0, SigmoidFocal()),
    "varifocal": lambda: LabelTerm(1.0, Varifocal()),
    "matchability": lambda: LabelTerm(1.0, MatchabilityAware()),
    "softmax": lambda: SoftmaxLabelTerm(1.0, 0.1, "exact"),
}


def case(ignored: torch.Tensor | None, counts: tuple[int, ...] | None):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES, generator=generator).requires_grad_()
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4, generator=generator) * 0.1 + 0.1  # around .15, .15
    boxes[:, :, 3:, :2] += 0.6  # and around .75, .75
    targets = Targets(
        torch.tensor([1, 2]), torch.tensor([[0.15, 0.15, 0.15, 0.15], [0.75, 0.75, 0.15, 0.15]]), (1, 0, 1),
        ignored=ignored, ignored_counts=counts,
    )  # fmt: skip
    return logits, boxes, targets


def gradient(term, ignored=None, counts=None):
    logits, boxes, targets = case(ignored, counts)
    matcher = HungarianMatcher(MatchCosts(label=2.0, l1=5.0, giou=2.0), focal_cost)
    criterion = SetCriterion(matcher, [term])
    step = Step(torch.tensor([1, 0, 1]), (32, 32), 0)
    output = OutputSet("decoder", Predictions(logits, boxes))
    loss = criterion([output], targets, step)["decoder/label"].sum()
    loss.backward()
    return loss.detach(), logits.grad, criterion.match([output], targets, step)["decoder"].rows


@pytest.mark.parametrize("name", TERMS)
def test_unmatched_queries_in_a_region_learn_nothing_and_all_others_as_ever(name):
    # in image 0 around .75, .75; in image 1 nowhere; in image 2 everywhere
    regions = torch.tensor([[0.75, 0.75, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]])
    _, before, rows = gradient(TERMS[name]())
    loss, after, same = gradient(TERMS[name](), regions, (1, 0, 1))
    assert torch.equal(rows, same), "the matching does not change"
    matched = torch.zeros(LAYERS * IMAGES * QUERIES, dtype=torch.bool)
    matched[rows] = True
    matched = matched.view(LAYERS, IMAGES, QUERIES)
    inside = torch.zeros(LAYERS, IMAGES, QUERIES, dtype=torch.bool)
    inside[:, 0, 3:] = inside[:, 2] = True
    quiet = inside & ~matched
    assert quiet.sum() > matched.sum()
    assert torch.equal(after[quiet], torch.zeros_like(after[quiet]))
    assert torch.allclose(after[~quiet], before[~quiet], rtol=1e-6, atol=1e-9)
    assert bool((before[quiet] != 0).all())
    assert loss < gradient(TERMS[name]())[0]


@pytest.mark.parametrize("name", TERMS)
def test_without_regions_the_loss_is_the_same_to_the_bit(name):
    loss, grad, _ = gradient(TERMS[name]())
    empty, same, _ = gradient(TERMS[name](), torch.zeros(0, 4), (0, 0, 0))
    assert torch.equal(loss, empty)
    assert torch.equal(grad, same)


def test_a_box_of_which_less_than_half_lies_in_a_region_is_background():
    beside = torch.tensor([[0.75, 0.75, 0.001, 0.001]])
    _, before, _ = gradient(TERMS["focal"]())
    _, after, _ = gradient(TERMS["focal"](), beside, (1, 0, 0))
    assert torch.equal(before, after)


def test_what_is_ignored_agrees_with_no_object():
    logits, boxes, targets = case(torch.tensor([[0.5, 0.5, 1.0, 1.0]] * IMAGES), (1,) * IMAGES)
    output = OutputSet("decoder", Predictions(logits, boxes))
    matched = MatchedSet(output, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 1.0)
    assert bool((logits_to_learn(matched, targets).sigmoid() < 1e-20).all())
    probability = logits_to_learn(matched, targets, softmax=True).softmax(-1)
    assert torch.equal(probability[..., -1], torch.ones_like(probability[..., -1]))


def test_parts_of_a_batch_keep_their_regions():
    *_, targets = case(torch.rand(3, 4), (1, 0, 2))
    assert targets.part(0, 1).ignored_counts == (1,)
    assert torch.equal(targets.part(1, 3).ignored, targets.ignored[1:])
    assert targets.each_tensor(torch.Tensor.double).ignored.dtype == torch.float64
