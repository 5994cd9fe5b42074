"""Files of annotation tools with random damage: faults or an error that names the file, never a crash."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import write_image
from tool_samples import (
    BDD,
    BOX_LIST,
    CREATEML,
    CVAT,
    HUB,
    KITTI,
    LABELME,
    MANIFEST,
    MOT,
    ODGT,
    OID,
    OLD_LABELME,
    OPEN,
    STUDIO,
    SUPERVISELY,
    TABLE,
    VIA,
    VIA_3,
    VIA_TABLE,
    VISDRONE,
    VOTT,
    WIDER,
)

from datamodules.formats.detect import read

VALUES = (None, "", -1, 0, float("inf"), float("nan"), "x", [], {}, [1], [[1, 2]], True, 10**30, {"a": 1})
WORDS = ("", "x", "-1", "nan", "inf", "1e400", "é", '"', ",", "<", "\n", "9" * 40)


def damaged_json(content: Any, draw: random.Random) -> str:
    content = json.loads(json.dumps(content))
    for _ in range(draw.randint(1, 2)):
        places = [p for p in paths(content, []) if p]
        *way, last = draw.choice(places)
        owner = content
        for key in way:
            owner = owner[key]
        if draw.random() < 0.3:
            del owner[last]
        else:
            owner[last] = json.loads(json.dumps(draw.choice(VALUES)))  # a list of its own
        if not content:
            break
    return json.dumps(content)


def paths(value: Any, here: list[Any]) -> list[list[Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, below in items for path in paths(below, [*here, key]))]


def damaged_text(content: str, draw: random.Random) -> str:
    words = re.split(r"(\W+)", content)
    for _ in range(draw.randint(1, 3)):
        words[draw.randrange(len(words))] = draw.choice(WORDS)
    return "".join(words[: draw.randrange(len(words))] if draw.random() < 0.1 else words)


def was_told(root: Path, format: Any) -> bool:
    try:
        return bool(read(root, format).faults)
    except ValueError as error:
        return root.name in str(error)


@pytest.mark.parametrize(
    ("format", "file", "content"),
    [("labelme", "a.json", LABELME), ("label_studio", "export.json", STUDIO), ("vott_json", "export.json", VOTT),
     ("createml", "export.json", CREATEML), ("cvat", "annotations.xml", CVAT), ("labelme", "a.xml", OLD_LABELME),
     ("csv", "train.csv", TABLE), ("open_images", "train-annotations-bbox.csv", OPEN), ("via", "via.json", VIA),
     ("via", "via.json", VIA_3), ("via", "via.csv", VIA_TABLE), ("sagemaker", "output.manifest", MANIFEST),
     ("imagefolder", "metadata.jsonl", HUB), ("supervisely", "ann/a.png.json", SUPERVISELY),
     ("crowdhuman", "annotation_train.odgt", ODGT), ("bdd100k", "det_train.json", BDD),
     ("box_list", "train.txt", BOX_LIST),
     ("kitti", "label_2/a.txt", KITTI), ("visdrone", "annotations/a.txt", VISDRONE),
     ("wider_face", "wider_face_train_bbx_gt.txt", WIDER), ("mot", "gt/gt.txt", MOT), ("oidv4", "Label/a.txt", OID)],
)  # fmt: skip
def test_damage_is_told(tmp_path, format, file, content):
    name = (
        "img1/000001.png"
        if format == "mot"
        else "images/a.png"
        if format in ("kitti", "visdrone")
        else "a.png"
    )
    write_image(tmp_path / name, (40, 30))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    damage: Callable[[Any, random.Random], str] = damaged_text if isinstance(content, str) else damaged_json
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    whole = read(tmp_path)
    assert whole.format == format
    assert whole.splits["train"].num_objects > 0
    told = 0
    for seed in range(60):
        (tmp_path / file).write_text(damage(content, random.Random(seed)), encoding="utf-8")
        told += was_told(tmp_path, format)
    assert told > 10


@pytest.mark.parametrize(("format", "file"), [
    ("labelme", "a.json"), ("label_studio", "e.json"), ("vott_json", "e.json"), ("createml", "e.json"),
    ("cvat", "a.xml"), ("csv", "train.csv"), ("open_images", "b.csv"), ("yolo", "data.yaml"), ("oriented", "x.txt"),
    ("via", "via.json"), ("via", "via.csv"), ("sagemaker", "o.manifest"), ("imagefolder", "metadata.jsonl"),
    ("supervisely", "ann/a.png.json"), ("bdd100k", "l.json"), ("box_list", "train.txt"), ("kitti", "label_2/a.txt"),
    ("visdrone", "annotations/a.txt"), ("wider_face", "wider_face_train_bbx_gt.txt"), ("mot", "gt/gt.txt"),
    ("oidv4", "Label/a.txt"), ("crowdhuman", "a.odgt"),
])  # fmt: skip
def test_bytes_that_are_no_text_are_no_annotations(tmp_path, format, file):
    write_image(tmp_path / "a.png", (40, 30))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"\xff\xfe\x00\xd8[{<" * 9)
    with pytest.raises(ValueError, match=r"test_bytes.*"):
        read(tmp_path, format)


@pytest.mark.parametrize(("value", "words"), [
    ("[" * 100_000, "is nested deeper than any annotation file; export it again"),
    ("9" * 5000, "it has a number of thousands of digits; export it again"),
])  # fmt: skip
def test_json_that_python_gives_up_on_is_refused_in_our_words(tmp_path, value, words):
    write_image(tmp_path / "a.png", (40, 30))
    (tmp_path / "via.json").write_text(
        '{"filename": "a.png", "regions": [], "file_attributes": {}, "size": ' + value
    )
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


def test_a_later_row_that_is_no_text_names_the_table(tmp_path):
    write_image(tmp_path / "a.png", (40, 30))
    (tmp_path / "train.csv").write_bytes(TABLE.encode() + "a.png,40,30,кот,1,2,9,9\n".encode("cp1251"))
    with pytest.raises(ValueError, match=r"train\.csv: it is not UTF-8 \(byte 0xEA at .*save it as UTF-8"):
        read(tmp_path)


def test_what_is_left_of_a_damaged_export_is_read(tmp_path):
    write_image(tmp_path / "a.png", (40, 30))
    (tmp_path / "export.json").write_text(json.dumps([*CREATEML, "x", {"image": "a.png", "annotations": 5}]))
    source = read(tmp_path)
    assert source.splits["train"].num_objects == 1
    faults = [f for f in source.faults if f.kind == "malformed_labels"]
    assert {f.severity for f in faults} == {"error"}
    assert "entry 2" in faults[0].message + faults[1].message
