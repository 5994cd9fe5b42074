"""Normalisation is the textbook formula to the bit, padding is zero."""

from __future__ import annotations

import pytest
import torch

from zoo.contract.batch import Sample, collate
from zoo.contract.preprocess import InputContract, normalize_levels, shortest_side_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", [(1, 1), (96, 5), (97, 33), (333, 64)])
@pytest.mark.parametrize("normalised", [True, False])
def test_normalize_is_the_formula_to_the_bit(size, normalised):
    contract = InputContract(
        resize="stretch", size=size, mean=MEAN if normalised else (), std=STD if normalised else ()
    )
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    small = images[1, :, : max(1, size[0] // 2), : max(1, size[1] - 3)]
    batch = collate([Sample(images[0], *nothing, 0, size), Sample(small, *nothing, 1, size)])
    wanted = batch.images.float() / 255
    if normalised:
        wanted = (wanted - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        wanted[batch.padding[:, None].expand_as(wanted)] = 0
    found = contract.normalize(batch)
    assert torch.equal(found.images, wanted)
    assert torch.equal(
        found.images[1, :, small.shape[1] :, :], torch.zeros_like(found.images[1, :, small.shape[1] :, :])
    )
    assert batch.images.dtype == torch.uint8


def test_normalize_levels_takes_one_image_and_works_in_place():
    image = torch.randint(0, 256, (3, 200, 30)).float()
    wanted = (image / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    found = normalize_levels(image, MEAN, STD)
    assert found is image
    assert torch.equal(found, wanted)


def test_float_images_are_not_normalised_twice():
    batch = collate(
        [Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(0), torch.zeros(0, 4), 0, (2, 2))]
    )
    contract = InputContract(resize="stretch", size=(2, 2))
    with pytest.raises(ValueError, match=r"already torch.float32"):
        contract.normalize(contract.normalize(batch))


@pytest.mark.parametrize(
    "shape", [(3000, 1), (1, 3000), (65_535, 1), (5, 1200), (1, 1), (2667, 1), (1, 2000)]
)
@pytest.mark.parametrize("size", [(800, 1333), (64, 107)])
@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_no_side_becomes_0(shape, size, backend):
    contract = InputContract(resize="shortest", size=size, backend=backend)
    resized = contract.resize_image(torch.zeros(3, *shape, dtype=torch.uint8))
    assert tuple(resized.shape[1:]) == contract.resized_size(*shape)
    assert min(resized.shape[1:]) >= 1


def test_a_side_that_the_official_rule_rounds_to_0_is_1_and_the_other_the_longest():
    assert shortest_side_size(1, 3000, 800, 1333) == (1, 1333)
    assert shortest_side_size(3000, 1, 800, 1333) == (1333, 1)
    assert shortest_side_size(5, 1200, 64, 107) == (1, 107)
    assert shortest_side_size(1, 2000, 800, 1333) == (1, 2000)  # as published: the side is as wanted already
