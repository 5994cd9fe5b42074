"""SageMaker, Hugging Face, Supervisely, OIDv4, CrowdHuman and BDD100K: exports with a line or a json an image."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_sets import write_image

from datamodules.formats.detect import detect, read
from datamodules.index.source import Source


def write(file: Path, content: Any) -> None:
    """Text as it is, a list as a json a line, anything else as json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(map(json.dumps, content)) if isinstance(content, list) else json.dumps(content)
    file.write_text(content if isinstance(content, str) else lines)


def images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_image(root / name, (40, 30), number)
    return root


def objects(source: Source, split: str = "train", crowd: bool = False) -> list[tuple[str, list[float]]]:
    index = source.splits[split]
    rows = zip(index.source_ids.tolist(), index.boxes_xywh.tolist(), index.crowd.tolist(), strict=True)
    return [(source.classes[i], box) for i, box, own in rows if own == crowd]


def told(source: Source) -> dict[str, str]:
    return {f.kind: f.severity for f in source.faults}


def line(name: str, *boxes: tuple[int, int, int, int, int], **changes: Any) -> dict[str, Any]:
    keys = ("class_id", "left", "top", "width", "height")
    annotations = [dict(zip(keys, box, strict=True)) for box in boxes]
    size = [{"width": 40, "height": 30, "depth": 3}]
    metadata = {
        "class-map": {"3": "cat", "7": "dog"},
        "type": "groundtruth/object-detection",
        "job-name": "x",
    }
    return {
        "source-ref": f"s3://bucket/some/{name}",
        "job": {"image_size": size, "annotations": annotations},
        "job-metadata": metadata,
    } | changes


