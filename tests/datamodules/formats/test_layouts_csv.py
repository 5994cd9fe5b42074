"""Tables as people have them: boxes in one cell, no column of classes, one of everything beside those of splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_writer import images, write

from datamodules.formats.csv_columns import columns_of
from datamodules.formats.detect import read

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def rows(*numbers: int, shift: int = 0) -> str:
    return "".join(f"p{i}.jpg,96,72,cat,{6 + shift},9,36,29\n" for i in numbers)


def counts(root: Path) -> dict[str, tuple[int, int]]:
    return {split: (len(index), index.num_objects) for split, index in read(root).splits.items()}


@pytest.mark.parametrize(("header", "cell"), [
    ("image_id,width,height,bbox,source", 'p{i},96,72,"[6.0, 9.0, 30.0, 20.0]",usask_1'),  # Global Wheat 2020
    ("image_name,BoxesString,domain", "p{i}.jpg,6 9 36 29,usask_1"),  # Global Wheat 2021
    ("image,bbox_xyxy", 'p{i}.jpg,"(6, 9, 36, 29)"'),
    ('image,"bbox (x1, y1, x2, y2)"', "p{i}.jpg,6 9 36 29"),
    ("image;bbox", "p{i}.jpg;6,9,30,20"),
    ("image,xmin,ymin,xmax,ymax", "p{i}.jpg,6.0,9.0,36.0,29.0"),  # Kaggle's car object detection
    ("image,x,y,w,h", "p{i}.jpg,6,9,30,20"),
])  # fmt: skip
def test_one_class_and_boxes_in_one_cell(tmp_path, header, cell):
    images(tmp_path, [f"train/p{i}.jpg" for i in range(3)])
    write(tmp_path, "train.csv", header + "\n" + "".join(cell.format(i=i) + "\n" for i in range(3)))
    source = read(tmp_path)
    assert (source.format, source.classes) == ("csv", {0: "object"})
    assert source.splits["train"].boxes_xywh.tolist() == [[6, 9, 30, 20]] * 3
    [note] = source.faults
    assert (note.severity, note.kind, note.file) == ("note", "one_class", "train.csv")


def test_several_boxes_in_one_cell_and_images_without(tmp_path):
    images(tmp_path, [f"images/{n}.png" for n in "abc"])
    write(tmp_path, "train.csv", "image_name,BoxesString,domain\na,6 9 36 29;1 2 11 12,x\nb,no_box,x\nc,,x\n")
    index = read(tmp_path).splits["train"]
    assert (len(index), index.boxes_xywh.tolist()) == (3, [[6, 9, 30, 20], [1, 2, 10, 10]])


def test_numbers_that_are_no_boxes_are_told(tmp_path):
    images(tmp_path, ["images/a.png", "images/b.png"])
    write(tmp_path, "train.csv", 'image,bbox,class\na.png,"6,9,30,20",cat\nb.png,"6,9,30",cat\n')
    source = read(tmp_path)
    assert source.splits["train"].num_objects == 1
    assert [(f.severity, f.kind) for f in source.faults] == [("error", "invalid_box")]


@pytest.mark.parametrize(("first", "second"), [
    (["image", "boxes"], ["a.png", "3"]), (["image", "box"], ["a.png", "a long text about the box"]),
    (["bbox", "score"], ["", ""]), (["date", "price"], ["1", "2"]),
])  # fmt: skip
def test_tables_without_boxes_are_none(first, second):
    assert isinstance(columns_of(first, second), str)


def test_a_column_of_boxes_in_another_notation_is_told(tmp_path):
    images(tmp_path, ["images/a.png"])
    write(tmp_path, "train.csv", 'image,bbox\na.png,"{left: 6, top: 9}"\n')
    with pytest.raises(
        ValueError, match=r"train\.csv: its column bbox has .*write it as \[x, y, width, height\]"
    ):
        read(tmp_path)


def test_a_table_of_everything_is_not_read_again(tmp_path):
    images(tmp_path, [f"images/p{i}.jpg" for i in range(10)])
    write(tmp_path, "data/cat_labels.csv", HEADER + rows(*range(10)))
    write(tmp_path, "data/train_labels.csv", HEADER + rows(*range(8)))
    write(tmp_path, "data/test_labels.csv", HEADER + rows(8, 9))
    assert counts(tmp_path) == {"train": (8, 8), "test": (2, 2)}
    [note] = read(tmp_path).faults
    assert (note.kind, note.file) == ("repeated_annotations", "data/cat_labels.csv")
    assert (
        note.message
        == "its 10 rows are in data/test_labels.csv and data/train_labels.csv too; not read again"
    )


@pytest.mark.parametrize("tables", [
    {"trainval": range(10), "train": range(8), "val": (8, 9)},
    {"labels": range(10), "train": range(8), "val": (8, 9), "train_mini": (1, 2)},
    {"all": range(10), "copy of all": range(10), "train": range(8), "val": (8, 9)},
])  # fmt: skip
def test_repeats_of_all_kinds_are_read_once(tmp_path, tables):
    images(tmp_path, [f"images/p{i}.jpg" for i in range(10)])
    for name, numbers in tables.items():
        write(tmp_path, f"{name}.csv", HEADER + rows(*numbers))
    assert counts(tmp_path) == {"train": (8, 8), "val": (2, 2)}
    assert {f.kind for f in read(tmp_path).faults} == {"repeated_annotations"}


def test_a_table_that_repeats_a_part_and_has_more_is_refused(tmp_path):
    images(tmp_path, [f"images/p{i}.jpg" for i in range(10)])
    write(tmp_path, "labels.csv", HEADER + rows(*range(10)))
    write(tmp_path, "train.csv", HEADER + rows(*range(8)))
    with pytest.raises(
        ValueError, match=r"labels\.csv has 8 images that are also in train\.csv, and 2 others whose split"
    ):
        read(tmp_path)
    (tmp_path / "labels.csv").unlink()  # the way out
    assert counts(tmp_path) == {"train": (8, 8)}


def test_tables_of_no_split_are_joined_and_a_copy_read_once(tmp_path):
    images(tmp_path, [f"images/p{i}.jpg" for i in range(4)])
    write(tmp_path, "a.csv", HEADER + rows(0, 1, 2, 3))
    write(tmp_path, "b.csv", HEADER + rows(0, 1, shift=3))
    write(tmp_path, "b copy.csv", HEADER + rows(0, 1, shift=3))
    assert counts(tmp_path) == {"train": (4, 6)}


def test_the_same_rows_in_two_splits_are_a_leak_and_no_repeat(tmp_path):
    images(tmp_path, ["images/p0.jpg", "images/p1.jpg"])
    for split in ("train", "val"):
        write(tmp_path, f"{split}.csv", HEADER + rows(0, 1))
    assert counts(tmp_path) == {"train": (2, 2), "val": (2, 2)}
    assert {f.kind for f in read(tmp_path).faults} == {"leak"}
