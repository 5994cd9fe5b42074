"""Presets that change at an epoch: functions of (seed, epoch, image), whoever loads and wherever a run resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_sets import module

from datamodules.custom import CustomDataModule
from datamodules.shapes import generate_shapes
from datamodules.transforms.presets import LaterTransform
from zoo.contract.batch import Batch
from zoo.contract.preprocess import InputContract

STOP = 2
LATER = [LaterTransform(from_epoch=STOP, name="rt_detr_clean")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 12, 2, seed=1, size=48)


def data_of(root: Path, later: list[LaterTransform] | None = None, **changes: object) -> CustomDataModule:
    data = module(
        root, **({"train_transform": "rt_detr", "later_transforms": later, "batch_size": 2} | changes)
    )
    data.setup("fit")
    data.plan_steps(4, 1, 0)
    return data


def epochs(data: CustomDataModule, *numbers: int) -> list[list[Batch]]:
    """Of one loader, whose workers stay."""
    loader, found = data.train_dataloader(), []
    for epoch in numbers:
        data.set_epoch(epoch)
        found.append(list(loader))
    return found


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert [x.image_ids for x in a] == [x.image_ids for x in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images, y.images)
        assert torch.equal(x.targets.boxes, y.targets.boxes)
        assert x.step is not None
        assert y.step is not None
        assert (x.step.index, x.step.epoch) == (y.step.index, y.step.epoch)


def test_each_epoch_has_the_transform_of_its_time(root):
    changing, strong = epochs(data_of(root, LATER), 1, 2, 3), epochs(data_of(root), 1, 2, 3)
    clean = epochs(data_of(root, train_transform="rt_detr_clean"), 1, 2, 3)
    assert_same(changing[0], strong[0])
    assert_same(changing[1], clean[1])
    assert_same(changing[2], clean[2])
    assert not all(torch.equal(a.images, b.images) for a, b in zip(strong[1], clean[1], strict=True))
    assert [{b.step.epoch for b in epoch} for epoch in changing] == [{1}, {2}, {3}]


def test_workers_that_stay_follow_the_epoch(root):
    alone = epochs(data_of(root, LATER), 1, 2, 1)
    helped = epochs(data_of(root, LATER, num_workers=2), 1, 2, 1)
    for a, b in zip(alone, helped, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("skip", [1, 4])
def test_a_resume_within_the_first_clean_epoch(root, skip):
    (whole,) = epochs(data_of(root, LATER), STOP)
    data = data_of(root, LATER, num_workers=1)
    data.skip_batches(skip)
    (rest,) = epochs(data, STOP)
    assert_same(whole[skip:], rest)


def test_the_last_of_several_holds(root):
    later = [LaterTransform(from_epoch=1, name="flip"), LaterTransform(from_epoch=3, name="none")]
    data = data_of(root, later)
    assert [data._transforms.at(e).name for e in range(5)] == ["rt_detr", "flip", "flip", "none", "none"]


def test_distortion_on_the_device_ends_with_the_preset_that_has_it(root):
    first, last = epochs(data_of(root, LATER, photometric="device"), 1, 2)
    assert all(b.photometric is not None for b in first)
    assert all(b.photometric is None for b in last)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ([(2, "flip"), (2, "none")], r"begin at epochs \[2, 2\]; these must be above 0 and rise"),
        ([(3, "flip"), (2, "none")], r"begin at epochs \[3, 2\]"),
        ([(0, "flip")], r"begin at epochs \[0\]"),
        ([(1, "flips")], "train_transform 'flips' is unknown"),
    ],
)
def test_refused(root, later, message):
    with pytest.raises(ValueError, match=message):
        data_of(root, [LaterTransform(from_epoch=epoch, name=name) for epoch, name in later])


def test_bucketing_needs_every_size_beforehand(root):
    contract = InputContract(resize="shortest", size=(20, 40))
    with pytest.raises(ValueError, match="'rt_detr' with resize: shortest depends on the objects"):
        data_of(
            root, [LaterTransform(from_epoch=1, name="rt_detr")],
            train_transform="flip", input=contract, bucketing=2,
        )  # fmt: skip
