"""YOLO sets as people lay them out: lists over one folder, paths of other machines, key points, label files alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_writer import ROW, holds, images, stems, write, yolo

from datamodules.doctor import examine
from datamodules.formats.detect import read

NAMES = "names: {0: cat}\n"
PARTS = (("train", 3), ("val", 2))


def folders(root: Path, text: str, above: str = "", order: str = "kind/split") -> None:
    """Images and labels of two splits below `above`, and data.yaml."""
    for split, number in PARTS:
        place = {"kind/split": "{}/" + split, "split/kind": split + "/{}"}[order]
        yolo(root, above + place.format("labels"), above + place.format("images"), stems(split, number))
    write(root, "data.yaml", text + NAMES)


def coco128(root: Path) -> None:
    yolo(root, "labels/train2017", "images/train2017", stems("0000", 4))
    write(
        root,
        "coco128.yaml",
        f"path: ../datasets/coco128\ntrain: images/train2017\nval: images/train2017\n{NAMES}",
    )


def visdrone(root: Path) -> None:
    for part, number in PARTS:
        folder = f"VisDrone2019-DET-{part}"
        yolo(root, f"{folder}/labels", f"{folder}/images", stems(part, number))
    text = "".join(f"{part}: VisDrone2019-DET-{part}/images\n" for part, _ in PARTS)
    write(root, "VisDrone.yaml", f"path: /datasets/VisDrone\n{text}{NAMES}")


def visdrone_without_yaml(root: Path) -> None:
    visdrone(root)
    (root / "VisDrone.yaml").unlink()
    write(root, "classes.txt", "cat\n")


def lists(root: Path, prefix: str, names: tuple[str, str], images_in: str, labels_in: str) -> None:
    for (split, number), name in zip(PARTS, names, strict=True):
        yolo(root, labels_in, images_in, stems(split, number))
        write(root, name, "".join(f"{prefix}{stem}.jpg\n" for stem in stems(split, number)))
    write(root, "classes.txt", "cat\n")


def darknet(root: Path) -> None:
    lists(root, "data/obj/", ("train.txt", "test.txt"), "obj", "obj")
    (root / "classes.txt").rename(root / "obj.names")
    write(root, "obj.data", "classes=1\ntrain=data/train.txt\nvalid=data/test.txt\nnames=data/obj.names\n")


def stems_in_lists(root: Path) -> None:
    lists(root, "", ("train.txt", "val.txt"), "images", "labels")
    for split, _ in PARTS:
        file = root / f"{split}.txt"
        file.write_text(file.read_text().replace(".jpg", ""))


def several_train_folders(root: Path) -> None:
    for folder, split, number in (("a", "train", 2), ("b", "rest", 1), ("c", "val", 2)):
        yolo(root, f"{folder}/labels", f"{folder}/images", stems(split, number))
    write(root, "data.yaml", f"path: /elsewhere\ntrain: [a/images, b/images]\nval: c/images\n{NAMES}")


def without_yaml(*places: tuple[str, str]):
    def make(root: Path) -> None:
        for (labels, pictures), (split, number) in zip(places, PARTS, strict=False):
            yolo(root, labels, pictures, stems(split, number))
        write(root, "classes.txt", "cat\n")

    return make


BOTH = {"train": 3, "val": 2}


@pytest.mark.parametrize(("make", "splits"), [
    (visdrone, BOTH), (visdrone_without_yaml, BOTH), (darknet, BOTH), (stems_in_lists, BOTH),
    (several_train_folders, BOTH),
    (lambda root: folders(root, "path: /Users/a/b/data\ntrain: train/images\nval: val/images\n", "data/", "split/kind"),
     BOTH),
    (lambda root: folders(root, "path: C:\\Users\\a\\data\ntrain: images\\train\nval: images\\val\n", "data/"), BOTH),
    (lambda root: folders(root, "path: ../data\ntrain: images/train\nval: images/val\n"), BOTH),
    (lambda root: folders(root, "path: data\ntrain: images/train\nval: images/val\n", "data/"), BOTH),
    (lambda root: lists(root, "./images/", ("train.txt", "val.txt"), "images", "labels"), BOTH),
    (lambda root: lists(root, "/home/a/b/", ("autosplit_train.txt", "autosplit_val.txt"), "img", "img"), BOTH),
    (without_yaml(("labels/train2017", "images/train2017"), ("labels/val2017", "images/val2017")), BOTH),
    (without_yaml(("labels/training", "images/training"), ("labels/validation", "images/validation")), BOTH),
    (without_yaml(("train/labels", "train/imgs"), ("valid/labels", "valid/imgs")), BOTH),
    (without_yaml(("labels", "imgs")), {"train": 3}), (without_yaml(("obj", "obj")), {"train": 3}),
])  # fmt: skip
def test_yolo(tmp_path, make, splits):
    holds(tmp_path / "set", make, "yolo", splits)


def test_coco128_is_one_folder_for_both_splits(tmp_path):
    coco128(tmp_path)
    source = read(tmp_path)
    assert {s: (len(i), i.num_objects) for s, i in source.splits.items()} == {"train": (4, 4), "val": (4, 4)}
    assert {f.kind for f in source.faults if f.severity != "note"} == {"leak"}


def test_a_path_of_another_machine_is_told_with_what_is_taken(tmp_path):
    folders(tmp_path, "path: /Users/a/data\ntrain: images/train\nval: images/val\n", "data/")
    notes = [f for f in read(tmp_path).faults if f.kind == "split_path"]
    assert [n.id for n in notes] == ["train", "val"]
    assert notes[0].message.startswith(
        "path: /Users/a/data does not exist here; images/train does not exist as writ"
    )
    assert "data/images/train is taken" in notes[0].message


def test_paths_that_lead_nowhere_are_told_with_what_is_there(tmp_path):
    images(tmp_path, ["pics/a.jpg", "more/b.jpg"])
    write(tmp_path, "data.yaml", f"path: /x\ntrain: one/images\nval: two/images\n{NAMES}")
    with pytest.raises(
        ValueError, match=r"data\.yaml expects images in train: one/images; val: two/images"
    ) as error:
        read(tmp_path)
    assert "(below path: /x)" in str(error.value)
    assert "found images in more, pics" in str(error.value)
    assert "{" not in str(error.value)


def test_a_listed_image_that_is_gone_is_told(tmp_path):
    stems_in_lists(tmp_path)
    with (tmp_path / "train.txt").open("a") as stream:
        stream.write("gone\n")
    [fault] = [f for f in read(tmp_path).faults if f.severity == "error"]
    assert (fault.kind, fault.file) == ("missing_image", "gone")


def test_labels_of_another_split_or_of_no_list_are_no_orphans(tmp_path):
    darknet(tmp_path)
    write(tmp_path, "obj/unlisted.jpg")
    write(tmp_path, "obj/unlisted.txt", ROW)
    write(tmp_path, "obj/orphan.txt", ROW)
    faults = [f for f in examine(tmp_path, workers=0).faults if f.kind in ("orphan_label", "unlisted_image")]
    assert sorted((f.kind, f.file) for f in faults) == [
        ("orphan_label", "obj/orphan.txt"),
        ("unlisted_image", "obj/unlisted.jpg"),
    ]
    [orphan] = [f for f in faults if f.kind == "orphan_label"]
    assert "there is no image of this name in obj" in orphan.message


def pose(root: Path, number: int, dims: int, text: str = "", rows: int = 3) -> None:
    """Rows with so many key points, all in the box."""
    point = "0.21 0.26" + (" 2" if dims == 3 else "")
    for i in range(rows):
        write(root, f"images/train/{i}.jpg")
        write(root, f"labels/train/{i}.txt", f"{ROW} {' '.join([point] * number)}\n" * 2)
        if i:
            write(root, f"labels/train/{i}.txt", f"{ROW} {' '.join([point] * number)}\n")
    write(root, "data.yaml", f"train: images/train\n{text}{NAMES}")


@pytest.mark.parametrize(
    ("number", "dims"), [(1, 2), (2, 2), (8, 2), (12, 2), (17, 3), (2, 3), (1, 3), (5, 3)]
)
@pytest.mark.parametrize("said", [True, False])
def test_the_box_of_a_pose_row_is_its_first_four_numbers(tmp_path, number, dims, said):
    pose(tmp_path, number, dims, f"kpt_shape: [{number}, {dims}]\n" if said else "", rows=5)
    source = read(tmp_path)
    boxes = source.splits["train"].boxes_xywh.tolist()
    assert boxes == [pytest.approx([6, 9, 30, 20], abs=1e-3)] * 5  # the repeated row of the first is left out
    [told] = [f for f in source.faults if f.kind == "key_points"]
    assert told.severity == ("note" if said else "warning")
    assert f"6 rows have {number} key points of {dims} numbers" in told.message
    assert said or f"kpt_shape: [{number}, {dims}]" in told.message
    assert not [f for f in source.faults if f.kind in ("polygon", "invalid_row")]


def test_a_pose_row_of_another_length_is_a_fault(tmp_path):
    pose(tmp_path, 4, 2, "kpt_shape: [4, 2]\n")
    write(tmp_path, "labels/train/1.txt", f"{ROW}\n{ROW} 0.2 0.2\n")
    source = read(tmp_path)
    [fault] = [f for f in source.faults if f.kind == "invalid_row"]
    assert (fault.file, fault.id) == ("labels/train/1.txt", 2)
    assert "4 key points of 2 numbers" in fault.message
    assert source.splits["train"].num_objects == 3


@pytest.mark.parametrize("shape", ["17", "[0, 3]", "[17, 4]", "[a, b]", "[17]", "{a: 1}"])
def test_a_shape_of_key_points_that_is_none_is_refused(tmp_path, shape):
    pose(tmp_path, 4, 2, f"kpt_shape: {shape}\n")
    with pytest.raises(
        ValueError, match=r"data\.yaml: kpt_shape is .*must be \[number of key points, 2 or 3\]"
    ):
        read(tmp_path)


TURNED = "0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6"  # its first two points, as a box, hold the others
TRIANGLE = "0 0.5 0.5 1 0.5 1 1"


@pytest.mark.parametrize(("row", "text"), [
    (TURNED, ""), (TRIANGLE, ""), (f"{ROW} {'0.21 0.26 ' * 4}", "task: segment\n"),
])  # fmt: skip
def test_polygons_of_equal_length_stay_polygons(tmp_path, row, text):
    pose(tmp_path, 1, 2, text, rows=6)
    for i in range(6):
        write(tmp_path, f"labels/train/{i}.txt", f"{row}\n")
    source = read(tmp_path)
    assert {f.kind for f in source.splits["train"].faults} == {"polygon"}
    assert "key_points" not in {f.kind for f in source.faults}


def test_a_set_with_its_own_yaml_a_folder_down_is_named(tmp_path):
    folders(tmp_path / "data", "train: images/train\nval: images/val\n")
    with pytest.raises(ValueError, match=r"give one of: \S+/data \(yolo\)$"):
        read(tmp_path)
    assert read(tmp_path / "data").classes == {0: "cat"}
