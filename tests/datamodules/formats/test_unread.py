"""Nothing is left out in silence: images and annotation files that are not read, a set without a train split."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_writer import ROW, coco, images, voc, write, yolo
from tiny_sets import module

from datamodules.doctor import examine
from datamodules.formats.detect import read
from zoo.cli.data.check import next_steps


def half(root: Path) -> None:
    """A test split of YOLO, and two folders of another tool that is not known."""
    for split in ("train", "valid"):
        images(root, [f"{split}/{split}{i}.jpg" for i in range(6)])
        write(root, f"{split}/_annotations.xyz", "")
        write(root, f"{split}/words.txt", "nothing")
    yolo(root, "test", "test", ["t0", "t1"])
    write(root, "test/classes.txt", "cat\n")


def test_folders_of_images_that_are_not_read_are_told_by_number(tmp_path):
    half(tmp_path)
    found = examine(tmp_path, workers=0).faults
    unread = {f.file: f.message for f in found if f.kind == "unread_folder"}
    assert list(unread) == ["train", "valid"]
    assert unread["train"].startswith("6 images here are in no split and not used, and 1 x .txt beside them")
    [error] = [f for f in found if f.severity == "error"]
    assert error.kind == "no_train_split"
    assert "there is test (2 images); images that are not read lie in train, valid; call" in error.message


def test_nothing_is_said_of_masks_and_of_what_is_read(tmp_path):
    voc(tmp_path, "Annotations", "JPEGImages", ["a", "b"])
    images(tmp_path, ["SegmentationClass/a.png", ".cache/b.png"])
    assert not [f for f in examine(tmp_path, workers=0).faults if f.kind == "unread_folder"]


def test_the_topmost_folder_that_is_not_read_is_told_once(tmp_path):
    voc(tmp_path, "Annotations", "JPEGImages", ["a", "b"])
    images(tmp_path, ["new/monday/1.jpg", "new/tuesday/2.jpg", "new/3.jpg", "other/4.jpg"])
    told = {
        f.file: f.message.split()[0] for f in examine(tmp_path, workers=0).faults if f.kind == "unread_folder"
    }
    assert told == {"new": "3", "other": "1"}


def test_a_reader_that_tells_of_all_images_is_not_repeated(tmp_path):
    images(tmp_path, ["images/a.jpg", "more/b.jpg"])
    write(tmp_path, "boxes.csv", "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,6,9,36,29\n")
    kinds = [f.kind for f in examine(tmp_path, workers=0).faults if f.severity == "warning"]
    assert kinds.count("unlisted_image") == 1
    assert "unread_folder" not in kinds


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_set_without_train_is_an_error_that_says_how_to_use_it(tmp_path, split):
    images(tmp_path, ["images/a.jpg", "images/b.jpg"])
    write(tmp_path, f"annotations/instances_{split}.json", coco(["a.jpg", "b.jpg"]))
    found = examine(tmp_path, workers=0)
    [error] = [f for f in found.faults if f.severity == "error"]
    assert (error.kind, "zoo validate MODEL --data DIR" in error.message) == ("no_train_split", True)
    lines = next_steps(str(tmp_path), found, None, None)
    assert lines[-1].endswith(f"zoo validate MODEL --data {tmp_path}")
    assert not any("zoo finetune" in line for line in lines)
    with pytest.raises(ValueError, match="has no split train"):
        module(tmp_path).read()
    splits = module(tmp_path, needs_train=False).read().splits  # what `zoo validate` does
    assert {name: len(index) for name, index in splits.items()} == {"train": 0, "val": 2}


def test_annotation_files_that_are_not_read_are_told_without_the_full_check(tmp_path):
    images(tmp_path, ["images/a.jpg", "images/b.jpg", "images/c.jpg"])
    write(tmp_path, "annotations/instances_train.json", coco(["a.jpg", "b.jpg"]))
    write(tmp_path, "annotations/train_more.json", coco(["c.jpg"]))
    told = [f for f in module(tmp_path).summary().faults if f.kind == "not_read"]
    assert [(f.severity, f.file) for f in told] == [("warning", "annotations/train_more.json")]


def test_one_box_of_an_image_of_no_split_is_no_orphan(tmp_path):
    yolo(tmp_path, "labels/train", "images/train", ["a", "b"])
    write(tmp_path, "images/train/c.jpg")
    write(tmp_path, "labels/train/c.txt", ROW)
    write(tmp_path, "list.txt", "images/train/a.jpg\nimages/train/b.jpg\n")
    write(tmp_path, "data.yaml", "train: list.txt\nnames: [cat]\n")
    assert [f.kind for f in read(tmp_path).faults] == []
    assert [f.file for f in examine(tmp_path, workers=0).faults if f.severity == "warning"] == [
        "images/train/c.jpg"
    ]
