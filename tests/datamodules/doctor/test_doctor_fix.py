"""A cleaned copy: has no error left, changes what it says and nothing else, and never touches its source."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_sets import coco_content, write_coco, write_image, write_voc, write_yolo

from datamodules.doctor import examine
from datamodules.doctor.fix import mend
from datamodules.formats.detect import read
from datamodules.images.decoding import decode_file


def tree(root: Path) -> dict[str, str]:
    """Hash and mode of every file."""
    return {
        str(p.relative_to(root)): f"{p.stat().st_mode} {hashlib.sha256(p.read_bytes()).hexdigest()}"
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def fixed(root: Path, out: Path) -> list[dict]:
    """Mends, and returns the log."""
    before = tree(root)
    counts = mend(examine(root, workers=0), out).counts
    assert tree(root) == before
    log = [json.loads(line) for line in (out / "fix_log.jsonl").read_text().splitlines()]
    assert sum(counts.values()) == len(log)
    assert (out / "fix_log.md").read_text().startswith("# Cleaned copy")
    assert not list(out.parent.glob(f".{out.name}*"))
    return log


def did(log: list[dict], action: str) -> list[tuple]:
    return [(e["file"], e["id"], e["before"], e["after"]) for e in log if e["action"] == action]


def content(out: Path, split: str = "train") -> dict:
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text())


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_dirty_set_has_no_error_left(name, test_data, tmp_path):
    out = tmp_path / "out"
    fixed(test_data / "dirty" / name, out)
    again = examine(out, workers=0)
    assert [str(f) for f in again.faults if f.severity == "error"] == []
    kinds = {f.kind for f in again.faults}
    assert not kinds & {
        "similar_classes", "duplicate_annotation_id", "duplicate_object", "partly_outside", "leak", "file_name",
        "exif_rotation", "colour_space", "palette", "high_bit_depth", "wrong_suffix", "uncommon_format",
    }  # fmt: skip
    # what is right is in the copy as it was
    if name == "coco":
        for file in (
            "train/negative_no_ann.jpg",
            "train/ünï cödé 图 1.jpg",
            "train/crowd.jpg",
            "val/val_ok.jpg",
        ):
            assert (out / file).read_bytes() == (test_data / "dirty/coco" / file).read_bytes()


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc])
def test_clean_set_is_copied_as_it_is(write, tmp_path):
    root, out = write(tmp_path / "set"), tmp_path / "out"
    found = examine(root, workers=0)
    log = fixed(root, out)
    assert {e["action"] for e in log} <= {
        "image_left_out"
    }  # the tiny sets have the same images in all splits
    kept = read(out)
    assert dict(kept.classes) == dict(found.source.classes)
    last = list(kept.splits)[-1]
    assert np.array_equal(kept.splits[last].boxes_xywh, found.source.splits[last].boxes_xywh)
    for row in range(len(kept.splits[last])):
        assert kept.splits[last].path(row).read_bytes() == found.source.splits[last].path(row).read_bytes()


def test_annotations_are_mended_and_told(tmp_path):
    made = coco_content()
    made["images"] = made["images"][:1]
    made["categories"].append({"id": 9, "name": "Cat "})
    square = {"image_id": 10, "category_id": 3}
    made["annotations"] = [
        {**square, "id": 1, "bbox": [30, 20, 20, 20], "area": 400},  # passes the edge of 40x30
        {**square, "id": 2, "bbox": [1, 1, 5, 5], "area": 20, "segmentation": [[1, 1, 6, 1, 6, 6]]},
        {**square, "id": 2, "bbox": [2, 2, 5, 5], "area": 0},
        {**square, "id": 4, "bbox": [1, 1, 5, 5], "area": 20},  # as the second
        {**square, "id": 5, "bbox": [10, 10, 35, 28], "area": 450, "category_id": 9},  # corners
        {**square, "id": 6, "bbox": [5, 5, 0, 5]},
    ]
    root, out = write_coco(tmp_path / "set", made), tmp_path / "out"
    for split, seed in (("train", 50), ("val", 60)):  # other pictures than elsewhere
        for i, size in enumerate(((40, 30), (32, 48), (40, 40))):
            write_image(root / split / f"{i}.jpg", size, seed + i)
    log = fixed(root, out)
    assert did(log, "box_changed") == [
        ("train/0.jpg", 1, [30, 20, 20, 20], [30, 20, 10, 10]),
        ("train/0.jpg", 5, [10, 10, 35, 28], [10, 10, 25, 18]),
    ]
    assert did(log, "area_changed") == [("train/0.jpg", 1, 400, 100), ("train/0.jpg", 2, 0, 25)]
    assert did(log, "renumbered") == [("train/0.jpg", 2, 2, 6)]
    assert did(log, "class_merged") == [(".", 9, "Cat ", "cat")]
    assert [(e["id"], e["why"][:7]) for e in log if e["action"] == "object_left_out"] == [
        (6, "box [5."), (4, "repeats"),
    ]  # fmt: skip
    written = content(out)
    assert [(a["id"], a["category_id"], a["bbox"]) for a in written["annotations"]] == [
        (1, 3, [30, 20, 10, 10]), (2, 3, [1, 1, 5, 5]), (6, 3, [2, 2, 5, 5]), (5, 3, [10, 10, 25, 18]),
    ]  # fmt: skip
    assert written["annotations"][1]["segmentation"] == [[1, 1, 6, 1, 6, 6]]
    assert [c["name"] for c in written["categories"]] == ["cat", "dog"]


def test_image_with_an_object_of_unknown_place_is_left_out(tmp_path):
    root, out = write_yolo(tmp_path / "set", splits=("train",)), tmp_path / "out"
    (root / "labels/train/0.txt").write_text("0 .5 .5 .2 .2\n0 20 15 5 5\n")
    log = fixed(root, out)
    [(file, _, before, after)] = did(log, "image_left_out")
    assert (file, before, after) == ("images/train/0.jpg", 1, 0)
    assert [i["file_name"] for i in content(out)["images"]] == ["1.jpg", "2.jpg"]


def test_leaked_picture_leaves_the_training_split(tmp_path):
    root, out = write_coco(tmp_path / "set"), tmp_path / "out"
    write_image(root / "train/0.jpg", (40, 30), 70)
    log = fixed(root, out)
    assert sorted(f for f, *_ in did(log, "image_left_out")) == ["train/1.jpg", "train/2.jpg"]
    assert (len(content(out)["images"]), len(content(out, "val")["images"])) == (1, 3)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_photograph_is_written_upright(orientation, tmp_path):
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    raw = Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    root, out = tmp_path / "set", tmp_path / "out"
    (root / "images/train").mkdir(parents=True)
    (root / "labels/train").mkdir(parents=True)
    raw.save(root / "images/train/a.jpg", exif=exif, quality=95)
    (root / "labels/train/a.txt").write_text("0 .5 .5 .2 .2")
    size = (60, 80) if orientation < 5 else (80, 60)
    seen = np.asarray(decode_file(root / "images/train/a.jpg", 0, size)).astype(int)
    fixed(root, out)
    with Image.open(out / "train/a.jpg") as image:
        assert image.getexif().get(0x0112) is None
        assert np.abs(np.asarray(image).astype(int) - seen).mean() < 3


def test_target_is_refused(tmp_path):
    root = write_coco(tmp_path / "set")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    found = examine(root, workers=0)
    for out, word in (
        (full, "not empty"),
        (root / "inside", "lie in one another"),
        (tmp_path, "lie in one another"),
    ):
        with pytest.raises(ValueError, match=word):
            mend(found, out)
    with pytest.raises(ValueError, match="leave --quick out"):
        mend(examine(root, quick=True), tmp_path / "out")
    assert (full / "mine.txt").read_text() == "keep"


def test_broken_off_copy_leaves_nothing(tmp_path, monkeypatch):
    root, out = write_coco(tmp_path / "set"), tmp_path / "out"
    found = examine(root, workers=0)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mend(found, out, stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_all_boxes_in_doubt_need_the_user(tmp_path):
    made = coco_content()
    made["annotations"] = [
        {"id": i, "image_id": 10, "category_id": 3, "bbox": [12, 10, 20 + i % 19, 15 + i % 14], "area": 0.5}
        for i in range(30)
    ]
    with pytest.raises(ValueError, match=r"decision of yours(.|\n)*xyxy_boxes"):
        mend(examine(write_coco(tmp_path / "set", made), workers=0), tmp_path / "out")


def test_no_name_is_taken_twice(tmp_path):
    made = coco_content()
    names = ["a_2.jpg", "a.jpg", "a.png"]
    root = write_coco(tmp_path / "set", made)
    for number, (entry, name) in enumerate(zip(made["images"], names, strict=True)):
        entry["id"], entry["file_name"] = number, name
        write_image(root / "train" / "new.jpg", (entry["width"], entry["height"]), 10 + number)
        (root / "train/new.jpg").rename(root / "train" / name)  # a.png is a JPEG by its bytes
    for entry in made["annotations"]:
        entry["image_id"] = 0
    (root / "annotations/instances_train.json").write_text(json.dumps(made))
    fixed(root, tmp_path / "out")
    copied = [entry["file_name"] for entry in content(tmp_path / "out")["images"]]
    assert len(set(copied)) == 3
    for old, new in zip(names, copied, strict=True):
        assert (tmp_path / "out/train" / new).read_bytes() == (root / "train" / old).read_bytes()


def test_a_file_name_that_is_no_text_is_copied(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    root = write_yolo(tmp_path / "set")
    write_image(root / "images/train" / name, (30, 20), 7)  # without labels: a warning that names it
    fixed(root, tmp_path / "out")
    assert (tmp_path / "out/train" / name).is_file()
    assert any(f.endswith(f"/{name}") for f in read(tmp_path / "out").splits["train"].files)
