"""VGG Image Annotator: all that its three versions write, wherever people put it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import write_image

from datamodules.formats.detect import detect, read

RECT = {"name": "rect", "x": 5, "y": 6, "width": 10, "height": 8}
POLYGON = {"name": "polygon", "all_points_x": [1, 11, 11, 1], "all_points_y": [2, 2, 22, 22]}


def region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def entry(name: str, regions: Any) -> dict[str, Any]:
    return {"filename": name, "size": 1234, "regions": regions, "file_attributes": {}}


def metadata(**images: Any) -> dict[str, Any]:
    """Of images a.png, b.png, ... as VIA's plain json has them."""
    return {f"{stem}.png1234": entry(f"{stem}.png", regions) for stem, regions in images.items()}


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def via(root: Path, content: Any, name: str = "via_region_data.json", images: str = "ab") -> Path:
    for number, stem in enumerate(images):
        write_image((root / name).parent / f"{stem}.png", (40, 30), number)
    write(root / name, content)
    return root


def objects(root: Path, split: str = "train") -> list[tuple[str, list[float]]]:
    source = read(root)
    index = source.splits[split]
    return [
        (source.classes[i], box)
        for i, box in zip(index.source_ids.tolist(), index.boxes_xywh.tolist(), strict=True)
    ]


def notes(root: Path) -> dict[str, str]:
    return {f.kind: f.message for f in read(root).faults}


def table(content: dict[str, Any], first: str) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([first, "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes",
                   "region_attributes"])  # fmt: skip
    for image in content.values():
        own = image["regions"] or [{"shape_attributes": {}, "region_attributes": {}}]
        for number, drawn in enumerate(own):
            cells = (json.dumps(drawn["shape_attributes"]), json.dumps(drawn["region_attributes"]))
            rows.writerow([image["filename"], 1234, "{}", len(image["regions"]), number, *cells])
    return text.getvalue()


CONTENT = metadata(a=[region(RECT, name="cat"), region(POLYGON, name="dog")], b=[])
THIRD = {
    "project": {"pid": "x", "pname": "p", "data_format_version": "3.1.0", "vid_list": ["1", "2"]},
    "config": {}, "attribute": {"1": {"aname": "class", "type": 4, "options": {"0": "cat", "1": "dog"}}},
    "file": {"1": {"fid": 1, "fname": "a.png", "type": 2, "loc": 1, "src": ""},
             "2": {"fid": 2, "fname": "b.png", "type": 2, "loc": 1, "src": ""}},
    "metadata": {"1_q": {"vid": "1", "flg": 0, "z": [], "xy": [2, 5, 6, 10, 8], "av": {"1": "0"}},
                 "1_r": {"vid": "1", "flg": 0, "z": [], "xy": [7, 1, 2, 11, 2, 11, 22, 1, 22], "av": {"1": "1"}}},
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("via_region_data.json", CONTENT),
        ("via_export_json.json", metadata(a={"0": CONTENT["a.png1234"]["regions"][0],
                                             "1": CONTENT["a.png1234"]["regions"][1]}, b={})),
        ("via_project.json", {"_via_settings": {}, "_via_img_metadata": CONTENT, "_via_attributes": {}}),
        ("via_export_csv.csv", table(CONTENT, "filename")),
        ("via_region_data.csv", table(CONTENT, "#filename")),
        ("via3.json", THIRD),
    ],
)  # fmt: skip
def test_every_file_of_every_version_reads_alike(tmp_path, name, content):
    root = via(tmp_path, content, name)
    assert detect(root) == "via"
    assert objects(root) == [("cat", [5, 6, 10, 8]), ("dog", [1, 2, 10, 20])]
    index = read(root).splits["train"]
    assert index.files.tolist() == ["a.png", "b.png"]
    outlines = [s and s.to_coco() for s in index.segmentations(0)]
    assert outlines == [None, [[1, 2, 11, 2, 11, 22, 1, 22]]]
    assert read(root).faults == []


def test_balloon(tmp_path):
    """train/ and val/ with via_region_data.json beside the pictures; regions by number, without a class."""
    drawn = {"0": region(POLYGON), "1": region(POLYGON | {"all_points_x": [20, 30, 30, 20]})}
    for split, stems in (("train", "abc"), ("val", "d")):
        content = metadata(**dict.fromkeys(stems, drawn))
        via(tmp_path, content, f"{split}/via_region_data.json", stems)
    source = read(tmp_path)
    assert source.classes == {0: "object"}
    assert {s: (len(i), i.num_objects) for s, i in source.splits.items()} == {"train": (3, 6), "val": (1, 2)}
    assert source.splits["val"].boxes_xywh.tolist() == [[1, 2, 10, 20], [20, 2, 10, 20]]
    assert [(f.severity, f.kind) for f in source.faults] == [("note", "class_attribute")]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("via.json", {"train": "images/train", "val": "images/val"}),
        ("annotations/via.json", {"train": "train", "val": "val"}),
        ("annotations/{}.json", {"train": "images", "val": "images"}),
        ("{}/labels/via.json", {"train": "train/images", "val": "val/images"}),
        ("{}_via.json", {"train": "images", "val": "images"}),
    ],
)
def test_places(tmp_path, file, images):
    stems = {"train": "ab", "val": "c"}
    for split, folder in images.items():
        for stem in stems[split]:
            write_image(tmp_path / folder / f"{stem}.png", (40, 30), ord(stem))
    regions = [region(RECT, name="cat")]
    if "{}" in file:
        for split in stems:
            write(tmp_path / file.format(split), metadata(**dict.fromkeys(stems[split], regions)))
    else:
        write(tmp_path / file, metadata(**dict.fromkeys("abc", regions)))
    source = read(tmp_path)
    assert {s: (len(i), i.num_objects) for s, i in source.splits.items()} == {"train": (2, 2), "val": (1, 1)}
    assert source.faults == []


