"""Every fixture of the annotation tools: what we read against a few lines that read the raw files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny_sets import write_image

from datamodules.formats.detect import read
from datamodules.index.source import Source


@pytest.fixture
def fixtures(test_data: Path) -> Path:
    return test_data / "format_fixtures"


def classes_of(source: Source, split: str) -> Counter[str]:
    return Counter(source.classes[i] for i in source.splits[split].source_ids.tolist())


def faults(source: Source) -> Counter[str]:
    return Counter(f.kind for f in source.faults if f.severity != "note")


def test_cvat_project(fixtures):
    source = read(fixtures / "cvat_dataset/for_images/export_project")
    images = ElementTree.parse(source.root / "annotations.xml").getroot().findall("image")
    for split, subset in (("train", "Train"), ("val", "Validation"), ("test", "Test")):
        own = [i for i in images if i.get("subset") == subset]
        shapes = Counter(s.get("label") for i in own for s in i if s.tag in ("box", "polygon"))
        assert len(source.splits[split]) == len(own) == 2
        assert classes_of(source, split) == shapes
        assert [f.rsplit("/", 2)[-2] for f in source.splits[split].files.tolist()] == [subset] * 2
    index = source.splits["train"]
    assert index.boxes_xywh.tolist() == [[0, 2, 4, 2], [1, 2, 5, 3]]
    assert {f.message[:12] for f in source.faults} == {"3 x polyline", "3 x points: "}


def test_cvat_task(fixtures):
    source = read(fixtures / "cvat_dataset/for_images/export_task")
    xml = ElementTree.parse(source.root / "train.xml").getroot()
    assert len(source.splits["train"]) == len(xml.findall("image"))
    assert source.splits["train"].num_objects == len(xml.findall("image/box"))
    assert list(source.classes.values()) == [label.findtext("name") for label in xml.iter("label")]
    assert faults(source) == {"no_box": 2, "unlabelled": 1}  # the polygon has an empty label


def test_cvat_video(fixtures):
    source = read(fixtures / "cvat_dataset/for_video")
    xml = ElementTree.parse(source.root / "annotations.xml").getroot()
    seen = [b for b in xml.findall("track/box") if b.get("outside") == "0"]
    assert len(source.splits["train"]) == len(list((source.root / "images").iterdir())) == 3
    assert source.splits["train"].num_objects == len(seen) == 1
    assert source.splits["train"].files[0].endswith(f"frame_0000{seen[0].get('frame')}.png")
    assert source.splits["train"].boxes_xywh.tolist() == [[3, 4, 7, 1]]


def test_labelme_xml(fixtures):
    source = read(fixtures / "labelme_dataset")
    xml = ElementTree.parse(source.root / "Annotations/subset1/img1.xml").getroot()
    assert classes_of(source, "train") == Counter(o.findtext("name") for o in xml.iter("object"))
    assert source.splits["train"].files.tolist() == ["Images/subset1/img1.png"]
    window = source.splits["train"].boxes_xywh[0]
    assert window.tolist() == [43, 34, 2, 3]
    assert not source.faults


def test_open_images(fixtures):
    source = read(fixtures / "open_images_dataset/v6")
    names = {}
    for split, file in (("train", "oidv6-train-annotations-bbox.csv"), ("test", "test-annotations-bbox.csv")):
        rows = list(csv.DictReader((source.root / "annotations" / file).open()))
        index = source.splits[split]
        assert index.num_objects == len(rows) == 1
        assert index.files.tolist() == [f"images/{split}/{rows[0]['ImageID']}.jpg"]
        height, width = index.size(0)
        corners = [float(rows[0][k]) for k in ("XMin", "YMin", "XMax", "YMax")]
        x, y, w, h = index.boxes_xywh[0].tolist()
        assert [x / width, y / height, (x + w) / width, (y + h) / height] == pytest.approx(corners)
        assert index.crowd.tolist() == [rows[0]["IsGroupOf"] == "1"]
        names[rows[0]["LabelName"]] = source.classes[int(index.source_ids[0])]
    assert names == {"/m/0": "Generic label #0", "/m/3": "Generic label #3"}
    assert [f.message[:8] for f in source.faults] == ["2 images"]  # a and d have no row


@pytest.mark.parametrize("kind", ["coco", "createml", "voc", "yolo", "yolo_obb"])
def test_roboflow(fixtures, kind):
    source = read(fixtures / "roboflow_dataset" / kind)
    assert {s: len(i) for s, i in source.splits.items()} == {"train": 2, "val": 1}
    assert {s: classes_of(source, s) for s in source.splits} == {
        "train": {"label_0": 1, "label_1": 1},
        "val": {"label_0": 1, "label_1": 1},
    }
    for split in ("train", "val"):
        folder = source.root / split
        if kind == "coco":
            raw = len(json.loads((folder / "_annotations.coco.json").read_text())["annotations"])
        elif kind == "createml":
            entries = json.loads((folder / "_annotations.createml.json").read_text())
            raw = sum(len(e["annotations"]) for e in entries)
        elif kind == "voc":
            raw = sum(len(ElementTree.parse(f).findall("object")) for f in folder.glob("*.xml"))
        else:
            labels = folder / ("labels" if kind == "yolo" else "labelTxt")
            raw = sum(bool(row.strip()) for f in labels.glob("*.txt") for row in f.read_text().splitlines())
        assert source.splits[split].num_objects == raw


def test_roboflow_boxes_agree(fixtures):
    coco, voc, yolo = (read(fixtures / "roboflow_dataset" / k) for k in ("coco", "voc", "yolo"))
    for split in ("train", "val"):
        for other in (voc, yolo):
            assert other.splits[split].boxes_xywh == pytest.approx(coco.splits[split].boxes_xywh)


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("roboflow_dataset/multiclass", "a classification data set"),
        ("roboflow_dataset/tfrecord", "TFRecord files, which are not read; export the data set as COCO"),
        ("open_images_dataset/v5", "labels of whole images only"),
        ("label_studio/tests/data/test_export_csv/choices", "types ['choices']"),
    ],
)
def test_what_is_no_detection_says_so(fixtures, tmp_path, folder, word):
    root = fixtures / folder
    if folder.endswith("choices"):
        root = tmp_path / "choices"
        root.mkdir()
        text = (fixtures / "label_studio/tests/data/test_export_csv/csv_test_history.json").read_text()
        (root / "export.json").write_text(text)
    with pytest.raises(ValueError) as error:
        read(root)
    assert word in str(error.value)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_voc(fixtures, number):
    source = read(fixtures / f"voc_dataset/voc_dataset{number}")
    lists = source.root / "ImageSets/Main"
    for split, index in source.splits.items():
        name = "trainval" if number == 2 else split
        stems = [s for s in (lists / f"{name}.txt").read_text().splitlines() if s and s[0] != "#"]
        files = [source.root / "Annotations" / f"{stem}.xml" for stem in stems]
        present = [f for f in files if (source.root / "JPEGImages" / f"{f.stem}.jpg").exists() and f.exists()]
        assert len(index) == len(present)
        assert index.num_objects == sum(len(ElementTree.parse(f).findall("object")) for f in present)
    assert faults(source) == {1: {"missing_annotation": 1}, 2: {"missing_image": 5}, 3: {}}[number]


@pytest.mark.parametrize("folder", ["dataset", "dataset_with_meta_file"])
def test_vott_csv(fixtures, folder):
    source = read(fixtures / "vott_csv_dataset" / folder)
    assert source.format == "csv"
    for split, index in source.splits.items():
        rows = list(csv.DictReader((source.root / f"{split}-export.csv").open()))
        assert len(index) == len({r["image"] for r in rows})
        inside = [r for r in rows if float(r["xmin"]) < 5 and float(r["ymin"]) < 5]  # the images are 5x5
        assert classes_of(source, split) == Counter(r["label"] for r in inside)
        assert sum(f.kind == "outside" for f in index.faults) == len(rows) - len(inside)
    assert source.classes == {0: "helmet", 1: "person"}


@pytest.mark.parametrize("folder", ["dataset", "dataset_with_meta_file"])
def test_vott_json(fixtures, folder):
    source = read(fixtures / "vott_json_dataset" / folder)
    project = json.loads((source.root / "train-export.json").read_text())
    assert list(source.classes.values()) == [t["name"] for t in project["tags"]]
    assert len(source.splits["train"]) == len(project["assets"]) == 3
    regions = [r for a in project["assets"].values() for r in a["regions"]]
    # no box lies inside the 5x5 images: each is told, by tag, and the one without a tag too
    assert faults(source)["outside"] == sum(len(r["tags"]) for r in regions)
    assert faults(source)["unlabelled"] == sum(not r["tags"] for r in regions) == 1
    assert source.splits["train"].num_objects == 0


@pytest.mark.parametrize(("folder", "labels"), [
    ("yolo_dataset/annotations", {"train": "Annotations"}),
    ("yolo_dataset/labels", {"train": "labels/train", "val": "labels/val"}),
    ("yolo_dataset/strict", {"train": "obj_train_data"}),
    ("label_studio/tests/data/test_import_yolo_data_unif_dims", {"train": "labels"}),
])  # fmt: skip
def test_yolo(fixtures, folder, labels):
    source = read(fixtures / folder)
    names = next(p for p in (source.root / "obj.names", source.root / "classes.txt") if p.is_file())
    assert list(source.classes.values()) == names.read_text().split()
    assert list(source.splits) == list(labels)
    for split, index in source.splits.items():
        files = sorted((source.root / labels[split]).glob("*.txt"))
        rows = [row.split() for f in files for row in f.read_text().splitlines() if row.strip()]
        assert (len(index), index.num_objects) == (len(files), len(rows))
        sizes = index.sizes[[i for i, f in enumerate(files) for r in f.read_text().splitlines() if r.strip()]]
        middle = index.boxes_xywh[:, :2] + index.boxes_xywh[:, 2:] / 2
        assert (middle / sizes[:, ::-1]).tolist() == [pytest.approx([float(r[1]), float(r[2])]) for r in rows]
    assert not source.faults


@pytest.mark.parametrize("name", ["data.json", "data_obb.json", "data_polygons.json"])
def test_label_studio(fixtures, tmp_path, name):
    text = (fixtures / "label_studio/tests/data/test_export_yolo" / name).read_text()
    (tmp_path / "export.json").write_text(text)
    tasks = json.loads(text)
    expected: Counter[str] = Counter()
    for task in tasks:
        latest = sorted(task["annotations"], key=lambda a: a["updated_at"])[-1]
        first = latest["result"][0]
        stem = task["data"]["image"].strip("/")
        write_image(tmp_path / f"{stem}.jpg", (first["original_width"], first["original_height"]))
        for result in latest["result"]:
            [label] = result["value"].get("rectanglelabels") or result["value"]["polygonlabels"]
            expected[label] += 1
    source = read(tmp_path)
    assert len(source.splits["train"]) == len(tasks)
    assert classes_of(source, "train") == expected
    assert not [f for f in source.faults if f.severity == "error"]
    turned = sum(int(f.message.split()[0]) for f in source.faults if f.kind == "turned_box")
    assert turned == (expected["Butterfly"] + expected["butterfly"] if "obb" in name else 0)


@pytest.mark.parametrize(
    ("name", "image", "size", "objects"),
    [("data.json", "example.png", (128, 128), {"Airplane": 1}),
     ("data_repeater.json", "example1.jpeg", (1280, 720), {"Document Title": 1})],
)  # fmt: skip
def test_label_studio_min_fixtures(fixtures, tmp_path, name, image, size, objects):
    (tmp_path / "export.json").write_text(
        (fixtures / "label_studio/tests/data/test_export_json_min" / name).read_text()
    )
    write_image(tmp_path / image, size)
    source = read(tmp_path)
    assert source.splits["train"].files.tolist() == [image]
    assert classes_of(source, "train") == objects


def test_label_studio_without_the_images_names_each(fixtures):
    source = read(fixtures / "label_studio/tests/data/test_export_yolo")
    assert faults(source)["missing_image"] == 3
    assert {f.file for f in source.faults if f.kind == "missing_image"} == {"/image1", "/image2", "/image3"}


def test_all_fixtures_together_are_ambiguous(fixtures):
    with pytest.raises(ValueError, match=r"may be oriented \(.*\) and open_images .*--format oriented"):
        read(fixtures)


def test_bccd_table(test_data, tmp_path):
    bccd = test_data / "custom/bccd_voc"
    rows = list(csv.DictReader((bccd / "test.csv").open()))
    (tmp_path / "test.csv").write_text((bccd / "test.csv").read_text())
    (tmp_path / "images").symlink_to(bccd / "BCCD/JPEGImages")
    source = read(tmp_path)
    assert source.format == "csv"
    assert len(source.splits["test"]) == len({r["filename"] for r in rows})
    kept = [r for r in rows if r["xmin"] != r["xmax"] and r["ymin"] != r["ymax"]]
    assert classes_of(source, "test") == Counter(r["cell_type"] for r in kept)
    assert read(bccd).format == "voc"  # the same table beside a VOC layout is a leftover
