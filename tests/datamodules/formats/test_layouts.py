"""Data sets as people lay them out, and as public ones lie: read with the right counts, or said what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from layout_writer import XML, coco, holds, images, stems, voc, write

from datamodules.formats.detect import read


def face_masks(root: Path) -> None:
    voc(root, "annotations", "images", [f"maksssksksss{i}" for i in range(4)])


def kangaroo(root: Path) -> None:
    voc(root, "annots", "images", [f"{i:05d}" for i in range(4)], ".jpg")


def raccoon(root: Path) -> None:
    voc(root, "annotations", "images", [f"raccoon-{i}" for i in range(4)], ".jpg")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    rows = [f"raccoon-{i}.jpg,96,72,cat,7,10,36,29\n" for i in range(4)]
    write(root, "data/raccoon_labels.csv", header + "".join(rows))
    write(root, "data/train_labels.csv", header + "".join(rows[:3]))
    write(root, "data/test_labels.csv", header + "".join(rows[3:]))
    write(root, "environment.yml", "name: x\nchannels: !!python/tuple\n- defaults\n")
    write(root, "training/raccoon.config", "model { }")


def capitals(root: Path) -> None:
    voc(root, "ANNOTATIONS", "JPEGImages", stems("p", 4), ".JPG")


def split_folders(root: Path) -> None:
    for split, number in (("train", 3), ("valid", 2), ("test", 1)):
        voc(root, f"{split}/annotations", f"{split}/images", stems(split, number))


def split_below(root: Path) -> None:
    for split, number in (("train", 3), ("val", 2)):
        voc(root, f"Annotations/{split}", f"JPEGImages/{split}", stems(split, number))


def split_between(root: Path) -> None:
    for split, number in (("train", 3), ("val", 2)):
        voc(root, f"{split}_annotations", f"{split}_images", stems(split, number))


def beside_images(root: Path) -> None:
    for split, number in (("train_zip/train", 3), ("test_zip/test", 1)):
        voc(root, split, split, stems(split[:5], number))


def folders_of_classes(root: Path) -> None:
    for kind, number in (("cat", 2), ("dog", 2)):
        voc(root, f"Annotations/{kind}", f"Images/{kind}", stems(kind, number))


def lists_in_a_folder(root: Path) -> None:
    voc(root, "xmls", "imgs", stems("p", 5))
    write(root, "imagesets/train.txt", "p0\np1.png\nimgs/p2.png\n")
    write(root, "imagesets/val.txt", "p3\np4\n")


def a_folder_down(root: Path) -> None:
    voc(root, "BCCD/Annotations", "BCCD/JPEGImages", stems("p", 4))
    write(root, "export.py", "print()")


def all_and_splits(root: Path) -> None:
    for split, number in (("train", 3), ("test", 1)):
        voc(root, split, split, stems(split, number))
        voc(root, "Annotations", "JPEGImages", stems(split, number))


def one_folder_of_xml(root: Path) -> None:
    for split, number in (("train", 3), ("test", 2)):
        voc(root, "annotations", f"images/{split}", stems(split, number))


def images_in_two_folders(root: Path) -> None:
    for folder, number in (("monday", 3), ("tuesday", 2)):
        voc(root, "xml", f"photos/{folder}", stems(folder, number))


@pytest.mark.parametrize(("make", "splits"), [
    (one_folder_of_xml, {"train": 3, "test": 2}), (images_in_two_folders, {"train": 5}),
    (face_masks, {"train": 4}), (kangaroo, {"train": 4}), (raccoon, {"train": 4}), (capitals, {"train": 4}),
    (split_folders, {"train": 3, "val": 2, "test": 1}), (split_below, {"train": 3, "val": 2}),
    (split_between, {"train": 3, "val": 2}), (beside_images, {"train": 3, "test": 1}),
    (folders_of_classes, {"train": 4}), (lists_in_a_folder, {"train": 3, "val": 2}), (a_folder_down, {"train": 4}),
    (all_and_splits, {"train": 3, "test": 1}),
])  # fmt: skip
def test_voc(tmp_path, make, splits):
    holds(tmp_path / "set", make, "voc", splits)


def per_folder(images_in: str, name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for split, number in (("train", 3), ("val", 2)):
            names = [f"{stem}.jpg" for stem in stems(split, number)]
            images(root, [f"{split}/{images_in}{name_}" for name_ in names])
            write(root, f"{split}/{name}", coco(names))

    return make


def below_annotations(root: Path) -> None:
    for split, number in (("train", 3), ("val", 2)):
        names = [f"{stem}.jpg" for stem in stems(split, number)]
        images(root, [f"images/{split}/{name}" for name in names])
        write(root, f"annotations/{split}/instances.json", coco(names))


def flat(root: Path) -> None:
    images(root, [f"images/{n}.jpg" for n in ("a", "b", "c")])
    write(root, "train.json", coco(["a.jpg", "b.jpg"]))
    write(root, "test.json", coco(["c.jpg"]))


def key_points(root: Path) -> None:
    for split, number in (("train", 3), ("val", 2)):
        names = [f"{stem}.jpg" for stem in stems(split, number)]
        images(root, [f"{split}2017/{name}" for name in names])
        write(root, f"annotations/person_keypoints_{split}2017.json", coco(names))


def taco(root: Path) -> None:
    names = [f"batch_{b}/00000{i}.jpg" for b in (1, 2) for i in range(2)]
    images(root, [f"data/{name}" for name in names])
    write(root, "data/annotations.json", coco(names))
    write(root, "README.md", "# TACO")
    write(root, "detector/taco_config/map_10.csv", "Aluminium foil,Other\nBattery,Other\n")


def fiftyone(root: Path) -> None:
    images(root, ["data/a.jpg", "data/b.jpg"])
    write(root, "labels.json", coco(["a.jpg", "b.jpg"]))


def scattered(root: Path) -> None:
    images(root, ["photos/monday/a.jpg", "photos/tuesday/b.jpg", "photos/tuesday/c.jpg"])
    write(root, "annotations/instances_default.json", coco(["a.jpg", "b.jpg", "c.jpg"]))


def parts(root: Path) -> None:
    names = [f"{stem}.jpg" for stem in stems("train", 5)]
    images(root, [f"images/{name}" for name in [*names, "v.jpg"]])
    write(root, "annotations/instances_train_part1.json", coco(names[:3]))
    write(root, "annotations/instances_train_part2.json", coco(names[3:]))
    write(root, "annotations/instances_val.json", coco(["v.jpg"]))


def part_that_repeats(root: Path) -> None:
    names = [f"{stem}.jpg" for stem in stems("train", 5)]
    images(root, [f"images/{name}" for name in names])
    write(root, "annotations/train.json", coco(names))
    write(root, "annotations/train_mini.json", coco(names[1:3], first=2))


@pytest.mark.parametrize(("make", "splits"), [
    (per_folder("images/", "annotations.json"), {"train": 3, "val": 2}),  # cig_butts
    (per_folder("", "annotations.json"), {"train": 3, "val": 2}),  # labelme2coco
    (per_folder("data/", "labels.json"), {"train": 3, "val": 2}),  # FiftyOne
    (per_folder("images/", "labels.json"), {"train": 3, "val": 2}),  # MediaPipe
    (per_folder("", "coco.json"), {"train": 3, "val": 2}),
    (per_folder("imgs/", "annotations/boxes.json"), {"train": 3, "val": 2}),
    (below_annotations, {"train": 3, "val": 2}), (flat, {"train": 2, "test": 1}),
    (key_points, {"train": 3, "val": 2}), (taco, {"train": 4}), (fiftyone, {"train": 2}), (scattered, {"train": 3}),
    (parts, {"train": 5, "val": 1}), (part_that_repeats, {"train": 5}),
])  # fmt: skip
def test_coco(tmp_path, make, splits):
    holds(tmp_path / "set", make, "coco", splits)


def test_joined_files_have_ids_of_their_own_and_are_told(tmp_path):
    parts(tmp_path)
    source = read(tmp_path)
    train = source.splits["train"]
    assert len(set(train.image_ids.tolist())) == len(set(train.columns.annotation_ids.tolist())) == 5
    [note] = [f for f in source.faults if f.kind == "joined_files"]
    assert (
        "instances_train_part1.json (3 images), annotations/instances_train_part2.json (2 images)"
        in note.message
    )
    assert "numbered anew" in note.message


def test_a_file_that_repeats_a_part_of_another_is_told(tmp_path):
    part_that_repeats(tmp_path)
    [note] = [f for f in read(tmp_path).faults if f.kind == "repeated_annotations"]
    assert (note.file, "annotations/train.json" in note.message) == ("annotations/train_mini.json", True)


def test_two_files_of_a_split_that_contradict_each_other_are_refused(tmp_path):
    images(tmp_path, ["images/a.jpg", "images/b.jpg"])
    other = coco(["a.jpg"])
    other["annotations"][0]["bbox"][0] += 5
    write(tmp_path, "annotations/train.json", coco(["a.jpg", "b.jpg"]))
    write(tmp_path, "annotations/train_old.json", other)
    with pytest.raises(
        ValueError, match=r"train_old\.json and annotations/train\.json .* 1 images in common with dif"
    ):
        read(tmp_path)


def test_a_file_of_no_split_beside_those_of_splits_is_told(tmp_path):
    flat(tmp_path)
    write(tmp_path, "extra.json", coco(["c.jpg"]))
    [warning] = [f for f in read(tmp_path).faults if f.kind == "not_read"]
    assert (warning.severity, warning.file) == ("warning", "extra.json")
    assert "train.json" in warning.message


def test_two_coco_files_of_no_split_are_told_as_that(tmp_path):
    images(tmp_path, ["images/a.jpg", "images/b.jpg"])
    for name in ("batch1", "batch2"):
        write(tmp_path, f"annotations/{name}.json", coco([f"{'ab'[name == 'batch2']}.jpg"]))
    with pytest.raises(
        ValueError, match=r"2 COCO files whose split is not known: annotations/batch1\.json"
    ) as error:
        read(tmp_path)
    for old, new in (("batch1", "train_batch1"), ("batch2", "val_batch2")):  # the advice, followed
        assert f"{new}.json" in str(error.value)
        (tmp_path / f"annotations/{old}.json").rename(tmp_path / f"annotations/{new}.json")
    assert {s: len(i) for s, i in read(tmp_path).splits.items()} == {"train": 1, "val": 1}


@pytest.mark.parametrize(("make", "part"), [
    (face_masks, "annotations"), (face_masks, "images"), (kangaroo, "annots"), (key_points, "annotations"),
    (below_annotations, "annotations"), (below_annotations, "images"),
])  # fmt: skip
def test_a_part_of_a_set_names_the_folder_of_both(tmp_path, make, part):
    root = tmp_path / "my set"
    make(root)
    with pytest.raises(
        ValueError, match=f"set/{part} holds the (annotations|images) of a data set only"
    ) as error:
        read(root / part)
    assert str(error.value).endswith(f"give the folder of both, '{root}'")
    read(root)


def test_a_folder_of_xml_of_no_split_beside_splits_is_told(tmp_path):
    beside_images(tmp_path)
    voc(tmp_path, "annotations", "images", ["new"])
    source = read(tmp_path)
    assert {s: len(i) for s, i in source.splits.items()} == {"train": 3, "test": 1}
    [warning] = [f for f in source.faults if f.kind == "not_read"]
    assert (warning.file, warning.message[:8]) == ("annotations", "1 of 1 x")


def test_json_that_is_nearly_coco_is_none(tmp_path):
    face_masks(tmp_path)
    write(tmp_path, "Contents.json", {"images": [{"filename": "a.png"}], "info": {}})
    write(tmp_path, "composer.json", json.dumps({"annotations": [1]}))
    assert read(tmp_path).format == "voc"


def test_an_empty_xml_folder_name_is_no_set(tmp_path):
    write(tmp_path, "notes/a.xml", XML.format(name="a.png"))  # no image anywhere
    with pytest.raises(ValueError, match="has no known layout"):
        read(tmp_path)


def test_several_sets_far_down_are_named(tmp_path):
    for year in ("2007", "2012"):
        voc(tmp_path, f"VOCdevkit/VOC{year}/Annotations", f"VOCdevkit/VOC{year}/JPEGImages", [year])
    with pytest.raises(ValueError, match=r"give one of: \S+VOC2007 \(voc\), \S+VOC2012 \(voc\)$"):
        read(tmp_path)
    assert len(read(tmp_path / "VOCdevkit/VOC2012").splits["train"]) == 1


@pytest.mark.parametrize("place", ["{}", "images/{}", "{}/images", "{}2017"])
def test_an_image_that_is_missing_is_not_taken_from_another_split(tmp_path, place):
    for split, names in (("train", ["0.jpg", "2.jpg"]), ("val", ["0.jpg", "1.jpg", "2.jpg"])):
        images(tmp_path, [f"{place.format(split)}/{name}" for name in names])
        write(tmp_path, f"annotations/instances_{split}.json", coco(["0.jpg", "1.jpg", "2.jpg"]))
    source = read(tmp_path)
    assert source.splits["train"].files.tolist() == [f"{place.format('train')}/{n}.jpg" for n in (0, 2)]
    assert source.splits["val"].files.tolist() == [f"{place.format('val')}/{n}.jpg" for n in (0, 1, 2)]
    assert [(f.kind, f.file[-5:]) for f in source.faults] == [("missing_image", "1.jpg")]


def test_names_that_only_another_split_has_are_missing(tmp_path):
    images(tmp_path, ["images/train/a.jpg", "images/val/b.jpg", "images/val/c.jpg"])
    write(tmp_path, "annotations/train.json", coco(["a.jpg", "b.jpg", "c.jpg"]))
    source = read(tmp_path)
    assert source.splits["train"].files.tolist() == ["images/train/a.jpg"]
    assert [f.kind for f in source.faults] == ["missing_image", "missing_image"]
