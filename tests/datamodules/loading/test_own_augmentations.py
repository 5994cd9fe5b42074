"""A recipe's own operations in the loaders: functions of (seed, epoch, image), whoever loads."""

from __future__ import annotations

import pickle
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import module

from datamodules.augmentations.libraries import AugmentationError
from datamodules.custom import CustomDataModule
from datamodules.shapes import generate_shapes
from datamodules.transforms.mixing import CopyBlend, DenseO2O, Mixup
from datamodules.transforms.mosaic import Mosaic
from zoo.contract.preprocess import InputContract

pytest.importorskip("albumentations")
V2 = "torchvision.transforms.v2"
STEP = 8
BLOCK = [
    {"albumentations.RandomRain": {"p": 0.5}},
    {f"{V2}.RandomAffine": {"degrees": 20}},
    "train_transform",
    {"albumentations.GaussNoise": {"p": 0.5}},
    "distort",
    {f"{V2}.GaussianBlur": {"kernel_size": 3}},
]
MIXING = DenseO2O(
    group=4,
    mosaic=Mosaic(epochs=(1, 3), probability=0.5, side=32, rotation=10.0, translation=0.1, scale=(0.5, 1.5)),
    mixup=Mixup(epochs=(1, 2), probability=0.5),
    copy_blend=CopyBlend(epochs=(1, 3), probability=1.0, objects=3, least_area=20.0, expand=(0.1, 0.25)),
)
STRETCH = InputContract(resize="stretch", size=(64, 64))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 18, 2, seed=1, size=48)


def data_of(root: Path, augmentations: list | None, **changes: object) -> CustomDataModule:
    given = {
        "input": STRETCH, "train_transform": "rt_detr", "augmentations": augmentations, "batch_size": STEP,
    }  # fmt: skip
    data = module(root, **(given | changes))
    data.setup("fit")
    return data


def samples(data: CustomDataModule, epoch: int, world: int = 1) -> dict[int, list[int]]:
    """Image id -> crc of pixels, labels and boxes, over all ranks, after some use of the global generators."""
    found = {}
    for rank in range(world):
        data.plan_steps(STEP, world, rank)
        data.set_epoch(epoch)
        torch.rand(rank + 1), np.random.rand(3), random.random()
        for batch in data.train_dataloader():
            parts = batch.targets.labels.split(list(batch.targets.counts))
            boxes = batch.targets.boxes.split(list(batch.targets.counts))
            for image, image_id, *own in zip(batch.images, batch.image_ids, parts, boxes, strict=True):
                found[image_id] = [zlib.crc32(t.numpy().tobytes()) for t in (image, *own)]
    return found


@pytest.mark.parametrize("dense", [None, MIXING], ids=["plain", "mixed"])
@pytest.mark.parametrize(("world", "batch_size", "workers"), [(2, 2, 0), (1, 4, 2)])
def test_however_a_step_is_cut_its_images_are_the_same(root, dense, world, batch_size, workers):
    whole = data_of(root, BLOCK, dense_o2o=dense)
    cut = data_of(root, BLOCK, dense_o2o=dense, batch_size=batch_size, num_workers=workers)
    for epoch in (1, 2):
        wanted = samples(whole, epoch)
        assert len(wanted) == 16
        assert samples(cut, epoch, world) == wanted
    assert samples(whole, 1) != samples(whole, 2)


def test_the_preset_draws_what_it_draws_alone(root):
    """First in the list, with an operation after it that does nothing."""
    alone = data_of(root, None)
    with_one = data_of(root, ["train_transform", {f"{V2}.RandomInvert": {"p": 0.0}}])
    assert samples(alone, 0) == samples(with_one, 0)


@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_both_backends_and_a_pickle(root, backend):
    contract = InputContract(resize="shortest", size=(64, 90), backend=backend)
    data = data_of(root, BLOCK[:3], input=contract, train_transform="detr")
    dataset = pickle.loads(pickle.dumps(data.training_dataset()))
    for row in range(4):
        sample, again = data.training_dataset()[(0, row)], dataset[(0, row)]
        assert torch.equal(sample.image, again.image)
        assert torch.equal(sample.boxes, again.boxes)
        assert sample.image.shape[1:] == again.image.shape[1:]


def test_a_resume_inside_an_epoch(root):
    data = data_of(root, BLOCK, batch_size=2)
    data.plan_steps(STEP, 1, 0)
    data.set_epoch(1)
    whole = [batch.images for batch in data.train_dataloader()]
    data.skip_batches(5)
    rest = [batch.images for batch in data.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_an_operation_behind_the_resize_must_keep_the_size(root):
    contract = InputContract(resize="shortest", size=(64, 90))
    crop = {"albumentations.CenterCrop": {"height": 20, "width": 20}}
    behind = data_of(root, ["train_transform", crop], input=contract, train_transform="detr")
    with pytest.raises(
        AugmentationError, match=r"(?s)train.*png.*CenterCrop.*put it before 'train_transform'"
    ) as error:
        behind.training_dataset()[(0, 0)]
    assert "\n" not in str(error.value)
    before = data_of(root, [crop, "train_transform"], input=contract, train_transform="detr")
    assert before.training_dataset()[(0, 0)].image.shape[0] == 3
    # a stretched input is resized after the whole list
    assert data_of(root, ["train_transform", crop]).training_dataset()[(0, 0)].image.shape == (3, 64, 64)


def test_an_error_in_a_worker_names_file_and_operation(root):
    data = data_of(root, [{f"{V2}.RandomCrop": {"size": [999, 999]}}], num_workers=1)
    with pytest.raises(
        ValueError, match=r"png: augmentations\[0\] torchvision.transforms.v2.RandomCrop fails"
    ):
        next(iter(data.train_dataloader()))


def test_what_does_not_go_together_is_refused(root):
    with pytest.raises(ValueError, match="photometric: worker"):
        data_of(root, BLOCK, photometric="device")
    shortest = InputContract(resize="shortest", size=(64, 90))
    with pytest.raises(ValueError, match="bucketing"):
        data_of(root, BLOCK, input=shortest, train_transform="flip", bucketing=4)
