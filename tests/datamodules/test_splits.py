from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import module, write_image

from datamodules.formats.detect import read
from datamodules.index import AnnotationIndex, IndexBuilder
from datamodules.splits import divide, group_keys, held_out


def index_of(labels: list[list[int]], names: list[str] | None = None) -> AnnotationIndex:
    """An image for each list of classes; no files are needed."""
    root = Path("/data")
    builder = IndexBuilder(root, {c: f"class {c}" for own in labels for c in own})
    number = 0
    for i, own in enumerate(labels):
        builder.add_image(root / (names[i] if names else f"{i}.jpg"), i, (50, 50))
        for c in own:
            number += 1
            builder.add_object(i, [1, 1, 5, 5], c, number)
    return builder.build()


def images_with(index: AnnotationIndex, rows: np.ndarray, label: int) -> int:
    return sum(label in index.objects(int(r)).source_ids.tolist() for r in rows)


def random_labels(seed: int, number: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [
        [c for c, often in enumerate((0.9, 0.4, 0.1, 0.02)) if draw.random() < often] for _ in range(number)
    ]


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_image_is_in_one_split_and_the_seed_decides(stratify, seed):
    draw = np.random.default_rng(seed)
    names = [f"g{draw.integers(60)}_{i}.jpg" for i in range(150)]
    index = index_of(random_labels(seed, 150), names)
    shares = {"val": 0.2, "test": 0.1}
    parts = divide(index, shares, seed, stratify=stratify, group_by=r"^g\d+")
    assert np.sort(np.concatenate(list(parts.values()))).tolist() == list(range(150))
    assert list(parts) == ["train", "val", "test"]
    groups = [{names[r].split("_")[0] for r in rows} for rows in parts.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert all(np.array_equal(parts[s], rows) for s, rows in divide(
        index, shares, seed, stratify=stratify, group_by=r"^g\d+").items())  # fmt: skip
    other = divide(index, shares, seed + 1, stratify=stratify, group_by=r"^g\d+")
    assert not np.array_equal(parts["val"], other["val"])
    assert len(parts["val"]) == pytest.approx(30, abs=6)
    assert len(parts["test"]) == pytest.approx(15, abs=6)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_splits_have_their_share_of_every_class(seed):
    index = index_of(random_labels(seed, 1000))
    parts = divide(index, {"val": 0.2}, seed, stratify=True)
    for label in range(4):
        total = images_with(index, np.arange(1000), label)
        assert images_with(index, parts["val"], label) == pytest.approx(0.2 * total, abs=2)
    assert len(parts["val"]) == pytest.approx(200, abs=5)


def test_a_class_of_two_images_is_in_both_splits_only_if_stratified():
    labels = [[0] for _ in range(98)] + [[0, 1], [0, 1]]
    index = index_of(labels)
    seen = [set(divide(index, {"val": 0.5}, s, stratify=True)["val"].tolist()) & {98, 99} for s in range(8)]
    assert all(len(s) == 1 for s in seen)
    drawn = [set(divide(index, {"val": 0.5}, s)["val"].tolist()) & {98, 99} for s in range(8)]
    assert any(len(s) != 1 for s in drawn)


def test_copies_of_roboflow_share_a_group_wherever_they_lie():
    files = [
        "train/a_jpg.rf.01.jpg",
        "valid/a_jpg.rf.02.jpg",
        "train/b_jpg.rf.03.jpg",
        "train/a.jpg",
        "valid/a.jpg",
    ]
    keys = group_keys(files)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert len(set(group_keys(files, "none"))) == 5
    assert len(set(group_keys(files, r"^(\w+)/"))) == 2


def test_a_large_group_leaves_no_split_empty():
    names = [f"a.rf.{i}.jpg" for i in range(8)] + ["b.jpg"]
    for stratify in (False, True):
        parts = divide(index_of([[0]] * 9, names), {"val": 0.4}, 0, stratify=stratify)
        assert sorted(map(len, parts.values())) == [1, 8]


def test_groups_larger_than_a_split_fill_it_all_the_same():
    names = [f"{photo}.rf.{i}.jpg" for photo in "abc" for i in range(3)]
    parts = divide(index_of([[0]] * 9, names), {"val": 0.1}, 0)  # one image is wanted, no group is that small
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 6, "val": 3}


@pytest.mark.parametrize(("shares", "group_by", "message"), [
    ({"val": 0.5, "test": 0.5}, "none", "each must be above 0, their sum below 1"),
    ({"val": 0.0}, "none", "above 0"),
    ({}, "none", "above 0"),
    ({"val": 0.1, "test": 0.1}, "none", "2 images in 2 groups cannot be divided into 3 splits"),
    ({"val": 0.1}, "(", "is no regular expression"),
    ({"val": 0.1}, "scene", "matches none of 2 files"),
])  # fmt: skip
def test_what_cannot_be_divided_says_why(shares, group_by, message):
    with pytest.raises(ValueError, match=message):
        divide(index_of([[0], [1]]), shares, 0, group_by=group_by)


def test_plain_images_are_held_out_as_they_always_were():
    index = index_of([[0]] * 30)
    kept, out = held_out(index, 0.2, 7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(7)).tolist()
    assert out.image_ids.tolist() == sorted(order[:6])
    assert kept.image_ids.tolist() == sorted(order[6:])


def test_held_out_images_have_no_copy_in_training(tmp_path):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for i in range(30):
        name = f"photo{i // 3}_jpg.rf.{i:03x}.jpg"
        write_image(tmp_path / "train" / name, (20, 20), i)
        content["images"].append({"id": i, "file_name": name, "width": 20, "height": 20})
        content["annotations"].append({"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]})
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    data = module(tmp_path, val_fraction=0.2).read().splits
    assert len(data["val"]) == 6
    photos = [{f.split("_jpg")[0] for f in data[s].files.tolist()} for s in ("train", "val")]
    assert not photos[0] & photos[1]


def test_real_copies_stay_together(test_data):
    train = read(test_data / "custom/rbc_roboflow_coco").splits["train"]
    parts = divide(train, {"val": 0.1, "test": 0.1}, 3, stratify=True)
    stems = [{train.files[int(r)].split(".rf.")[0] for r in rows} for rows in parts.values()]
    assert sum(map(len, stems)) == 70
    assert {s: len(rows) % 3 for s, rows in parts.items()} == {"train": 0, "val": 0, "test": 0}
