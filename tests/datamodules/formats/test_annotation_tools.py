"""LabelMe, CVAT, Label Studio, VoTT and Open Images: the meaning of what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny_sets import write_image

from datamodules.formats import cvat as cvat_reader
from datamodules.formats.detect import detect, read
from datamodules.reading.image_tree import ImageTree


def only(root: Path, split: str = "train") -> list[tuple[str, list[float]]]:
    """Class and box of every object of a split."""
    source = read(root)
    index = source.splits[split]
    return [
        (source.classes[i], box)
        for i, box in zip(index.source_ids.tolist(), index.boxes_xywh.tolist(), strict=True)
    ]


def kinds(root: Path) -> dict[str, str]:
    return {f.kind: f.message for f in read(root).faults}


def labelme(root: Path, shapes: list[dict[str, Any]], image_path: str = "a.png") -> Path:
    write_image(root / "a.png", (40, 30))
    content = {"version": "5.4", "shapes": shapes, "imagePath": image_path, "imageData": None,
               "imageHeight": 30, "imageWidth": 40}  # fmt: skip
    (root / "a.json").write_text(json.dumps(content))
    return root


def shape(
    kind: str, points: list[list[float]], label: str = "cat", group: int | None = None
) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group}


def test_labelme_shapes(tmp_path):
    root = labelme(tmp_path, [
        shape("rectangle", [[12, 20], [2, 10]]),  # drawn from the lower right
        shape("polygon", [[5, 5], [15, 5], [10, 12]], "dog"),
        shape("circle", [[20, 15], [23, 19]]),
        shape("polygon", [[1, 1], [3, 1], [3, 3]], "cat", group=7),
        shape("polygon", [[8, 8], [9, 8], [9, 10]], "cat", group=7),
        shape("line", [[1, 1], [5, 5]]),
    ])  # fmt: skip
    assert detect(root) == "labelme"
    assert only(root) == [
        ("cat", [2, 10, 10, 10]), ("dog", [5, 5, 10, 7]), ("cat", [15, 10, 10, 10]), ("cat", [1, 1, 8, 9]),
    ]  # fmt: skip
    assert kinds(root)["no_box"].startswith("1 x line: has no box")
    outlines = [s and s.to_coco() for s in read(root).splits["train"].segmentations(0)]
    assert outlines == [
        None, [[5, 5, 15, 5, 10, 12]], None, [[1, 1, 3, 1, 3, 3], [8, 8, 9, 8, 9, 10]],
    ]  # fmt: skip


def test_labelmes_own_words_are_no_classes(tmp_path):
    root = labelme(tmp_path, [
        shape("rectangle", [[2, 10], [12, 20]]),
        shape("rectangle", [[20, 2], [30, 8]], "dog"),
        shape("polygon", [[5, 5], [15, 5], [10, 12]], "__ignore__"),
        shape("rectangle", [[0, 0], [40, 30]], "_background_"),
    ])  # fmt: skip
    source = read(root)
    index = source.splits["train"]
    assert source.classes == {0: "cat", 1: "dog"}
    assert index.boxes_xywh.tolist() == [[2, 10, 10, 10], [20, 2, 10, 6], [5, 5, 10, 7], [5, 5, 10, 7]]
    assert index.source_ids.tolist() == [0, 1, 0, 1]  # the region is a crowd of each class
    assert index.crowd.tolist() == [False, False, True, True]
    assert {f.kind: (f.severity, f.message[:4]) for f in source.faults} == {
        "ignore_region": ("note", "1 x "),
        "background": ("note", "1 x "),
    }


def test_a_labelme_picture_that_is_only_in_the_json_is_told_with_the_way_out(tmp_path):
    root = labelme(tmp_path, [shape("rectangle", [[1, 1], [5, 5]])])
    content = json.loads((root / "a.json").read_text()) | {"imagePath": "my b.jpg", "imageData": "iVBORw0"}
    (root / "my b.json").write_text(json.dumps(content))
    [fault] = [f for f in read(root).faults if f.severity == "error"]
    assert fault.kind == "missing_image"
    assert "only inside my b.json (imageData)" in fault.message
    assert "`labelme_export_json 'my b.json'`" in fault.message
    (root / "a.png").rename(root / "my b.png")  # as the message says
    assert read(root).splits["train"].files.tolist() == ["my b.png"]


@pytest.mark.parametrize("named", ["..\\photos\\a.png", "/home/someone/a.png", "old_name.png"])
def test_labelme_images_that_moved(tmp_path, named):
    root = labelme(tmp_path, [shape("rectangle", [[1, 1], [5, 5]])], named)
    assert len(read(root).splits["train"]) == 1


def test_labelme_broken_file_is_named(tmp_path):
    root = labelme(tmp_path / "set", [shape("rectangle", [[1, 1], [5, 5]])])
    (root / "b.json").write_text('{"shapes": [{"points": [[1]]}], "imagePath": "b.png"}')
    [fault] = [f for f in read(root).faults if f.kind == "malformed_labels"]
    assert (fault.severity, fault.file) == ("error", "b.json")
    assert len(read(root).splits["train"]) == 1


def test_labelme_deleted_objects_are_none(tmp_path):
    write_image(tmp_path / "a.png", (40, 30))
    points = "<polygon><pt><x>1</x><y>2</y></pt><pt><x>4</x><y>6</y></pt></polygon>"
    objects = "".join(
        f"<object><name>{n}</name><deleted>{d}</deleted>{points}</object>" for n, d in ("a0", "b1")
    )
    (tmp_path / "a.xml").write_text(
        f"<annotation><filename>a.png</filename>{objects}<imagesize><nrows>30</nrows><ncols>40</ncols></imagesize>"
        "</annotation>"
    )
    assert only(tmp_path) == [("a", [1, 2, 3, 4])]


def cvat(root: Path, shapes: str, name: str = "a.png", subset: str = "") -> Path:
    write_image(root / "images" / subset / name, (40, 30))
    labels = "<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>"
    (root / "annotations.xml").write_text(
        f'<annotations>{labels}<image id="0" name="{name}" subset="{subset}" width="40" height="30">{shapes}</image>'
        "</annotations>"
    )
    return root


def test_cvat_shapes(tmp_path):
    root = cvat(tmp_path, """
        <box label="cat" xtl="10" ytl="5" xbr="20" ybr="9" rotation="90.0"/>
        <box label="cat" xtl="10" ytl="5" xbr="20" ybr="9"/>
        <ellipse label="dog" cx="20" cy="10" rx="5" ry="3"/>
        <mask label="dog" left="3" top="4" width="5" height="6" rle="0, 30"/>
        <polygon label="dog" points="1.5,2;9,2;9,8.5"/><tag label="dog"/>
    """)  # fmt: skip
    assert read(root).classes == {0: "dog", 1: "cat"}  # in the order of the labels
    found = only(root)
    assert [name for name, _ in found] == ["cat", "cat", "dog", "dog", "dog"]
    assert [box for _, box in found] == [
        pytest.approx(b)
        for b in ([13, 2, 4, 10], [10, 5, 10, 4], [15, 7, 10, 6], [3, 4, 5, 6], [1.5, 2, 7.5, 6.5])
    ]
    assert {k: m[:5] for k, m in kinds(root).items()} == {"turned_box": "1 x t", "no_box": "1 x t"}


def test_cvat_broken_number_is_told(tmp_path):
    root = cvat(tmp_path, '<box label="cat" xtl="a" ytl="5" xbr="20" ybr="9"/>')
    assert only(root) == []
    assert "invalid_box" in kinds(root)


@pytest.mark.parametrize("width", ["1e400", "inf", "nan", "x", ""])
def test_a_cvat_image_of_no_finite_size_is_read_by_its_file(width):
    element = ElementTree.fromstring(f'<image width="{width}" height="30"/>')
    assert cvat_reader._size(element) is None


def test_cvat_tracks_without_frames_say_what_to_do(tmp_path):
    (tmp_path / "annotations.xml").write_text(
        '<annotations><track label="x"><box frame="3" outside="0" xtl="1" ytl="1" xbr="2" ybr="2"/></track>'
        "</annotations>"
    )
    with pytest.raises(ValueError, match=r"frames 3 to 3 of a video.*save images"):
        read(tmp_path)


def test_same_name_in_two_folders_needs_the_folder(tmp_path):
    root = cvat(tmp_path, '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5"/>', subset="Train")
    write_image(root / "images/Test/a.png", (40, 30))
    assert read(root).splits["train"].files.tolist() == ["images/Train/a.png"]
    xml = root / "annotations.xml"
    xml.write_text(xml.read_text().replace('subset="Train"', ""))
    [fault] = [f for f in read(root).faults if f.kind == "ambiguous_image"]
    assert "images/Test/a.png, images/Train/a.png" in fault.message


def label_studio(
    root: Path, annotations: list[dict[str, Any]], image: str = "/data/upload/3/0a1b2c3d-a.png"
) -> Path:
    write_image(root / "a.png", (200, 100))
    task = {"id": 5, "data": {"image": image}, "annotations": annotations}
    (root / "export.json").write_text(json.dumps([task]))
    return root


def region(kind: str, id: str = "r", **value: Any) -> dict[str, Any]:
    return {"id": id, "type": kind, "value": value, "original_width": 200, "original_height": 100}


def annotation(id: int, *results: dict[str, Any], at: str = "2024-01-01", **more: Any) -> dict[str, Any]:
    return {"id": id, "result": list(results), "updated_at": at, "was_cancelled": False, **more}


BOX = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}


def test_label_studio_shapes(tmp_path):
    root = label_studio(tmp_path, [annotation(
        1,
        region("rectanglelabels", "a", **BOX),
        region("rectanglelabels", "b", **{**BOX, "x": 60, "rotation": 90}),
        region("polygonlabels", "c", points=[[0, 0], [10, 0], [10, 50]], polygonlabels=["dog"]),
        region("ellipselabels", "d", x=50, y=50, radiusX=10, radiusY=20, ellipselabels=["dog"]),
        region("rectangle", "e", x=1, y=2, width=3, height=4, rotation=0),
        region("labels", "e", x=1, y=2, width=3, height=4, labels=["dog"]),
        region("brushlabels", "f", format="rle", rle=[1, 2], brushlabels=["cat"]),
    )])  # fmt: skip
    assert only(root) == [
        ("cat", pytest.approx([20, 20, 60, 40])),
        ("cat", pytest.approx([80, 20, 40, 60])),  # turned clockwise around its top left corner (120, 20)
        ("dog", pytest.approx([0, 0, 20, 50])),
        ("dog", pytest.approx([80, 30, 40, 40])),
        ("dog", pytest.approx([2, 2, 6, 4])),
    ]
    assert {"brush", "turned_box"} == set(kinds(root))


@pytest.mark.parametrize(("second", "taken"), [
    (annotation(2, at="2025-01-01"), 0),  # later: nothing on the image
    (annotation(2, at="2023-01-01"), 1),
    (annotation(2, at="2025-01-01", ground_truth=False) | {"was_cancelled": True}, 1),
    (annotation(2, at="2023-01-01", ground_truth=True), 0),
])  # fmt: skip
def test_label_studio_takes_one_annotation(tmp_path, second, taken):
    root = label_studio(tmp_path, [annotation(1, region("rectanglelabels", **BOX)), second])
    source = read(root)
    assert (len(source.splits["train"]), source.splits["train"].num_objects) == (1, taken)


def test_label_studio_unannotated_task_is_no_empty_image(tmp_path):
    root = label_studio(tmp_path, [annotation(1, region("rectanglelabels", **BOX))])
    tasks = json.loads((root / "export.json").read_text())
    tasks.append({"id": 6, "data": {"image": "b.png"}, "annotations": []})
    (root / "export.json").write_text(json.dumps(tasks))
    write_image(root / "b.png", (20, 20))
    assert len(read(root).splits["train"]) == 1
    assert "task 6" in kinds(root)["unannotated"]


@pytest.mark.parametrize("image", [
    "/data/local-files/?d=photos/a.png", "s3://bucket/deep/a.png", "https://host/x/a.png?sig=1",
    "/data/upload/9/deadbeef-a.png",
])  # fmt: skip
def test_label_studio_addresses(tmp_path, image):
    root = label_studio(tmp_path, [annotation(1, region("rectanglelabels", **BOX))], image)
    assert read(root).splits["train"].files.tolist() == ["a.png"]


def test_label_studio_short_export(tmp_path):
    write_image(tmp_path / "a.png", (200, 100))
    label = [{**BOX, "original_width": 200, "original_height": 100}]
    task = {"id": 1, "image": "/data/upload/1/a.png", "label": label, "annotator": 1, "annotation_id": 4}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    assert detect(tmp_path) == "label_studio"
    assert only(tmp_path) == [("cat", pytest.approx([20, 20, 60, 40]))]


def test_open_images_crowds_missing_names_and_all_boxable_classes(tmp_path):
    write_image(tmp_path / "train/x1.jpg", (40, 20))
    (tmp_path / "train-annotations-bbox.csv").write_text(
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        "x1,a,/m/b,1,0.25,0.5,0,1,0,0,1,0,0\nx1,a,/m/z,1,0,1,0,0.5,0,0,0,0,0\n"
    )
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/a,Ant\n/m/b,Bee\n")
    source = read(tmp_path)
    assert source.classes == {0: "Ant", 1: "Bee", 2: "/m/z"}
    index = source.splits["train"]
    assert index.boxes_xywh.tolist() == [[10, 0, 10, 20], [0, 0, 40, 10]]
    assert index.crowd.tolist() == [True, False]
    assert list(kinds(tmp_path)) == ["no_class_names"]


def test_createml_counts_from_the_middle(tmp_path):
    write_image(tmp_path / "train/a.png", (40, 30))
    entry = {"image": "a.png", "annotations": [
        {"label": "cat", "coordinates": {"x": 10, "y": 12, "width": 8, "height": 4}}]}  # fmt: skip
    (tmp_path / "train/_annotations.createml.json").write_text(json.dumps([entry]))
    assert only(tmp_path) == [("cat", [6, 10, 8, 4])]


def test_vott_region_of_two_tags_is_two_objects(tmp_path):
    write_image(tmp_path / "a b.png", (40, 30))
    regions = [{"type": "RECTANGLE", "tags": ["cat", "dog"],
                "boundingBox": {"left": 1, "top": 2, "width": 3, "height": 4}}]  # fmt: skip
    asset = {"name": "a%20b.png", "path": "file:C:/x/a%20b.png", "size": {"width": 40, "height": 30}}
    content = {
        "tags": [{"name": "dog"}, {"name": "cat"}],
        "assets": {"k": {"asset": asset, "regions": regions}},
    }
    (tmp_path / "project.vott.json").write_text(json.dumps(content))
    assert read(tmp_path).classes == {0: "dog", 1: "cat"}
    assert only(tmp_path) == [("cat", [1, 2, 3, 4]), ("dog", [1, 2, 3, 4])]


def test_turned_boxes_of_dota(tmp_path):
    write_image(tmp_path / "train/images/a.png", (40, 30))
    (tmp_path / "train/labelTxt").mkdir()
    (tmp_path / "train/labelTxt/a.txt").write_text(
        "imagesource:x\ngsd:1\n5 10 10 5 15 10 10 15 ship 0\n1 2 3\n"
    )
    assert only(tmp_path) == [("ship", [5, 5, 10, 10])]
    assert set(kinds(tmp_path)) == {"turned_box", "invalid_row"}


def test_image_tree_prefers_the_longest_common_end(tmp_path):
    for name in ("a/x.jpg", "b/a/x.jpg", "b/y.JPG"):
        write_image(tmp_path / name.replace("JPG", "jpg"), (8, 8))
    (tmp_path / "b/y.jpg").rename(tmp_path / "b/y.JPG")
    tree = ImageTree(tmp_path)
    assert tree.find("/mnt/b/a/x.jpg") == (tmp_path / "b/a/x.jpg", "")
    assert tree.candidates("x.jpg") == ["a/x.jpg", "b/a/x.jpg"]
    assert tree.candidates("a/x.jpg") == ["a/x.jpg"]  # to the letter, though another ends alike
    assert tree.find("x.jpg") == (None, "")
    assert tree.find("y.jpg") == (tmp_path / "b/y.JPG", "found as b/y.JPG")
    assert tree.find("b\\y") == (tmp_path / "b/y.JPG", "")
    assert tree.find("z.jpg") == (None, "")
