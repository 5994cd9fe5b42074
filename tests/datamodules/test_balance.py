"""Repeat-factor sampling: the paper's factors, exact means over epochs, the same images however a step is cut."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_sets import module, write_image

from datamodules.balance import Balance
from datamodules.loading.samplers import StepBatchSampler

IMAGES = 20
# image -> classes of its objects; class 3 is in two images, class 2 in five, class 4 in none but as a crowd
CLASSES = [
    [1, 1],
    [1, 3],
    [1],
    [],
    [2],
    [1, 2],
    [1],
    [1],
    [3],
    [1],
    [2],
    [1],
    [1, 2],
    [1],
    [1],
    [2],
    [1],
    [1],
    [1],
    [1],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("rare")
    images, annotations = [], []
    for number, classes in enumerate(CLASSES):
        write_image(root / "train" / f"{number}.jpg", (40, 40), number)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 40})
        for category in [*classes, 4]:
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": category,
                "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": int(category == 4),
            })  # fmt: skip
    categories = [{"id": i, "name": f"class{i}"} for i in (1, 2, 3, 4)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def data_of(root, **changes):
    data = module(root, train_transform="finetune", val_fraction=0.05, **changes)
    data.setup("fit")
    return data


@pytest.mark.parametrize("threshold", [0.001, 0.15, 0.3, 1.0])
def test_factors_are_the_papers(root, threshold):
    index = data_of(root).read().splits["train"]
    found = Balance.of(index, threshold)
    held = [
        {int(s) for s, c in zip(o.source_ids, o.crowd, strict=True) if not c}
        for o in map(index.objects, range(len(index)))
    ]
    for row, classes in enumerate(held):
        factor = 1.0
        for category in classes:
            share = sum(category in other for other in held) / len(held)
            factor = max(factor, max(1.0, math.sqrt(threshold / share)))
        assert found.factors[row] == pytest.approx(factor, rel=1e-12)
    assert all(rare.source_id != 4 for rare in found.rare)


def test_an_image_is_used_as_often_as_its_factor_says():
    factors = np.array([1.0, 1.0, 2.5, 1.25, 3.0, 1.0, 1.1])
    balance = Balance(0.1, factors, ())
    uses = Counter()
    epochs = 4000
    for epoch in range(epochs):
        keys = balance.order(7, epoch)
        assert len(keys) == balance.num_images == 10
        assert len(set(keys)) == len(keys)  # every copy is augmented by draws of its own
        own = Counter(key % 7 for key in keys)
        # the copies of an image are numbered from 0; the last key of an epoch may be left out
        assert all(abs(own[row] - factor) < 2 for row, factor in enumerate(factors))
        uses.update(own)
    mean = np.array([uses[row] for row in range(7)]) / epochs
    # the sum is 10.85 and an epoch has 10: the images lose alike
    np.testing.assert_allclose(mean, factors * 10 / factors.sum(), rtol=0.1)


def test_whole_sums_keep_every_mean():
    factors = np.array([1.0, 1.5, 2.5, 1.0])
    balance = Balance(0.1, factors, ())
    uses = Counter(key % 4 for epoch in range(2000) for key in balance.order(3, epoch))
    np.testing.assert_allclose([uses[row] / 2000 for row in range(4)], factors, atol=0.05)
    assert uses[0] == uses[3] == 2000


def test_an_epoch_is_a_function_of_seed_and_number():
    balance = Balance(0.1, np.array([1.0, 1.5, 2.5, 1.0] * 5), ())
    before = torch.random.get_rng_state()
    first = balance.order(3, 5)
    torch.rand(4)
    assert balance.order(3, 5) == first
    assert balance.order(3, 6) != first
    assert balance.order(4, 5) != first
    torch.random.set_rng_state(before)
    balance.order(3, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("batch_size", "accumulation", "world"), [(2, 2, 1), (1, 2, 2), (1, 1, 4)])
def test_steps_are_the_same_however_they_are_cut_and_resumed(batch_size, accumulation, world):
    balance = Balance(0.1, np.array([1.0, 1.5, 2.5, 1.0] * 5), ())

    def steps(skip: int = 0, **cut) -> list[list]:
        own = []
        for rank in range(cut.get("world_size", 1)):
            sampler = StepBatchSampler(20, 3, balance=balance, rank=rank, **cut)
            sampler.epoch, sampler.skip = 2, skip
            own.append(list(sampler))
        k = cut["accumulation"]
        return [
            [key for m in range(k) for rank in own for key in rank[step * k + m]]
            for step in range(len(own[0]) // k)
        ]

    whole = steps(batch_size=4, accumulation=1)
    assert len(whole) == 30 // 4
    cut = {"batch_size": batch_size, "accumulation": accumulation, "world_size": world}
    assert steps(**cut) == whole
    assert steps(skip=3 * accumulation, **cut) == whole[3:]


def test_copies_of_an_image_are_augmented_differently(root):
    data = data_of(root, balance=1.0)
    dataset = data.training_dataset()
    number = len(dataset)
    assert data.images_of_epoch > number
    assert torch.equal(dataset[(0, 1)].image, dataset[(0, 1)].image)
    assert not torch.equal(dataset[(0, 1)].image, dataset[(0, 1 + number)].image)
    assert dataset[(0, 1 + number)].image_id == dataset[(0, 1)].image_id


def test_where_no_class_is_rare_the_training_is_what_it_was(root):
    plain, balanced = data_of(root), data_of(root, balance=0.01)
    assert balanced.repeats is None
    assert balanced.images_of_epoch == plain.images_of_epoch
    ids = [[b.image_ids for b in data.train_dataloader()] for data in (plain, balanced)]
    assert ids[0] == ids[1]


def test_what_is_repeated_is_told(root):
    data = data_of(root, balance=0.5)
    [line] = data.repeats.lines(data.label_map.names, data.label_map.source_ids)
    assert "class3 x" in line
    assert f"{data.images_of_epoch} images instead of {len(data.training_dataset())}" in line


@pytest.mark.parametrize("balance", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_is_a_share(root, balance):
    with pytest.raises(ValueError, match="share of the images"):
        data_of(root, balance=balance)
