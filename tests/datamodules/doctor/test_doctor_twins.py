"""Copies of one picture: what differs in earnest is an error, what does not is a warning, and one copy stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sets import write_image

from datamodules.doctor import examine
from datamodules.doctor.fix import mend
from datamodules.formats.detect import read

Boxes = list[tuple[int, float, float, float, float]]  # class, x, y, w, h
CAT: Boxes = [(1, 10, 10, 40, 30), (1, 60, 40, 20, 20), (2, 5, 50, 12, 16)]


def moved(boxes: Boxes, by: float) -> Boxes:
    return [(c, x + by, y, w, h + by) for c, x, y, w, h in boxes]


def write(root: Path, **splits: list[Boxes]) -> Path:
    """A COCO set of one picture again and again, with the boxes of each copy; and another picture."""
    (root / "annotations").mkdir(parents=True)
    number = 0
    for split, copies in splits.items():
        images, objects = [], []
        for k, boxes in enumerate([*copies, CAT[:1]]):
            last = k == len(copies)
            name = "other.png" if last else f"{k}.png"
            write_image(root / split / name, (100, 80), len(split) if last else 99)
            images.append({"id": k, "file_name": name, "width": 100, "height": 80})
            for label, *box in boxes:
                number += 1
                objects.append(
                    {"id": number, "image_id": k, "category_id": label, "bbox": box, "area": box[2] * box[3]}
                )
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def said(root: Path) -> list[tuple[str, str, str]]:
    kinds = ("duplicate_image", "conflicting_duplicate", "leak")
    return [(f.severity, f.kind, f.file) for f in examine(root, workers=0).faults if f.kind in kinds]


def stays(root: Path, out: Path, split: str = "train") -> list[str]:
    mend(examine(root, workers=0), out)
    again = examine(out, workers=0)
    assert [f for f in again.faults if f.severity == "error"] == []
    return [name.rpartition("/")[2] for name in read(out).splits[split].files if "other" not in name]


HARMLESS = {
    "the same": (CAT, 0),
    "another order": (CAT[::-1], 0),
    "a pixel off": (moved(CAT, 1), 0),
    "half a pixel off": (moved(CAT, 0.5), 0),
    "looser": ([(c, x - 2, y - 2, w + 4, h + 3) for c, x, y, w, h in CAT], 0),
    "one more": ([*CAT, (2, 70, 5, 9, 9)], 1),
    "one less": (CAT[:2], 0),
    "one more in each": ([*CAT[1:], (2, 70, 5, 9, 9)], 0),
}
HARMFUL = {
    "another class": ([(3 - c, *box) for c, *box in CAT], 0),
    "one of another class": ([*CAT[:2], (1, *CAT[2][1:])], 0),
    "nothing": ([], 0),
    "elsewhere": ([(c, 99 - x - w, y, w, h) for c, x, y, w, h in CAT], 0),
    "one of two classes in one place": ([*CAT, (2, *CAT[0][1:])], 1),
    "one drawn otherwise": ([(1, 10, 10, 40, 18), *CAT[1:]], 0),
    "most are missing": (CAT[:1], 0),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_copies_that_agree_are_a_warning(kind, tmp_path):
    boxes, kept = HARMLESS[kind]
    root = write(tmp_path / "set", train=[CAT, boxes])
    assert said(root) == [("warning", "duplicate_image", f"train/{1 - kept}.png")]
    assert stays(root, tmp_path / "out") == [f"{kept}.png"]


@pytest.mark.parametrize("kind", HARMFUL)
def test_copies_that_contradict_each_other_are_an_error_and_one_stays(kind, tmp_path):
    boxes, kept = HARMFUL[kind]
    root = write(tmp_path / "set", train=[CAT, boxes])
    assert said(root) == [("error", "conflicting_duplicate", f"train/{1 - kept}.png")]
    assert stays(root, tmp_path / "out") == [f"{kept}.png"]
    assert "most copies agree with" in (tmp_path / "out" / "fix_log.md").read_text()


def test_a_copy_without_objects_is_not_kept_for_coming_first_or_more_often(tmp_path):
    assert stays(write(tmp_path / "a", train=[[], CAT]), tmp_path / "b") == ["1.png"]
    assert stays(write(tmp_path / "c", train=[[], [], CAT]), tmp_path / "d") == ["2.png"]
    assert stays(write(tmp_path / "e", train=[[], []]), tmp_path / "f") == ["0.png"]


def test_of_three_copies_the_two_that_agree_outvote_the_third(tmp_path):
    wrong = [(3 - c, *box) for c, *box in [*CAT, (2, 70, 5, 9, 9)]]
    root = write(tmp_path / "set", train=[wrong, CAT, moved(CAT, 1)])
    assert sorted(said(root)) == [
        ("error", "conflicting_duplicate", "train/0.png"),
        ("warning", "duplicate_image", "train/2.png"),
    ]
    assert stays(root, tmp_path / "out") == ["1.png"]


def test_one_stays_also_where_the_better_one_goes_for_another_reason(tmp_path):
    root = write(tmp_path / "set", train=[CAT, CAT[:2]])
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append(
        {"id": 99, "image_id": 0, "category_id": 1, "bbox": [5, 5, -9, 4], "area": 9}
    )
    file.write_text(json.dumps(content))
    assert stays(root, tmp_path / "out") == ["1.png"]


@pytest.mark.parametrize("boxes", [CAT, [], [(3 - c, *box) for c, *box in CAT]])
def test_over_splits_the_later_one_keeps_its_copy_and_no_other_is_left(boxes, tmp_path):
    """Also where the copy that is kept of several in train is not the first of them."""
    root = write(tmp_path / "set", train=[CAT[:2], CAT], val=[boxes])
    leak = next(f for f in examine(root, workers=0).faults if f.kind == "leak")
    assert (leak.severity, leak.file) == ("warning", "val/0.png")
    assert ("other objects" in leak.message) == (boxes is not CAT)
    assert stays(root, tmp_path / "out") == []
    assert [f.rpartition("/")[2] for f in read(tmp_path / "out").splits["val"].files] == [
        "0.png",
        "other.png",
    ]
