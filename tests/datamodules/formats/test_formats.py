from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import (
    PICTURES,
    coco_content,
    module,
    write_coco,
    write_image,
    write_roboflow,
    write_voc,
    write_yolo,
)

from datamodules.coco import CocoDataModule
from datamodules.formats.detect import detect, read

WRITERS = {"coco": write_coco, "roboflow_coco": write_roboflow, "yolo": write_yolo, "voc": write_voc}


@pytest.mark.parametrize("format", WRITERS)
def test_format_is_detected_and_read_alike(format, tmp_path):
    root = WRITERS[format](tmp_path / "set")
    assert detect(root) == format
    source = read(root)
    train = source.splits["train"]
    assert list(source.classes.values()) == ["cat", "dog"]
    names = list(source.classes.values())
    for row in range(len(train)):
        (width, height), objects = PICTURES[row]
        found = train.objects(row)
        assert train.size(row) == (height, width)
        assert [source.classes[i] for i in found.source_ids.tolist()] == [names[c] for c, *_ in objects]
        np.testing.assert_allclose(
            found.boxes_xywh, np.array([b for _, *b in objects]).reshape(-1, 4), atol=1e-9
        )
    assert not [f for f in source.faults if f.kind != "placeholder_category"]


@pytest.mark.parametrize(
    ("format", "splits"),
    [("coco", ["train", "val"]), ("roboflow_coco", ["train", "val", "test"]), ("yolo", ["train", "val"]),
     ("voc", ["train", "test"])],
)  # fmt: skip
def test_splits(format, splits, tmp_path):
    assert list(read(WRITERS[format](tmp_path / "set")).splits) == splits


def test_coco_classes_are_in_order_of_ids_and_areas_are_the_files(tmp_path):
    source = read(write_coco(tmp_path / "set"))
    assert source.classes == {3: "cat", 5: "dog"}
    assert source.splits["train"].areas.tolist() == [7.5, 7.5, 7.5]
    assert source.splits["train"].image_ids.tolist() == [10, 11, 12]


def test_single_json_beside_images(tmp_path):
    for i, (size, _) in enumerate(PICTURES):
        write_image(tmp_path / "images" / f"{i}.jpg", size)
    (tmp_path / "labels.json").write_text(json.dumps(coco_content()))
    source = read(tmp_path)
    assert source.format == "coco"
    assert len(source.splits["train"]) == 3


def test_roboflow_placeholder_is_told_and_left_out(tmp_path):
    source = read(write_roboflow(tmp_path / "set"))
    assert source.classes == {3: "cat", 5: "dog"}
    [note] = [f for f in source.faults if f.kind == "placeholder_category"]
    assert not note.leaves_out  # of images and objects
    assert note.severity == "note"
    assert "'animals'" in note.message


def test_roboflow_category_0_with_annotations_is_a_class(tmp_path):
    root = write_roboflow(tmp_path / "set")
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert read(root).classes == {0: "animals", 3: "cat", 5: "dog"}


def test_voc_in_a_sub_folder(tmp_path):
    write_voc(tmp_path / "set" / "BCCD")
    source = read(tmp_path / "set")
    assert (source.format, len(source.splits["train"]), len(source.splits["test"])) == ("voc", 2, 1)


def test_voc_trainval_without_train_gives_train_without_val(tmp_path):
    root = write_voc(tmp_path / "set")
    main = root / "ImageSets" / "Main"
    (main / "train.txt").rename(main / "trainval.txt")
    (main / "val.txt").write_text("1\n")
    source = read(root)
    assert {s: i.files.tolist() for s, i in source.splits.items()} == {
        "train": ["JPEGImages/0.jpg"],
        "val": ["JPEGImages/1.jpg"],
        "test": ["JPEGImages/2.jpg"],
    }


def test_voc_counts_from_0_if_a_box_starts_there(tmp_path):
    root = write_voc(tmp_path / "set")
    file = root / "Annotations" / "0.xml"
    file.write_text(file.read_text().replace("<xmin>6</xmin>", "<xmin>0</xmin>"))
    assert read(root).splits["train"].boxes_xywh[0].tolist() == [0, 6, 15, 9]


def test_yolo_without_yaml_takes_classes_txt_or_numbers(tmp_path):
    root = write_yolo(tmp_path / "set")
    (root / "data.yaml").unlink()
    source = read(root)
    assert source.classes == {0: "class_0", 1: "class_1"}
    assert [f.kind for f in source.faults] == ["no_class_names"]
    (root / "classes.txt").write_text("cat\ndog\n")
    assert read(root).classes == {0: "cat", 1: "dog"}


