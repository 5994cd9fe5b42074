"""Lists with a line an image, as keras-yolo3 trains on and Roboflow exports."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sets import write_image, write_voc

from datamodules.formats.detect import detect, read


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_image(root / name, (96, 72), number)
    return root


def test_roboflows_keras_export(tmp_path):
    for split in ("train", "valid"):
        images(tmp_path / split, "a.jpg", "b.jpg", "c.jpg")
        lines = ["a.jpg 5,5,40,40,0 50,10,80,30,1", "b.jpg 1,2,11,22,1", "c.jpg"]
        write(tmp_path / split / "_annotations.txt", "\n".join(lines))
        write(tmp_path / split / "_classes.txt", "cat\ndog\n")
    images(tmp_path / "test", "t.png")
    write(tmp_path / "test/t.txt", "0 0.5 0.5 0.4 0.4\n")  # YOLO is the smaller part
    source = read(tmp_path)
    assert (source.format, source.classes) == ("box_list", {0: "cat", 1: "dog"})
    assert list(source.splits) == ["train", "val"]
    for index in source.splits.values():
        assert index.boxes_xywh.tolist() == [[5, 5, 35, 35], [50, 10, 30, 20], [1, 2, 10, 20]]
        assert (index.source_ids.tolist(), len(index)) == ([0, 1, 1], 3)
    assert [(f.kind, "test/t.png" in f.message) for f in source.faults] == [("unlisted_image", True)]


@pytest.mark.parametrize("names", ["classes.txt", "model_data/voc_classes.txt", "my.names"])
def test_keras_yolo3_with_paths_of_another_machine(tmp_path, names):
    images(tmp_path / "VOC/JPEGImages", "a b.jpg", "c.jpg")
    write(tmp_path / "2007_train.txt", "/home/user/VOC/JPEGImages/a b.jpg 5,6,40,46,1\n")
    write(tmp_path / "2007_val.txt", "D:\\set\\VOC\\JPEGImages\\c.jpg 1.5,2,11.5,22,0\n")
    write(tmp_path / names, "cat\ndog\n")
    source = read(tmp_path)
    assert {s: i.boxes_xywh.tolist() for s, i in source.splits.items()} == {
        "train": [[5, 6, 35, 40]],
        "val": [[1.5, 2, 10, 20]],
    }
    assert source.splits["train"].source_ids.tolist() == [1]
    assert source.classes == {0: "cat", 1: "dog"}
    assert source.faults == []


def test_a_line_an_object_with_the_class_by_name(tmp_path):
    images(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    write(
        tmp_path / "annotate.txt", "images/a.jpg,1,2,11,22,cat\nimages/a.jpg,5,5,9,9,dog\nimages/b.jpg,,,,,\n"
    )
    source = read(tmp_path)
    index = source.splits["train"]
    assert (index.boxes_xywh.tolist(), len(index)) == ([[1, 2, 10, 20], [5, 5, 4, 4]], 2)
    assert source.classes == {0: "cat", 1: "dog"}


def test_numbers_without_names_and_broken_lines_are_told(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "train.txt", "a.jpg 1,2,11,22,0 1,2,3,x,0\nb.jpg 1,2,11,22,12\nnothing\n")
    source = read(tmp_path)
    assert source.classes == {0: "0", 1: "12"}
    assert {f.kind: (f.severity, f.message[:4]) for f in source.faults} == {
        "invalid_row": ("error", "2 x "), "no_class_names": ("warning", "2 x "),
    }  # fmt: skip


def test_a_list_beside_voc_is_left_over(tmp_path):
    root = write_voc(tmp_path / "set")
    write(root / "2007_train.txt", f"{root}/JPEGImages/0.jpg 5,5,10,10,0\n")
    assert detect(root) == "voc"
    assert [f.kind for f in read(root).faults if f.kind == "other_format"] == ["other_format"]


@pytest.mark.parametrize(
    "text",
    [
        "images/a.jpg\nimages/b.jpg\n",
        "a.jpg 0 0.5 0.5 0.1 0.1\n",
        "a photo, of, 3, cats, 1, 2\n",
        "9" * 60_000,
    ],
)
def test_other_texts_are_no_list_of_boxes(tmp_path, text):
    images(tmp_path / "images", "a.jpg")
    write(tmp_path / "train.txt", text)
    with pytest.raises(ValueError, match="has no known layout"):
        read(tmp_path)