def test_sagemaker(tmp_path):
    images(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    lines = [line("a.jpg", (7, 1, 2, 10, 20), (3, 5, 5, 9, 8)), line("b.jpg"),
             {"source-ref": "s3://bucket/c.jpg", "job-metadata": {"failure-reason": "x"}}]  # fmt: skip
    write(tmp_path / "output.manifest", lines)
    source = read(tmp_path)
    assert (source.format, source.classes) == ("sagemaker", {3: "cat", 7: "dog"})
    assert objects(source) == [("dog", [1, 2, 10, 20]), ("cat", [5, 5, 9, 8])]
    assert len(source.splits["train"]) == 2
    assert told(source) == {"unannotated": "warning", "unlisted_image": "warning"}


def test_sagemaker_splits_and_a_job_of_another_kind(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "train.manifest", [line("a.jpg", (3, 1, 2, 10, 20))])
    write(tmp_path / "validation.manifest", [line("b.jpg", (3, 1, 2, 10, 20))])
    assert {s: i.num_objects for s, i in read(tmp_path).splits.items()} == {"train": 1, "val": 1}
    (tmp_path / "validation.manifest").unlink()
    metadata = {"type": "groundtruth/image-classification"}
    write(tmp_path / "train.manifest", [{"source-ref": "s3://b/a.jpg", "job": 0, "job-metadata": metadata}])
    with pytest.raises(ValueError, match=r"job groundtruth/image-classification and has no boxes"):
        read(tmp_path)


@pytest.mark.parametrize("objects_of", [
    {"bbox": [[1, 2, 10, 20], [5, 5, 9, 8]], "categories": ["cat", "dog"]},
    {"bbox": [[1, 2, 10, 20], [5, 5, 9, 8]], "category": ["cat", "dog"], "area": [200, 72], "id": [1, 2]},
    [{"bbox": [1, 2, 10, 20], "label": "cat"}, {"bbox": [5, 5, 9, 8], "label": "dog"}],
])  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_imagefolder(tmp_path, objects_of, kind):
    for split in ("train", "validation"):
        images(tmp_path / split, "a.jpg", "b.jpg")
        empty: Any = [] if isinstance(objects_of, list) else {key: [] for key in objects_of}
        rows = [{"file_name": "a.jpg", "objects": objects_of}, {"file_name": "b.jpg", "objects": empty}]
        cells = "".join(
            '{},"{}"\n'.format(r["file_name"], json.dumps(r["objects"]).replace('"', '""')) for r in rows
        )
        write(
            tmp_path / split / f"metadata.{kind}", rows if kind == "jsonl" else f"file_name,objects\n{cells}"
        )
    source = read(tmp_path)
    assert (source.format, source.classes, source.faults) == ("imagefolder", {0: "cat", 1: "dog"}, [])
    for split in ("train", "val"):
        assert objects(source, split) == [("cat", [1, 2, 10, 20]), ("dog", [5, 5, 9, 8])]
        assert len(source.splits[split]) == 2


def test_imagefolder_with_classes_by_number(tmp_path):
    images(tmp_path, "train/a.jpg", "test/b.jpg")
    boxes = {"bbox": [[1, 2, 10, 20], [5, 5, 9, 8]], "categories": [10, 2]}
    write(
        tmp_path / "metadata.jsonl",
        [{"file_name": name, "objects": boxes} for name in ("train/a.jpg", "test/b.jpg")],
    )
    source = read(tmp_path)
    assert source.classes == {0: "2", 1: "10"}
    assert objects(source, "test") == [("10", [1, 2, 10, 20]), ("2", [5, 5, 9, 8])]
    assert told(source) == {"no_class_names": "note"}
    names = "".join(f"            '{i}': name {i}\n" for i in range(11))
    write(
        tmp_path / "README.md",
        f"---\ndataset_info:\n  features:\n    class_label:\n          names:\n{names}---\n1: no\n",
    )
    source = read(tmp_path)
    assert (len(source.classes), source.classes[10], told(source)) == (11, "name 10", {})
    assert objects(source, "train")[0] == ("name 10", [1, 2, 10, 20])


def test_imagefolder_of_captions_is_named(tmp_path):
    images(tmp_path, "train/a.jpg")
    write(tmp_path / "train/metadata.jsonl", [{"file_name": "a.jpg", "text": "a cat"}])
    with pytest.raises(ValueError, match=r"without boxes: train/metadata.jsonl has the keys file_name, text"):
        read(tmp_path)


def test_supervisely(tmp_path):
    mask = np.zeros((6, 7), bool)
    mask[1:5, 2:6] = True
    png = tmp_path / "mask.png"
    Image.fromarray(mask).save(png)
    data = base64.b64encode(zlib.compress(png.read_bytes())).decode()
    png.unlink()
    drawn = [
        {"classTitle": "dog", "geometryType": "rectangle", "points": {"exterior": [[15, 22], [5, 2]], "interior": []}},
        {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": [[1, 1], [9, 1], [9, 8]]}},
        {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [20, 10]}},
        {"classTitle": "tip", "geometryType": "point", "points": {"exterior": [[3, 3]], "interior": []}},
    ]  # fmt: skip
    for split in ("train", "val"):
        images(tmp_path / split / "img", "a.jpg", "b.jpg")
        size = {"height": 30, "width": 40}
        write(tmp_path / split / "ann/a.jpg.json", {"size": size, "tags": [], "objects": drawn})
        write(tmp_path / split / "ann/b.jpg.json", {"size": size, "tags": [], "objects": []})
    shapes = {"dog": "any", "cat": "polygon", "tip": "point"}
    classes = [{"title": title, "shape": shape} for title, shape in shapes.items()]
    write(tmp_path / "meta.json", {"classes": classes, "tags": []})
    source = read(tmp_path)
    assert (source.format, source.classes) == ("supervisely", {0: "dog", 1: "cat"})
    for split in ("train", "val"):
        assert objects(source, split) == [
            ("dog", [5, 2, 10, 20]),
            ("cat", [1, 1, 8, 7]),
            ("cat", [20, 10, 7, 6]),
        ]
        assert len(source.splits[split]) == 2
    assert told(source) == {"no_box": "warning"}


def test_oidv4_toolkit(tmp_path):
    for split in ("train", "validation"):
        images(tmp_path / "OID/Dataset" / split, "Human face/a.jpg", "Human face/b.jpg", "Apple/b.jpg")
        base = tmp_path / "OID/Dataset" / split
        write(base / "Human face/Label/a.txt", "Human face 1.5 2 11.5 22\nHuman face 5 5 9 8\n")
        write(base / "Human face/Label/b.txt", "Human face 1 1 3 3\n")
        write(base / "Apple/Label/b.txt", "Apple 2 2 9 9\n")
    source = read(tmp_path / "OID")
    assert (source.format, source.classes) == ("oidv4", {0: "Apple", 1: "Human face"})
    assert objects(source, "val") == [
        ("Apple", [2, 2, 7, 7]), ("Human face", [1.5, 2, 10, 20]), ("Human face", [5, 5, 4, 3]),
        ("Human face", [1, 1, 2, 2]),
    ]  # fmt: skip
    assert told(source) == {"copy_for_each_class": "warning"}


def test_crowdhuman(tmp_path):
    for split, name in (("train", "273271,1a"), ("val", "273271,2b")):
        images(tmp_path / "Images", f"{name}.jpg")
        boxes = [
            {
                "tag": "person",
                "fbox": [1, 2, 10, 20],
                "vbox": [1, 2, 5, 5],
                "hbox": [1, 2, 3, 3],
                "extra": {"occ": 0},
            },
            {"tag": "person", "fbox": [5, 5, 9, 8], "vbox": [5, 5, 1, 1], "extra": {"ignore": 1}},
            {"tag": "mask", "fbox": [20, 5, 9, 8], "vbox": [20, 5, 9, 8]},
        ]
        write(tmp_path / f"annotation_{split}.odgt", [{"ID": name, "gtboxes": boxes}])
    source = read(tmp_path)
    assert (source.format, source.classes) == ("crowdhuman", {0: "person"})
    for split in ("train", "val"):
        assert objects(source, split) == [("person", [1, 2, 10, 20])]
        assert objects(source, split, crowd=True) == [("person", [5, 5, 9, 8]), ("person", [20, 5, 9, 8])]
    assert told(source) == {"whole_body": "note"}


def test_bdd100k(tmp_path):
    car = {
        "category": "car",
        "attributes": {"occluded": False},
        "box2d": {"x1": 5, "y1": 6, "x2": 14, "y2": 25},
    }
    lane = {"category": "lane", "poly2d": [{"vertices": [[1, 2], [3, 4]]}]}
    crowd = {
        "category": "bus",
        "attributes": {"crowd": True},
        "box2d": {"x1": 0.5, "y1": 1, "x2": 9.5, "y2": 9},
    }
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        images(tmp_path / f"images/100k/{split}", name)
        content = json.dumps([{"name": name, "labels": [car, lane, crowd]}])
        write(tmp_path / f"labels/det_20/det_{split}.json", content)
    source = read(tmp_path)
    assert (source.format, source.classes) == ("bdd100k", {0: "bus", 1: "car"})
    assert objects(source, "val") == [("car", [5, 6, 10, 20])]
    assert objects(source, "val", crowd=True) == [("bus", [0.5, 1, 10, 9])]
    assert source.faults == []


def test_bdd100k_with_a_json_an_image(tmp_path):
    images(tmp_path / "images/train", "a.jpg")
    car = {"category": "car", "id": 1, "box2d": {"x1": 5, "y1": 6, "x2": 14, "y2": 25}}
    write(tmp_path / "labels/train/a.json", {"name": "a", "frames": [{"timestamp": 10000, "objects": [car]}]})
    assert objects(read(tmp_path)) == [("car", [5, 6, 10, 20])]


@pytest.mark.parametrize(("name", "text"), [
    ("output.manifest", '{"source-ref": "s3://b/a.jpg", "job": {"annotations": [{"class_id": [], "left": 1}]}}\n['),
    ("metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2]], "categories": []}}\nx\n'),
    ("train.odgt", '{"ID": "a", "gtboxes": [3]}\n{"gtboxes": []}\n"x"\n'),
    ("metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": 1e999, "categories": "x"}}\n' + "[" * 100_000),
])  # fmt: skip
def test_broken_lines_are_told(tmp_path, name, text):
    images(tmp_path, "a.jpg")
    write(tmp_path / name, text)
    source = read(tmp_path, detect(tmp_path))
    assert "malformed_labels" in told(source)


CITY = {
    "imgHeight": 1024,
    "imgWidth": 2048,
    "objects": [{"label": "car", "polygon": [[1, 2], [3, 4], [5, 6]]}],
}


@pytest.mark.parametrize(("name", "content", "words"), [
    ("train/x.tfrecord", "", "It has TFRecord files, which are not read; export"),
    ("train.tfrecord-00000-of-00010", "", "It has TFRecord files"),
    ("segment-1.tfrecord", "", "It is Waymo's TFRecord files, which are not read; write the images"),
    ("gtFine/train/aachen/a_gtFine_polygons.json", CITY, "is Cityscapes json of polygons, which is not read; convert"),
    ("v1.0-mini/sample_annotation.json", json.dumps([{"sample_token": "x", "translation": [1, 2, 3]}]),
     "is nuScenes, whose boxes are in space; export"),
    ("data/train-00000-of-00001.parquet", "PAR1", "Hugging Face hub with its images inside, which is not read; load"),
    ("dataset.arrow", "x", "Hugging Face hub"),
    ("digitStruct.mat", "x", "digitStruct.mat: MATLAB files, which are not read"),
    ("boxes.pkl", "x", "boxes.pkl: pickles, which are not read"),
    ("label_02/0000.txt", "0 1 Car 0 0 -1.79 296 161 452 292 2.0 1.8 4.4 -4.5 1.8 13.4 -2.1\n", "KITTI's tracking"),
    ("SegmentationClass/a.png", "", "It has masks and no boxes"),
    ("export.ndjson.json", json.dumps({"data_row": {"id": 1}, "projects": {}}), "an export of Labelbox"),
    ("samples.json", {"samples": [{"_cls": "Sample"}]}, "a FiftyOne data set"),
])  # fmt: skip
def test_what_is_not_read_is_named_in_the_first_line(tmp_path, name, content, words):
    images(tmp_path, "images/a.jpg")
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match="has no known layout") as error:
        read(tmp_path)
    assert words in str(error.value).splitlines()[0]
