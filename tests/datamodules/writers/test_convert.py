"""A data set written in another format reads back as it was, as far as the format can hold it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_sets import INDEX_COLUMNS, write_coco, write_image

from datamodules.formats.detect import detect, read
from datamodules.index.source import Source
from datamodules.writers.convert import TARGETS, convert
from datamodules.writers.names import new_names

NAMES = ("a b.png", "ä/ö ü.png", "x.png", "images/x.png", "deep/images/x.png", "X1.png", "x1.png", ".hidden.png",
         "日本.png", "c,d\"e.png")  # fmt: skip


def random_set(root: Path, seed: int, whole: bool) -> Path:
    """COCO with holes in the ids, odd names, the same names in both splits, empty images; `whole` pixels only.

    Boxes lie inside the image and are larger than a pixel, so that every format can hold them.
    """
    draw = np.random.default_rng(seed)
    categories = [{"id": int(i), "name": n} for i, n in zip(
        draw.choice(20, 4, replace=False), ("cat", "Żubr", "it's", "big dog, small"), strict=True)]  # fmt: skip
    number = 0
    for split in ("train", "val"):
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for name in NAMES:
            width, height = (int(v) for v in draw.integers(8, 60, 2))
            image_id = len(content["images"]) + 1000 * int(split == "val") + 7
            write_image(root / split / name, (width, height), number)
            content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
            for _ in range(int(draw.integers(0, 5))):
                number += 1
                x, y = draw.uniform(0, width - 4), draw.uniform(0, height - 4)
                w, h = draw.uniform(2, width - x), draw.uniform(2, height - y)
                box = [float(v) for v in (np.floor([x, y, w, h]) if whole else (x, y, w, h))]
                crowd = bool(draw.random() < 0.2)
                annotation = {"id": number * 3, "image_id": image_id, "bbox": box, "iscrowd": int(crowd),
                              "category_id": int(draw.choice([c["id"] for c in categories])),
                              "area": float(draw.uniform(1, 99))}  # fmt: skip
                if draw.random() < 0.5:
                    x, y, w, h = box
                    annotation["segmentation"] = (
                        {"size": [height, width], "counts": [height, 3, height * width - height - 3]}
                        if crowd else [[x, y, x + w, y, x + w, y + h]]
                    )  # fmt: skip
                content["annotations"].append(annotation)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def contents(source: Source, split: str, crowds: bool) -> dict[bytes, tuple[Any, ...]]:
    """By the bytes of an image: its size, and its objects as (class name, box)."""
    index = source.splits[split]
    found = {}
    for row in range(len(index)):
        objects = index.objects(row)
        kept = [
            (source.classes[c], tuple(b))
            for c, b, crowd in zip(
                objects.source_ids.tolist(), objects.boxes_xywh.tolist(), objects.crowd.tolist(), strict=True
            )
            if crowds or not crowd
        ]
        found[index.path(row).read_bytes()] = (index.size(row), kept)
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(4))
def test_random_sets_read_back_equal(tmp_path, target, seed):
    source = read(random_set(tmp_path / "set", seed, whole=seed % 2 == 0))
    assert not source.faults
    done = convert(source, target, tmp_path / "out")
    copy = read(tmp_path / "out")
    assert copy.format == target
    assert not [f for f in copy.faults if f.severity != "note"]
    assert Counter(copy.classes.values()) <= Counter(source.classes.values())
    for split, index in source.splits.items():
        ours, theirs = contents(source, split, crowds=target == "coco"), contents(copy, split, crowds=True)
        assert len(theirs) == len(index) == len(NAMES)
        assert done.splits[split] == (len(index), sum(len(kept) for _, kept in ours.values()))
        for image, (size, objects) in ours.items():
            assert theirs[image][0] == size
            assert [name for name, _ in theirs[image][1]] == [name for name, _ in objects]
            for (_, box), (_, expected) in zip(theirs[image][1], objects, strict=True):
                assert box == (expected if target == "coco" else pytest.approx(expected, abs=1e-9))


def test_coco_to_coco_loses_nothing(tmp_path):
    source = read(random_set(tmp_path / "set", 5, whole=False))
    done = convert(source, "coco", tmp_path / "out")
    copy = read(tmp_path / "out")
    assert (copy.classes, done.losses) == (source.classes, {})
    for split, index in source.splits.items():
        other = copy.splits[split]
        for column in INDEX_COLUMNS:
            assert np.array_equal(getattr(index, column), getattr(other, column)), column
        for row in range(len(index)):
            ours, theirs = index.segmentations(row), other.segmentations(row)
            assert [s and s.to_coco() for s in ours] == [s and s.to_coco() for s in theirs]


def test_yolo_says_what_it_loses(tmp_path):
    source = read(random_set(tmp_path / "set", 1, whole=True))
    crowds = sum(int(i.crowd.sum()) for i in source.splits.values())
    objects = sum(i.num_objects for i in source.splits.values())
    losses = convert(source, "yolo", tmp_path / "out").losses
    assert losses["crowd regions, left out"] == crowds > 0
    assert losses["ids of objects, which are numbered anew"] == objects
    assert losses["class ids, which become positions 0, 1, 2, ..."] == 4
    assert "areas that are not those of the box" in losses
    assert sum(number for words, number in losses.items() if "their corners" in words) > 0


def test_classes_keep_their_ids_in_a_table(tmp_path):
    source = read(random_set(tmp_path / "set", 2, whole=True))
    convert(source, "csv", tmp_path / "out")
    assert read(tmp_path / "out").classes == source.classes


def test_voc_tells_of_boxes_it_cannot_hold(tmp_path):
    root = write_coco(tmp_path / "set")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [3, 3, 1, 5]
    content["annotations"][1]["bbox"] = [-0.5, 3, 10, 5]
    file.write_text(json.dumps(content))
    done = convert(read(root), "voc", tmp_path / "out")
    assert done.losses["boxes of at most one pixel in width or height, left out"] == 1
    assert done.losses["parts of boxes outside of the image, cut off"] == 1
    assert done.splits["train"] == (3, 2)
    assert read(tmp_path / "out").splits["train"].boxes_xywh.tolist()[0] == [0, 3, 9.5, 5]


def test_yolo_leaves_out_second_copies_and_cuts_what_is_far_outside(tmp_path):
    root = write_coco(tmp_path / "set")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 99})
    content["annotations"][1]["bbox"] = [-100, 3, 120, 5]
    file.write_text(json.dumps(content))
    done = convert(read(root), "yolo", tmp_path / "out")
    assert done.losses["second copies of the same box of the same class, left out"] == 1
    assert done.splits["train"] == (3, 3)
    boxes = read(tmp_path / "out").splits["train"].boxes_xywh.tolist()
    assert pytest.approx([0, 3, 20, 5]) in boxes


def test_names_never_meet(tmp_path):
    root = tmp_path / "set"
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for i, name in enumerate(("p/a.png", "p/a.jpg", "q/A.png", "q/p_a.png", "q/train_a.png")):
        write_image(root / "images" / name, (20, 20), i)
        content["images"].append({"id": i, "file_name": name, "width": 20, "height": 20})
    (root / "labels.json").write_text(json.dumps(content))
    source = read(root)
    for target in TARGETS:
        convert(source, target, tmp_path / target)
        copy = read(tmp_path / target)
        assert {copy.splits["train"].path(r).read_bytes() for r in range(5)} == {
            source.splits["train"].path(r).read_bytes() for r in range(5)
        }
    flat = new_names(source.splits, flat=True)["train"]
    stems = [name.rsplit(".", 1)[0].casefold() for name in flat]
    assert len(set(stems)) == 5
    assert not any("/" in name for name in flat)


@pytest.mark.parametrize("images", ["copy", "link", "symlink"])
def test_images_are_copied_or_linked(tmp_path, images):
    source = read(write_coco(tmp_path / "set"))
    convert(source, "coco", tmp_path / "out", images)
    ours, theirs = tmp_path / "set/train/0.jpg", tmp_path / "out/train/0.jpg"
    assert theirs.read_bytes() == ours.read_bytes()
    assert theirs.is_symlink() == (images == "symlink")
    assert os.path.samefile(ours, theirs) == (images != "copy")


def test_output_with_anything_in_it_is_refused(tmp_path):
    source = read(write_coco(tmp_path / "set"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("x")
    with pytest.raises(ValueError, match="out exists and is not empty; nothing was written"):
        convert(source, "coco", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious.txt"]
    (tmp_path / "out/precious.txt").unlink()
    convert(source, "coco", tmp_path / "out")


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, target):
    source = read(write_coco(tmp_path / "set"))
    (tmp_path / "set/val/2.jpg").unlink()
    with pytest.raises((OSError, ValueError)):
        convert(source, target, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_what_reads_back_differently_is_refused(tmp_path, monkeypatch):
    from datamodules.writers.yolo import YoloWriter

    source = read(write_coco(tmp_path / "set"))
    monkeypatch.setattr(YoloWriter, "add", lambda self, split, picture: None)
    with pytest.raises(ValueError, match="3 images and 3 objects and reads back with 3 and 0"):
        convert(source, "yolo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rotated_photograph_whose_boxes_ignore_it_is_no_yolo(tmp_path):
    from PIL import Image

    root = write_coco(tmp_path / "set")
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "train/0.jpg", exif=exif)
    source = read(root)
    assert source.splits["train"].size(0) == (30, 40)
    done = convert(source, "yolo", tmp_path / "out")
    assert done.splits["train"] == (2, 1)
    assert [words for words in done.losses if "EXIF" in words]
    assert convert(source, "csv", tmp_path / "table").splits["train"] == (3, 3)


def test_shards_are_unpacked(tmp_path):
    from datamodules.shards.writer import pack

    source = read(random_set(tmp_path / "set", 3, whole=True))
    pack(source, tmp_path / "shards", 1 << 20)
    for target in TARGETS:
        convert(read(tmp_path / "shards"), target, tmp_path / target)
        for split in source.splits:
            ours, theirs = (
                contents(source, split, target == "coco"),
                contents(read(tmp_path / target), split, True),
            )
            assert {image: size for image, (size, _) in ours.items()} == {
                i: s for i, (s, _) in theirs.items()
            }
            assert sum(len(o) for _, o in ours.values()) == sum(len(o) for _, o in theirs.values())


def test_classes_of_one_name_are_told(tmp_path):
    root = write_coco(tmp_path / "set")
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"].append({"id": 9, "name": "cat"})
        file.write_text(json.dumps(content))
    words = "classes of the same name as another, which become one"
    assert convert(read(root), "voc", tmp_path / "voc").losses[words] == 1
    assert words not in convert(read(root), "yolo", tmp_path / "yolo").losses


@pytest.mark.parametrize("name", ["bccd_voc", "rbc_roboflow_coco"])
def test_real_sets(test_data, tmp_path, name):
    source = read(test_data / "custom" / name)
    for target in ("coco", "yolo", "csv"):
        done = convert(source, target, tmp_path / target, "symlink")
        copy = read(tmp_path / target)
        assert detect(tmp_path / target) == target
        for split, index in source.splits.items():
            assert done.splits[split] == (len(index), copy.splits[split].num_objects)
            names = [sorted(source.classes[i] for i in index.source_ids.tolist()),
                     sorted(copy.classes[i] for i in copy.splits[split].source_ids.tolist())]  # fmt: skip
            lost = index.num_objects - copy.splits[split].num_objects
            assert lost == 0 or target == "yolo"
            assert lost or names[0] == names[1]
