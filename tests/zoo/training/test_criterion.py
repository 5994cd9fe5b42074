"""The criterion's seam and its exactness under any split; numbers against the official code are in tests/golden."""

import pytest
import torch

from zoo.contract.batch import OutputSet, Pairs, Predictions, Step, Targets
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, SetCriterion
from zoo.training.distribution_losses import DistillationTerm, LocalisationTerm
from zoo.training.losses import Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost, union_of_matchings

CLASSES = 5


def predictions(layers: int, images: int, queries: int, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, CLASSES, generator=generator, dtype=torch.float64)
    boxes = 0.2 + 0.5 * torch.rand(layers, images, queries, 4, generator=generator, dtype=torch.float64)
    return Predictions(logits.requires_grad_(), boxes.requires_grad_())


def targets(*counts: int, seed: int = 1) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    labels = torch.randint(CLASSES, (total,), generator=generator)
    return Targets(labels, 0.2 + 0.4 * torch.rand(total, 4, generator=generator, dtype=torch.float64), counts)


def step_of(*counts: int) -> Step:
    return Step(torch.tensor(counts), (64, 64), 0)


def criterion(*extra) -> SetCriterion:
    matcher = HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost)
    return SetCriterion(matcher, [LabelTerm(1.0, Varifocal()), L1Term(5.0), GiouTerm(2.0), *extra])


def image_slice(all_targets: Targets, first: int, last: int) -> Targets:
    start, stop = sum(all_targets.counts[:first]), sum(all_targets.counts[:last])
    counts = all_targets.counts[first:last]
    return Targets(all_targets.labels[start:stop], all_targets.boxes[start:stop], counts)


def total(losses) -> torch.Tensor:
    return torch.stack([v.sum() for v in losses.values()]).sum()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_step(size):
    counts = (3, 0, 7, 1)
    whole, step = predictions(2, 4, 12), step_of(*counts)
    objects = targets(*counts)
    total(criterion()([OutputSet("decoder", whole)], objects, step)).backward()
    parts = Predictions(whole.logits.detach().requires_grad_(), whole.boxes.detach().requires_grad_())
    for first in range(0, 4, size):
        part = Predictions(parts.logits[:, first : first + size], parts.boxes[:, first : first + size])
        mine = image_slice(objects, first, first + size)
        total(criterion()([OutputSet("decoder", part)], mine, step)).backward()
    torch.testing.assert_close(parts.logits.grad, whole.logits.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.boxes.grad, whole.boxes.grad, rtol=1e-12, atol=1e-12)


def test_groups_are_matched_each_on_their_own():
    """Group DETR: two groups of the same queries pay twice, and find the same objects twice."""
    objects, step = targets(2, 3), step_of(2, 3)
    single = predictions(1, 2, 6)
    twice = Predictions(torch.cat([single.logits] * 2, dim=2), torch.cat([single.boxes] * 2, dim=2))
    once = criterion()([OutputSet("decoder", single)], objects, step)
    grouped = criterion()([OutputSet("decoder", twice, groups=2, divisor=2)], objects, step)
    torch.testing.assert_close(total(grouped), total(once))
    undivided = criterion()([OutputSet("decoder", twice, groups=1)], objects, step)
    assert not torch.isclose(total(undivided), total(once))


def test_queries_that_do_not_split_into_groups_are_refused():
    with pytest.raises(ValueError, match="6 queries cannot be split into 4 equal groups"):
        criterion()([OutputSet("decoder", predictions(1, 1, 6), groups=4)], targets(2), step_of(2))


def test_class_agnostic_sets_see_class_zero():
    objects, step = targets(3), step_of(3)
    zero = Targets(torch.zeros_like(objects.labels), objects.boxes, objects.counts)
    agnostic = criterion()([OutputSet("encoder", predictions(1, 1, 6), class_agnostic=True)], objects, step)
    plain = criterion()([OutputSet("encoder", predictions(1, 1, 6))], zero, step)
    torch.testing.assert_close(total(agnostic), total(plain))


class FinalAgreesWithFirst:
    """A family's own term: reads two sets and an extra output."""

    name = "agreement"
    weight = 3.0

    def __call__(self, matches):
        decoder, encoder = matches["decoder"], matches["encoder"]
        mine = decoder.outputs.predictions.extras["quality"][-1].mean()
        return {"decoder": (mine - encoder.outputs.predictions.boxes.mean()).square()[None]}


def test_a_family_adds_a_term_that_reads_other_sets_and_extras():
    decoder = predictions(2, 1, 4)
    quality = torch.full((2, 1, 4), 0.25, dtype=torch.float64)
    sets = [
        OutputSet("decoder", decoder._replace(extras={"quality": quality})),
        OutputSet("encoder", predictions(1, 1, 4, seed=5)),
    ]
    losses = criterion(FinalAgreesWithFirst())(sets, targets(2), step_of(2))
    expected = 3.0 * (0.25 - sets[1].predictions.boxes.mean()) ** 2
    torch.testing.assert_close(losses["decoder/agreement"], expected[None])


def test_a_set_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="no output set 'encoder'"):
        criterion(FinalAgreesWithFirst())(
            [OutputSet("decoder", predictions(1, 1, 4))], targets(1), step_of(1)
        )


def test_fixed_pairs_are_the_same_in_every_layer():
    pairs = Pairs(torch.tensor([0, 0]), torch.tensor([3, 1]), torch.tensor([0, 1]))
    output = OutputSet("denoising", predictions(3, 1, 5), pairs, divisor=4)
    matched = criterion().match([output], targets(2), step_of(2))["denoising"]
    assert matched.rows.view(3, 2).tolist() == [[3, 1], [8, 6], [13, 11]]
    assert matched.objects.tolist() == [0, 1] * 3
    assert matched.normalizer == 8


def test_an_unfinished_prediction_is_named():
    broken = predictions(1, 1, 4)
    with torch.no_grad():
        broken.boxes[0, 0, 2, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="output set 'decoder' has a non-finite matching cost"):
        criterion()([OutputSet("decoder", broken)], targets(2), step_of(2))


def test_half_precision_is_lifted():
    low = Predictions(*(t.detach().to(torch.bfloat16) for t in predictions(1, 1, 4)[:2]))
    losses = criterion()([OutputSet("decoder", low)], targets(2), step_of(2))
    assert all(v.dtype == torch.float32 for v in losses.values())


def test_one_transfer_to_the_host_whatever_the_number_of_sets(monkeypatch):
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.shape) or original(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a host sync: .item()"))
    sets = [OutputSet("decoder", predictions(3, 2, 6)), OutputSet("encoder", predictions(1, 2, 9))]
    criterion().matcher(sets, targets(2, 3))
    assert len(transfers) == 1


@pytest.mark.parametrize("term", [LocalisationTerm(1.0, 4.0), DistillationTerm(1.0)], ids=lambda t: t.name)
def test_terms_of_distributions_want_the_same_pairs_in_all_layers(term):
    matcher = HungarianMatcher(MatchCosts(label=1.0, l1=1.0, giou=1.0), focal_cost)
    with pytest.raises(ValueError, match=f"the losses {term.name} take the same pairs"):
        SetCriterion(matcher, [term])
    SetCriterion(matcher, [term], union_of_matchings)