def test_shapes(tmp_path):
    shapes = [
        {"name": "circle", "cx": 20, "cy": 15, "r": 5},
        {"name": "ellipse", "cx": 20, "cy": 15, "rx": 4, "ry": 2, "theta": 0},
        {"name": "ellipse", "cx": 20, "cy": 15, "rx": 4, "ry": 2, "theta": 1.5707963267948966},
        {"name": "polyline", "all_points_x": [1, 5, 9], "all_points_y": [1, 8, 2]},
        {"name": "polyline", "all_points_x": [1, 5], "all_points_y": [1, 8]},
        {"name": "point", "cx": 3, "cy": 4},
    ]
    root = via(tmp_path, metadata(a=[region(s, name="cat") for s in shapes]), images="a")
    assert [box for _, box in objects(root)] == [
        [15, 10, 10, 10], [16, 13, 8, 4], pytest.approx([18, 11, 4, 8]), [1, 1, 8, 7],
    ]  # fmt: skip
    told = {f.message.partition(":")[0] for f in read(root).faults}
    assert told == {"1 x polyline", "1 x point"}
    assert sorted(f.kind for f in read(root).faults) == ["no_box", "no_box", "polyline"]


@pytest.mark.parametrize(
    ("attributes", "classes"),
    [
        ([{"kind": "cat"}, {"kind": "dog"}], ["cat", "dog"]),
        ([{"id": "1", "label": "cat"}, {"id": "2", "label": "dog"}], ["cat", "dog"]),
        ([{"text": "AB 12", "colour": "red"}, {"text": "CD 34", "colour": "red"}], ["red"]),
        ([{"class": {"cat": True, "dog": False}}, {"class": {"dog": True}}], ["cat", "dog"]),
        ([{"class": "", "type": "cat"}, {"class": "", "type": "dog"}], ["cat", "dog"]),
        ([{"class": 0}, {"class": 7}], ["0", "7"]),
    ],
)
def test_the_attribute_of_the_class_is_chosen_by_content(tmp_path, attributes, classes):
    root = via(tmp_path, metadata(a=[region(RECT, **attributes[0]), region(POLYGON, **attributes[1])], b=[]))
    assert list(read(root).classes.values()) == classes
    assert [f.severity for f in read(root).faults] == ["note"] * (sum(map(len, attributes)) > 2 and "" not in [
        v for a in attributes for v in a.values()])  # fmt: skip


def test_an_attribute_that_few_regions_have_is_not_the_class(tmp_path):
    regions = [region(RECT, kind="cat"), region(RECT, kind="dog"), region(POLYGON, kind="dog", label="old")]
    root = via(tmp_path, metadata(a=regions), images="a")
    assert list(read(root).classes.values()) == ["cat", "dog"]


def test_several_ticked_boxes_are_several_objects_and_options_are_what_they_stand_for(tmp_path):
    project = {
        "_via_img_metadata": metadata(
            a=[region(RECT, type={"1": True, "2": True}), region(POLYGON, type="2")]
        ),
        "_via_attributes": {"region": {"type": {"type": "checkbox", "options": {"1": "cat", "2": "dog"}}}},
    }
    root = via(tmp_path, project, "via_project.json", "a")
    assert objects(root) == [
        ("cat", [5, 6, 10, 8]), ("dog", [5, 6, 10, 8]), ("dog", [1, 2, 10, 20]),
    ]  # fmt: skip


def test_a_project_and_its_exports_are_one_set(tmp_path):
    root = via(tmp_path, {"_via_img_metadata": CONTENT}, "via_project.json")
    write(root / "via_export.csv", table(CONTENT, "filename"))
    write(root / "via_export.json", CONTENT)
    assert objects(root) == [("cat", [5, 6, 10, 8]), ("dog", [1, 2, 10, 20])]
    told = [(f.severity, f.kind, f.message[:4]) for f in read(root).faults]
    assert told == [("note", "listed_twice", "2 x ")] * 2


def test_broken_entries_are_told_with_their_key(tmp_path):
    content = metadata(a=[region(RECT, name="cat")], b=[{"shape_attributes": 3}])
    content["c"] = entry("c.png", [region({"name": "rect", "x": None}, name="cat")])
    root = via(tmp_path, content, images="abc")
    assert objects(root) == [("cat", [5, 6, 10, 8])]
    told = {f.kind: f.message for f in read(root).faults if f.severity == "error"}
    assert "b.png1234" in told.pop("malformed_labels")
    assert list(told) == ["invalid_box"]