def test_yolo_roboflow_paths(tmp_path):
    root = write_yolo(tmp_path / "set")
    for split in ("train", "val"):
        (root / split).mkdir()
        shutil.move(root / "images" / split, root / split / "images")
        shutil.move(root / "labels" / split, root / split / "labels")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: /content/x/val/images\nnames: {0: cat, 1: dog}\n"
    )
    source = read(root)
    assert [len(i) for i in source.splits.values()] == [3, 3]
    assert source.splits["train"].num_objects == 3


def test_unknown_layout_lists_what_is_there_and_what_is_understood(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"holiday/, list\.csv") as error:
        read(tmp_path)
    for word in ("COCO json", "Roboflow", "data.yaml", "Annotations/*.xml"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="is not a folder"):
        read(tmp_path / "absent")


def test_val_is_drawn_with_a_warning_only_if_there_is_none(tmp_path):
    root = write_yolo(tmp_path / "set", splits=("train",))
    data = module(root, val_fraction=0.34)
    summary = data.summary()
    assert {s: c.images for s, c in summary.splits.items()} == {"train": 2, "val": 1}
    assert [f.kind for f in summary.faults] == ["no_val_split"]
    again, other = module(root, val_fraction=0.34), module(root, val_fraction=0.34, seed=4)
    held_out = [m.read().splits["val"].files.tolist() for m in (data, again, other)]
    assert held_out[0] == held_out[1]
    assert set(held_out[0]) & set(data.read().splits["train"].files.tolist()) == set()
    assert [f.kind for f in module(write_voc(tmp_path / "voc")).summary().faults] == ["test_as_val"]


def test_splits_can_be_named_and_joined(tmp_path):
    data = module(write_roboflow(tmp_path / "set"), train_split="train+val", eval_split="test")
    splits = data.read().splits
    assert (len(splits["train"]), len(splits["val"])) == (6, 3)
    assert len(set(splits["train"].image_ids.tolist())) == 6
    both = module(tmp_path / "set", train_split="train+val")
    assert "train_in_val" not in [f.kind for f in data.summary().faults]
    assert [f.message[:8] for f in both.summary().faults if f.kind == "train_in_val"] == ["3 images"]
    with pytest.raises(ValueError, match="has no split night"):
        module(tmp_path / "set", eval_split="night").read()


def test_an_image_in_two_splits_is_a_warning(tmp_path):
    root = write_voc(tmp_path / "set")
    (root / "ImageSets/Main/test.txt").write_text("1\n")
    leaks = [f for f in read(root).faults if f.kind == "leak"]
    assert [f.file for f in leaks] == ["JPEGImages/1.jpg"]


def coco_module(root: Path, **changes: object) -> CocoDataModule:
    from tiny_sets import SQUARE

    arguments = {
        "root": str(root), "labels": "contiguous", "input": SQUARE, "train_transform": "none",
        "batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "seed": 0,
        "train_split": "train", "eval_split": "val",
    }  # fmt: skip
    return CocoDataModule(**(arguments | changes))


def test_coco_label_spaces(tmp_path):
    root = write_coco(tmp_path / "set")
    contiguous, raw = coco_module(root), coco_module(root, labels="category_id")
    assert contiguous.label_map.head_of_source == {3: 0, 5: 1}
    assert (raw.label_map.head_of_source, raw.label_map.num_classes) == ({3: 3, 5: 5}, 6)
    for data, labels in ((contiguous, [0, 1, 1]), (raw, [3, 5, 5])):
        data.setup("validate")
        batches = list(data.val_dataloader())
        assert [x for b in batches for x in b.targets.labels.tolist()] == labels
        assert [x for b in batches for x in b.annotations.labels.tolist()] == labels


def test_coco_layout_must_be_complete(tmp_path):
    root = write_coco(tmp_path / "set")
    with pytest.raises(ValueError, match=r"lacks annotations/instances_val2017.json, val2017"):
        coco_module(root, eval_split="val2017").setup("fit")


def test_digest_follows_the_annotations_and_not_the_place(tmp_path):
    root = write_coco(tmp_path / "set")
    digest = coco_module(root).digest()
    moved = Path(shutil.move(root, tmp_path / "elsewhere"))
    assert coco_module(moved).digest() == digest
    content = coco_content()
    content["annotations"][0]["bbox"][0] += 1
    (moved / "annotations" / "instances_train.json").write_text(json.dumps(content))
    assert coco_module(moved).digest() != digest
