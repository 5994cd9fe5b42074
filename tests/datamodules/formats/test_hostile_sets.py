"""Data sets that lead elsewhere or never end: refused or bounded, in one line and in no time."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from PIL import Image

from datamodules.formats import yolo_layout
from datamodules.formats.detect import read
from datamodules.images import files as images

ROW = "0 .5 .5 .5 .5\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two labelled images three folders down, so that `../..` is a folder of ours."""
    root = tmp_path / "a" / "b" / "set"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for number in range(2):
        picture(root / "images" / "train" / f"{number}.png")
        (root / "labels" / "train" / f"{number}.txt").write_text(ROW)
    return root


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def yaml(root: Path, text: str) -> None:
    (root / "data.yaml").write_text(f"names: [a]\n{text}\n")


@pytest.mark.parametrize(
    "paths",
    [
        "train: ../..",
        "train: images/train\nval: ../../..",
        "train: /",
        "path: ../../..\ntrain: .",
        "train: ..",
        "train: images/train\nval: /usr",
        "train: images/train\nval: /proc",
        "train: images/train\nval: /proc/self/cwd/..",
        "train: images/train\nval: /usr/share/doc",
        "path: /etc\ntrain: .",
    ],
)
def test_a_path_that_leads_above_the_set_is_refused(root, paths):
    yaml(root, paths)
    with pytest.raises(ValueError, match="holds more than this data set; name the folder of the images"):
        read(root)


@pytest.mark.parametrize("named", ["home/me", "home"])
def test_the_home_folder_is_no_folder_of_images(root, tmp_path, monkeypatch, named):
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    picture(tmp_path / "home" / "me" / "holiday.png")
    yaml(root, f"train: images/train\nval: {tmp_path}/{named}")
    with pytest.raises(ValueError, match="holds more than this data set"):
        read(root)


def test_folders_beside_the_set_are_read(root):
    picture(root.parent / "valid" / "images" / "v.png")
    picture(root.parent.parent / "elsewhere" / "t.png")
    yaml(root, "train: images/train\nval: ../valid/images\ntest: ../../elsewhere")
    assert {split: len(index) for split, index in read(root).splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }


def test_the_folder_above_is_read_where_its_images_lie_in_it(root):
    picture(root.parent / "v.png")
    yaml(root, "train: images/train\nval: ..")
    assert len(read(root).splits["val"]) == 3  # with those of the set, which lies in it


def test_too_many_folders_elsewhere_are_not_walked(root, monkeypatch):
    monkeypatch.setattr(yolo_layout, "_MOST_FOLDERS", 5)
    for number in range(6):
        (root.parent / "many" / str(number)).mkdir(parents=True)
    yaml(root, "train: images/train\nval: ../many")
    with pytest.raises(ValueError, match="more than 5 folders"):
        read(root)


def test_a_link_to_the_top_is_not_followed(root):
    (root / "images" / "train" / "loop").symlink_to("/")
    (root / "images" / "train" / "home").symlink_to(root)
    yaml(root, "train: images/train")
    assert len(read(root).splits["train"]) == 2


def test_links_to_one_another_give_their_images_once(root):
    one, two = root / "images" / "train" / "one", root.parent / "two"
    picture(one / "1.png")
    picture(two / "2.png")
    for number in range(3):
        (one / f"to{number}").symlink_to(two)
        (two / f"to{number}").symlink_to(one)
    yaml(root, "train: images/train")
    assert len(read(root).splits["train"]) == 2 + 1 + 3  # two.png by three names


def test_links_that_double_at_every_step_end(root, monkeypatch):
    monkeypatch.setattr(images, "_MOST_LINKED", 100)
    steps = [root.parent / "steps" / str(number) for number in range(30)]
    for step in steps:
        step.mkdir(parents=True)
    for step, following in itertools.pairwise(steps):
        for side in ("left", "right"):
            (step / side).symlink_to(following)
    (root / "images" / "train" / "steps").symlink_to(steps[0])
    yaml(root, "train: images/train")
    with pytest.raises(ValueError, match="its links lead to more than 100 folders"):
        read(root)


def test_a_pipe_is_no_label_file(root):
    labels = root / "labels" / "train"
    (labels / "1.txt").unlink()
    for name in ("1.txt", "9.txt"):
        os.mkfifo(labels / name)
    os.mkfifo(root / "images" / "train" / "5.png")
    for name in (
        "data.yml",
        "a.json",
        "a.xml",
        "a.csv",
        "train.txt",
        "images/train/a.xml",
        "images/train/a.json",
    ):
        os.mkfifo(root / name)
    found = read(root)
    assert [fault.kind for fault in found.faults if fault.file == "labels/train/1.txt"] == []
    assert [fault.kind for fault in found.faults if "1.txt" in fault.message] == ["no_label_file"]
    assert len(found.splits["train"]) == 2


@pytest.mark.parametrize(
    "row", ["0 " + ".5 " * 600_000, "0" * 2_000_000, "x" * 2_000_000], ids=["numbers", "digits", "letters"]
)
def test_a_row_without_end_is_not_parsed_and_not_printed(root, row):
    yaml(root, "train: images/train")
    (root / "labels" / "train" / "0.txt").write_text(f"{row}\n{ROW}")
    (fault,) = (fault for fault in read(root).faults if fault.severity == "error")
    assert (fault.kind, fault.id) == ("invalid_row", 1)
    assert len(fault.message) < 200


def test_a_bad_row_is_shown_by_its_beginning(root):
    yaml(root, "train: images/train")
    (root / "labels" / "train" / "0.txt").write_text("0 " + "9" * 5000 + " .5 .5 .5\n" + "x y " * 500)
    faults = [fault for fault in read(root).faults if fault.severity == "error"]
    assert [fault.kind for fault in faults] == ["invalid_row", "invalid_row"]
    assert all(len(fault.message) < 300 for fault in faults)
