"""The matching by probability and overlap, and the epoch from which it is used."""

import itertools

import torch

from zoo.contract.batch import OutputSet, Predictions, Targets
from zoo.contract.boxes import cxcywh_to_xyxy, iou_and_giou
from zoo.training.matcher import MatchCosts, focal_cost
from zoo.training.overlap_matching import LateOverlapMatcher, OverlapMatching


def matcher(from_epoch: int = 3, power: float = 4.0) -> LateOverlapMatcher:
    costs = MatchCosts(label=2.0, l1=5.0, giou=2.0)
    return LateOverlapMatcher(costs, focal_cost, OverlapMatching(from_epoch=from_epoch, power=power))


def test_the_pairs_are_those_of_the_least_cost_of_all_permutations():
    generator = torch.Generator().manual_seed(0)
    boxes = 0.4 + 0.2 * torch.rand(1, 2, 4, 4, generator=generator)
    logits = torch.randn(1, 2, 4, 3, generator=generator)
    targets = Targets(
        torch.tensor([0, 2, 1, 1, 0]), 0.4 + 0.2 * torch.rand(5, 4, generator=generator), (3, 2)
    )
    ((rows, objects),) = matcher().at(3)([OutputSet("decoder", Predictions(logits, boxes))], targets)
    found = dict(zip(objects.tolist(), rows.tolist(), strict=True))
    for image, first, last in ((0, 0, 3), (1, 3, 5)):
        iou, _ = iou_and_giou(
            cxcywh_to_xyxy(targets.boxes[first:last])[:, None], cxcywh_to_xyxy(boxes[0, image])[None]
        )
        cost = -logits[0, image].sigmoid().t()[targets.labels[first:last]] * iou**4
        best = min(
            itertools.permutations(range(4), last - first),
            key=lambda queries, cost=cost: sum(float(cost[i, q]) for i, q in enumerate(queries)),
        )
        assert [found[i] - 4 * image for i in range(first, last)] == list(best)


def test_a_sure_query_that_overlaps_beats_a_nearer_one_from_the_epoch_on():
    targets = Targets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), (1,))
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2]]]])
    logits = torch.tensor([[[[-1.0], [2.0]]]])
    outputs = [OutputSet("decoder", Predictions(logits, boxes))]
    found = [int(matcher(power=power).at(3)(outputs, targets)[0][0]) for power in (1.0, 12.0)]
    assert found == [1, 0]


def test_the_cost_changes_with_the_epoch_and_not_before():
    late = matcher(from_epoch=3)
    assert late.at(0) is late
    assert late.at(2) is late
    assert late.at(3) is late.at(99)
    assert late.at(3) is not late


def test_an_object_that_nothing_touches_gets_a_query_all_the_same():
    targets = Targets(torch.tensor([0, 0]), torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]]), (2,))
    boxes = torch.tensor([[[[0.5, 0.5, -0.1, 0.2], [0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]]])
    outputs = [OutputSet("decoder", Predictions(torch.zeros(1, 1, 3, 1), boxes))]
    ((rows, objects),) = matcher(0).at(0)(outputs, targets)
    pairs = dict(zip(objects.tolist(), rows.tolist(), strict=True))
    assert pairs[1] == 1
    assert pairs[0] in (0, 2)
