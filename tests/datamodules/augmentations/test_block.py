"""What a recipe's list may say: known classes with plain arguments, or an error of one line."""

from __future__ import annotations

import pytest

from datamodules.augmentations import own
from datamodules.augmentations.allowed import ALLOWED, REFUSED
from datamodules.augmentations.block import OWN, TRAIN_TRANSFORM, parse
from datamodules.augmentations.chain import Augmentations

V2 = "torchvision.transforms.v2"
pytest.importorskip("albumentations")


def test_the_train_transform_comes_last_where_it_is_not_named():
    assert [e.name for e in parse([f"{V2}.GaussianBlur", "flip"])] == [
        "GaussianBlur",
        "flip",
        TRAIN_TRANSFORM,
    ]
    named = [TRAIN_TRANSFORM, {"albumentations.RandomRain": {"p": 0.2}}]
    assert [e.name for e in parse(named)] == [TRAIN_TRANSFORM, "RandomRain"]


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ([], "list of 1 to"),
        ("flip", "list of 1 to"),
        ([3], "the name of a class"),
        ([{"a": {}, "b": {}}], "the name of a class"),
        (["os.system"], "none of the operations"),
        ([{"builtins.eval": {"p": 1}}], "none of the operations"),
        (["albumentations.core.serialization.load"], "none of the operations"),
        (["albumentations.RandomRan"], "did you mean 'albumentations.RandomRain'"),
        (["RandomRain"], "did you mean 'albumentations.RandomRain'"),
        ([f"{V2}.Lambda"], "runs a function"),
        (["albumentations.TextImage"], "reads a file"),
        (["albumentations.Lambda"], "runs a function"),
        ([f"{V2}.AutoAugment"], "leaves the boxes"),
        ([f"{V2}.Normalize"], "input.mean"),
        ([f"{V2}.MixUp"], "dense_o2o"),
        ([{"flip": {"p": 1}}], "takes no arguments"),
        ([TRAIN_TRANSFORM, TRAIN_TRANSFORM], "twice"),
        ([{f"{V2}.GaussianBlur": {"kernel": 5}}], "did you mean 'kernel_size'"),
        ([{f"{V2}.GaussianBlur": {"kernel_size": 4}}], "odd"),
        ([f"{V2}.GaussianBlur"], "kernel_size"),
        ([{f"{V2}.Resize": {"size": 10, "interpolation": "cubik"}}], "one of nearest"),
        ([{f"{V2}.Resize": {"size": 1000000}}], "a number up to"),
        ([{f"{V2}.Pad": {"padding": {"a": 1}}}], "a word, a number"),
        ([{f"{V2}.RandomIoUCrop": {"sampler_options": [0.5]}}], "never end"),
        ([{"albumentations.RandomRain": {"q": 1}}], "has no argument 'q'"),
        ([{"albumentations.RandomRain": {"p": 7}}], "less than or equal to 1"),
        ([{"albumentations.OneOf": {"transforms": [f"{V2}.JPEG"]}}], "holds only such as"),
        ([{"albumentations.OneOf": {"transforms": ["flip"]}}], "holds only such as"),
        ([{"albumentations.OneOf": {"transforms": []}}], "list of operations"),
        ([{"albumentations.OneOf": {"transforms": ["albumentations.Lambda"]}}], "runs a function"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(block, told):
    with pytest.raises(ValueError) as error:
        Augmentations.of(block)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_nothing_is_both_allowed_and_refused_and_ours_are_all_there():
    assert not {name for names in ALLOWED.values() for name in names} & REFUSED.keys()
    assert set(own._DRAWS) == set(OWN)
