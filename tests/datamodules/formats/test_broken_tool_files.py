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

from datamodules.formats.detect import read

VALUES = (None, "", -1, 0, float("inf"), float("nan"), "x", [], {}, [1], [[1, 2]], True, 10**30, {"a": 1})
WORDS = ("", "x", "-1", "nan", "inf", "1e400", "é", '"', ",", "<", "\n", "9" * 40)

LABELME = {"shapes": [
    {"label": "a", "points": [[1, 2], [5, 6]], "shape_type": "rectangle", "group_id": None},
    {"label": "b", "points": [[1, 2], [5, 6], [7, 9]], "shape_type": "polygon", "group_id": 3},
    {"label": "b", "points": [[1, 2], [5, 6]], "shape_type": "circle"},
], "imagePath": "a.png", "imageHeight": 30, "imageWidth": 40}  # fmt: skip
STUDIO = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 2, "updated_at": "x", "result": [
    {"id": "r", "type": "rectanglelabels", "original_width": 40, "original_height": 30,
     "value": {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 5, "rectanglelabels": ["cat"]}},
    {"id": "s", "type": "polygonlabels", "original_width": 40, "original_height": 30,
     "value": {"points": [[1, 2], [30, 40], [5, 6]], "polygonlabels": ["cat"]}},
]}]}]  # fmt: skip
VOTT = {"tags": [{"name": "cat"}], "assets": {"k": {
    "asset": {"name": "a.png", "path": "file:a.png", "size": {"width": 40, "height": 30}},
    "regions": [{"type": "POLYGON", "tags": ["cat"], "points": [{"x": 1, "y": 2}, {"x": 5, "y": 2}, {"x": 5, "y": 9}],
                 "boundingBox": {"left": 1, "top": 2, "width": 4, "height": 7}}],
}}}  # fmt: skip
CREATEML = [{"image": "a.png", "annotations": [
    {"label": "cat", "coordinates": {"x": 9, "y": 9, "width": 3, "height": 4}}]}]  # fmt: skip
CVAT = """<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.png" width="40" height="30"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="9" rotation="30"/>
<polygon label="cat" points="1,2;9,2;9,9"/><ellipse label="cat" cx="9" cy="9" rx="3" ry="4"/></image></annotations>"""
OLD_LABELME = """<annotation><filename>a.png</filename><object><name>cat</name><deleted>0</deleted><polygon><pt><x>1</x>
<y>2</y></pt><pt><x>5</x><y>9</y></pt></polygon></object><imagesize><nrows>30</nrows><ncols>40</ncols></imagesize>
</annotation>"""
TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cat,1,2,9,9\na.png,40,30,dog,3,4,8,9\n"
OPEN = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\na,x,/m/c,1,0.1,0.5,0.2,0.9,1\n"

VIA = {"a.png9": {"filename": "a.png", "size": 9, "file_attributes": {}, "regions": [
    {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 9, "height": 8},
     "region_attributes": {"class": "cat"}},
    {"shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [2, 2, 9]},
     "region_attributes": {"class": {"cat": True}}}]}}  # fmt: skip
VIA_3 = {
    "project": {"vid_list": ["1"]}, "attribute": {"1": {"aname": "class", "options": {"0": "cat"}}},
    "file": {"1": {"fid": 1, "fname": "a.png"}}, "view": {"1": {"fid_list": ["1"]}},
    "metadata": {"1_q": {"vid": "1", "xy": [2, 5, 6, 10, 8], "av": {"1": "0"}}},
}  # fmt: skip
VIA_TABLE = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    'a.png,9,{},1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":9,""height"":8}","{""class"":""cat""}"\n'
)
MANIFEST = {
    "source-ref": "s3://b/a.png", "job-metadata": {"class-map": {"0": "cat"}, "type": "groundtruth/object-detection"},
    "job": {"image_size": [{"width": 40, "height": 30}], "annotations": [
        {"class_id": 0, "left": 1, "top": 2, "width": 9, "height": 8}]},
}  # fmt: skip
HUB = {
    "file_name": "a.png",
    "width": 40,
    "height": 30,
    "objects": {"bbox": [[1, 2, 9, 8]], "categories": ["cat"]},
}
SUPERVISELY = {"size": {"height": 30, "width": 40}, "tags": [], "objects": [
    {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [9, 8]], "interior": []}},
    {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": "eJwBAAD//w==", "origin": [1, 2]}}]}  # fmt: skip
ODGT = {"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 9, 8], "extra": {"occ": 0}}]}
BDD = [{"name": "a.png", "labels": [{"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 9, "y2": 8}}]}]
BOX_LIST = "a.png 1,2,9,8,0 3,4,9,9,1\n"
KITTI = 2 * "Car 0.00 0 -1.57 1.5 2 9.5 8 1.5 1.6 3.7 1 1.5 8.4 -1.56\n"
VISDRONE = "1,2,9,8,1,4,0,0\n3,4,9,9,1,1,0,1\n0,0,3,3,0,0,0,0\n"
WIDER = "a.png\n2\n1 2 9 8 0 0 0 0 0 0\n3 4 9 9 0 0 0 1 0 0\n"
MOT = "1,1,2,3,9,8,1,1,1\n1,2,3,4,9,9,0,8,1\n"
OID = "Human face 1 2 9 8\nHuman face 3 4 9 9\n"


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
