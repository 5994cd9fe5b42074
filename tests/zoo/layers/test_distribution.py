"""Boxes from distributions over distances."""

import pytest
import torch

from zoo.layers.distribution import (
    bins_of,
    boxes_around,
    distances_of,
    expected_distances,
    weighting_function,
)


@pytest.mark.parametrize(("reg_scale", "first", "last"), [(4.0, 0.0759896, 2.0), (8.0, 0.1132636, 4.0)])
def test_distances_are_close_around_zero_and_wide_at_the_ends(reg_scale, first, last):
    weighting = weighting_function(33, reg_scale)
    assert torch.equal(weighting, -weighting.flip(0))
    assert weighting[17].item() == pytest.approx(first, abs=1e-7)
    assert weighting[31].item() == pytest.approx(last)
    assert weighting[32].item() == pytest.approx(2 * last)
    assert (weighting.diff() > 0).all()


def test_a_distribution_at_the_target_gives_the_box_of_the_target():
    generator = torch.Generator().manual_seed(0)
    weighting = weighting_function(33, 4.0)
    reference = 0.3 + 0.2 * torch.rand(50, 4, generator=generator, dtype=torch.float64)
    boxes = reference * (0.9 + 0.2 * torch.rand(50, 4, generator=generator, dtype=torch.float64))
    bins = bins_of(distances_of(boxes, reference, 4.0), weighting)
    one_hot = torch.zeros(50, 4, 33, dtype=torch.float64)
    one_hot.scatter_(-1, bins.left[..., None], 1 - bins.right_share[..., None])
    one_hot.scatter_(-1, bins.left[..., None] + 1, bins.right_share[..., None])
    logits = one_hot.log().flatten(-2)
    found = boxes_around(reference, expected_distances(logits, weighting), 4.0)
    torch.testing.assert_close(found, boxes, rtol=0, atol=1e-12)


def test_beyond_the_ends_the_outermost_bin_has_everything():
    bins = bins_of(torch.tensor([-100.0, -4.0, 4.0, 100.0]), weighting_function(33, 4.0).float())
    assert bins.left.tolist() == [0, 0, 31, 31]
    assert bins.right_share.tolist() == [0.0, 0.0, 1.0, 1.0]
