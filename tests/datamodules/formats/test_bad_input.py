from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_sets import coco_content, module, write_coco, write_image, write_voc, write_yolo

from datamodules.doctor import check
from datamodules.formats.detect import read
from datamodules.images.decoding import decode_file
from zoo.contract.pixels import to_rgb


def changed(where: str, row: int, **values: Any) -> dict[str, Any]:
    content = coco_content()
    content[where][row].update(values)
    return content


def added(where: str, **values: Any) -> dict[str, Any]:
    content = coco_content()
    content[where].append(values)
    return content


NAN = float("nan")
# content of the training json; then severity, kind, file, id and a word of the one fault; then what is left
CASES: dict[str, tuple[dict[str, Any], tuple[str, str, str, Any, str], tuple[int, int]]] = {
    "missing image": (
        changed("images", 0, file_name="gone.jpg"),
        ("error", "missing_image", "train/gone.jpg", 10, "put the file there"),
        (2, 1),
    ),
    "unknown category": (
        changed("annotations", 0, category_id=9),
        ("error", "unknown_category", "train/0.jpg", 1, "3 'cat', 5 'dog'"),
        (3, 2),
    ),
    "unknown image": (
        changed("annotations", 0, image_id=99),
        ("error", "unknown_image", "annotations/instances_train.json", 1, "image id 99"),
        (3, 2),
    ),
    "nan": (
        changed("annotations", 0, bbox=[NAN, 1, 2, 3]),
        ("error", "invalid_box", "train/0.jpg", 1, "nan"),
        (3, 2),
    ),
    "text": (
        changed("annotations", 0, bbox=["1", 1, 2, 3]),
        ("error", "invalid_box", "train/0.jpg", 1, "'1'"),
        (3, 2),
    ),
    "three numbers": (
        changed("annotations", 0, bbox=[1, 2, 3]),
        ("error", "invalid_box", "train/0.jpg", 1, "four"),
        (3, 2),
    ),
    "negative": (
        changed("annotations", 0, bbox=[9, 9, -3, 3]),
        ("error", "invalid_box", "train/0.jpg", 1, "-3"),
        (3, 2),
    ),
    "zero area": (
        changed("annotations", 0, bbox=[1, 2, 0, 3]),
        ("warning", "zero_area", "train/0.jpg", 1, "no area"),
        (3, 2),
    ),
    "outside": (
        changed("annotations", 0, bbox=[40, 2, 4, 3]),
        ("warning", "outside", "train/0.jpg", 1, "40x30"),
        (3, 2),
    ),
    "partly outside": (
        changed("annotations", 0, bbox=[30, 2, 14, 3]),
        ("warning", "partly_outside", "train/0.jpg", 1, "4.0"),
        (3, 3),
    ),
    "duplicate image id": (
        added("images", id=10, file_name="2.jpg", width=40, height=40),
        ("error", "duplicate_image_id", "train/2.jpg", 10, "train/0.jpg"),
        (3, 3),
    ),
    "duplicate annotation id": (
        changed("annotations", 1, id=1),
        ("warning", "duplicate_annotation_id", "train/0.jpg", 1, "more than once"),
        (3, 3),
    ),
    "duplicate category": (
        added("categories", id=3, name="lion"),
        ("error", "duplicate_category", "annotations/instances_train.json", 3, "'cat' and 'lion'"),
        (3, 3),
    ),
    "wrong size": (
        changed("images", 0, width=80, height=60),
        ("error", "wrong_size", "train/0.jpg", 10, "80x60"),
        (2, 1),
    ),
    "swapped size": (
        changed("images", 0, width=30, height=40),
        ("warning", "swapped_size", "train/0.jpg", 10, "30x40"),
        (3, 3),
    ),
    "case of the name": (
        changed("images", 0, file_name="0.JPG"),
        ("warning", "file_name", "train/0.JPG", 10, "found as 0.jpg"),
        (3, 3),
    ),
    "foreign path": (
        changed("images", 0, file_name="C:\\x\\0.jpg"),
        ("warning", "file_name", "train/C:\\x\\0.jpg", 10, "found as 0.jpg"),
        (3, 3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_coco_annotation_is_one_fault(case, tmp_path):
    content, (severity, kind, file, id, word), left = CASES[case]
    source = read(write_coco(tmp_path / "set", content))
    [fault] = source.faults
    assert (fault.severity, fault.kind, fault.file, fault.id) == (severity, kind, file, id)
    assert word in fault.message
    assert (len(source.splits["train"]), source.splits["train"].num_objects) == left


def test_class_lists_of_splits_must_agree(tmp_path):
    faults = read(write_coco(tmp_path / "set", changed("categories", 0, name="wolf"))).faults
    assert [(f.severity, f.kind, f.id) for f in faults] == [("error", "class_list", 5)]
    assert "'dog' here and 'wolf'" in faults[0].message


def test_names_that_differ_by_case_are_a_warning(tmp_path):
    faults = read(write_coco(tmp_path / "set", added("categories", id=8, name="Cat "))).faults
    assert ("similar_classes", 8) in [(f.kind, f.id) for f in faults]


def test_setup_refuses_errors_unless_told_to_skip(tmp_path):
    content = coco_content()
    for image in content["images"]:
        image["file_name"] = f"gone_{image['id']}.jpg"
    content["images"].append({"id": 20, "file_name": "0.jpg", "width": 40, "height": 30})
    root = write_coco(tmp_path / "set", content)
    with pytest.raises(ValueError, match=r"3 errors(.|\n)*gone_10.jpg(.|\n)*--data.skip_broken true"):
        module(root).setup("fit")
    data = module(root, skip_broken=True, batch_size=1)
    data.setup("fit")
    assert [b.image_ids for b in data.train_dataloader()] == [(20,)]


def test_images_that_cannot_be_decoded_are_left_out_of_every_split_where_told_to(tmp_path):
    content = coco_content()
    root = write_coco(tmp_path / "set", content)
    for split in ("train", "val"):
        broken = sorted((root / split).iterdir())[0]
        broken.write_bytes(broken.read_bytes()[:-60])
    plain, lenient = module(root), module(root, skip_broken=True, batch_size=1)
    lenient.setup("fit")
    before, after = plain.read().splits, lenient.read().splits
    for split in ("train", "val"):
        assert len(after[split]) == len(before[split]) - 1
    assert {(f.severity, f.kind) for f in lenient.read().faults} >= {("warning", "corrupt_image")}
    seen = [i for batch in lenient.train_dataloader() for i in batch.image_ids]
    seen += [i for batch in lenient.val_dataloader() for i in batch.image_ids]
    assert sorted(seen) == sorted(int(i) for index in after.values() for i in index.image_ids)


def test_warnings_do_not_stop_setup_and_are_told_once(tmp_path, caplog):
    data = module(write_coco(tmp_path / "set", CASES["zero area"][0]))
    for stage in ("fit", "validate"):
        data.setup(stage)
    assert [r.getMessage() for r in caplog.records if r.name == "datamodules.base"] == [
        "faults in the data: 1 x zero_area; `zoo data check` lists them"
    ]


def test_setup_shows_five_errors_of_many(tmp_path):
    content = coco_content()
    content["annotations"] = [
        {"id": i, "image_id": 10, "category_id": 77, "bbox": [1, 1, 2, 2]} for i in range(9)
    ]
    with pytest.raises(ValueError, match=r"9 errors(.|\n)*and 4 more"):
        module(write_coco(tmp_path / "set", content)).setup("fit")


def break_file(root, data: bytes | None) -> None:
    file = root / "train" / "1.jpg"
    file.write_bytes(file.read_bytes()[:-300] if data is None else data)


@pytest.mark.parametrize(
    ("data", "kind"),
    [(None, "corrupt_image"), (b"", "unreadable_image"), (b"<html>404</html>", "unreadable_image")],
    ids=["cut", "empty", "html"],
)
def test_damaged_image_is_found_by_the_check(data, kind, tmp_path):
    root = write_coco(tmp_path / "set")
    break_file(root, data)
    [fault] = check(root).errors
    assert (fault.kind, fault.file, fault.id) == (kind, "train/1.jpg", 11)
    assert len(check(root, decode_images=False).errors) == (kind == "unreadable_image")


def test_damaged_image_in_training_names_file_and_id(tmp_path):
    root = write_coco(tmp_path / "set")
    break_file(root, None)
    data = module(root, batch_size=3)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"train/1.jpg \(image id 11\) cannot be decoded"):
        next(iter(data.train_dataloader()))


def test_image_of_another_size_names_both(tmp_path):
    write_image(tmp_path / "a.jpg", (40, 30))
    with pytest.raises(ValueError, match=r"a.jpg \(image id 5\) is 40x30 but its annotations are for 50x30"):
        decode_file(tmp_path / "a.jpg", 5, (30, 50))


YOLO_ROWS: dict[str, tuple[str, str, str]] = {
    "class": ("7 .5 .5 .2 .2", "error", "unknown_category"),
    "pixels": ("0 20 15 5 5", "error", "not_normalised"),
    "score": ("0 .5 .5 .2 .2 .9", "error", "invalid_row"),
    "commas": ("0,.5,.5,.2,.2", "warning", "comma_separated"),
    "commas and spaces": ("0, .5, .5, .2, .2", "warning", "comma_separated"),
    "decimal commas": ("0 0,5 0,5 0,2 0,2", "warning", "comma_separated"),
    "nan": ("0 nan .5 .2 .2", "error", "invalid_row"),
    "fraction of a class": ("0.5 .5 .5 .2 .2", "error", "invalid_row"),
    "polygon": ("0 .1 .1 .5 .1 .5 .5", "warning", "polygon"),
    "zero": ("0 .5 .5 0 .2", "warning", "zero_area"),
    "outside": ("0 1.3 .5 .2 .2", "warning", "outside"),
    "twice": ("0 .5 .5 .2 .2\n0 .5 .5 .2 .2", "warning", "duplicate_object"),
}


@pytest.mark.parametrize("case", YOLO_ROWS)
def test_bad_yolo_row(case, tmp_path):
    text, severity, kind = YOLO_ROWS[case]
    root = write_yolo(tmp_path / "set")
    (root / "labels/train/2.txt").write_text(text)
    [fault] = read(root).faults
    assert (fault.severity, fault.kind) == (severity, kind)
    assert "2." in fault.file
    assert fault.id is not None


def test_yolo_byte_order_mark_windows_lines_and_float_class(tmp_path):
    root = write_yolo(tmp_path / "set")
    (root / "labels/train/2.txt").write_bytes("\ufeff0.0 .5 .5 .25 .25\r\n1 .5 .5 .5 .5\r\n".encode())
    source = read(root)
    assert [(f.severity, f.kind, f.id) for f in source.faults] == [
        ("note", "byte_order_mark", None),
        ("note", "float_class", 1),
    ]
    assert source.splits["train"].objects(2).boxes_xywh.tolist() == [[15, 15, 10, 10], [10, 10, 20, 20]]


@pytest.mark.parametrize("text", ["0,.5,.5,.25,.25", "0 0,5 0,5 0,25 0,25", "0\t5e-1\t.5\t.25\t.25\n\n"])
def test_yolo_row_with_other_separators_is_read_as_meant(text, tmp_path):
    root = write_yolo(tmp_path / "set")
    (root / "labels/train/2.txt").write_text(text)
    assert read(root).splits["train"].objects(2).boxes_xywh.tolist() == [[15, 15, 10, 10]]


def test_yolo_files_without_partner(tmp_path):
    root = write_yolo(tmp_path / "set")
    (root / "labels/train/2.txt").rename(root / "labels/train/9.txt")
    assert [(f.kind, f.file) for f in read(root).faults] == [
        ("no_label_file", "images/train/2.jpg"),
        ("orphan_label", "labels/train/9.txt"),
    ]


def test_yolo_path_of_another_machine_is_not_the_folder_of_all_images(tmp_path):
    root = write_yolo(tmp_path / "set", splits=("train",))
    with (root / "data.yaml").open("a") as file:
        file.write("\nval: /content/set/valid/images\n")
    source = read(root)
    assert list(source.splits) == ["train"]
    assert [(f.severity, f.kind, f.id) for f in source.faults] == [("warning", "missing_split", "val")]


def test_yolo_number_of_classes(tmp_path):
    root = write_yolo(tmp_path / "set")
    file = root / "data.yaml"
    file.write_text(file.read_text().replace("nc: 2", "nc: 3"))
    [fault] = read(root).faults
    assert (fault.severity, fault.kind) == ("error", "class_list")
    assert "nc is 3 but there are 2 names" in fault.message


VOC_CHANGES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "cut": (lambda t: t[:60], "error", "malformed_xml"),
    "swapped": (lambda t: t.replace("<xmax>15<", "<xmax>2<"), "warning", "swapped_corners"),
    "entities": (lambda t: f'<!DOCTYPE a [<!ENTITY b "c">]>{t}', "error", "unsafe_xml"),
    "another kind": (lambda t: t.replace("annotation>", "svg>"), "error", "foreign_xml"),
    "two boxes": (
        lambda t: t.replace("</bndbox>", "</bndbox><bndbox><xmin>9</xmin></bndbox>", 1),
        "error",
        "several_boxes",
    ),
    "no number": (lambda t: t.replace("<xmax>15<", "<xmax><"), "error", "invalid_box"),
    "a click": (
        lambda t: t.replace("<xmax>15<", "<xmax>6<").replace("<ymax>15<", "<ymax>6<"),
        "warning",
        "zero_area",
    ),
    "case of a class": (lambda t: t.replace("cat", "Dog "), "warning", "similar_classes"),
}


@pytest.mark.parametrize("case", VOC_CHANGES)
def test_bad_voc_file(case, tmp_path):
    change, severity, kind = VOC_CHANGES[case]
    root = write_voc(tmp_path / "set")
    file = root / "Annotations/0.xml"
    file.write_text(change(file.read_text()))
    [fault] = read(root).faults
    assert (fault.severity, fault.kind) == (severity, kind)


def test_voc_without_size_and_with_a_foreign_file_name(tmp_path):
    root = write_voc(tmp_path / "set")
    file = root / "Annotations/0.xml"
    file.write_text(file.read_text().replace("<width>40<", "<width>0<").replace("0.jpg", "IMG_77.jpg"))
    source = read(root)
    assert [(f.severity, f.kind) for f in source.faults] == [("note", "no_size"), ("note", "other_file_name")]
    assert source.splits["train"].size(0) == (30, 40)


def test_voc_corners_are_put_in_order(tmp_path):
    root = write_voc(tmp_path / "set")
    file = root / "Annotations/0.xml"
    straight = read(root).splits["train"].objects(0).boxes_xywh.tolist()
    text = file.read_text()
    file.write_text(text.replace("xmin>", "@").replace("xmax>", "xmin>").replace("@", "xmax>"))
    assert "<xmin>15<" in file.read_text()
    assert read(root).splits["train"].objects(0).boxes_xywh.tolist() == straight


def test_voc_list_without_annotation(tmp_path):
    root = write_voc(tmp_path / "set")
    (root / "ImageSets/Main/train.txt").write_text("0\n8\n")
    assert [(f.severity, f.kind, f.id) for f in read(root).faults] == [
        ("error", "missing_annotation", "8"),
        ("warning", "unlisted", "1"),
    ]


def test_unparsable_json_names_the_file(tmp_path):
    root = write_coco(tmp_path / "set")
    (root / "annotations/instances_train.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_train\.json is no COCO annotation file"):
        read(root)


def test_boxes_in_the_frame_before_the_rotation_are_a_warning(tmp_path):
    root = write_coco(tmp_path / "set")
    with Image.open(root / "train/0.jpg") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(root / "train/0.jpg", exif=exif)
    assert [(f.severity, f.kind, f.id) for f in read(root).faults] == [("warning", "rotation_ignored", 10)]


def rotated_photo(path, orientation: int) -> Image.Image:
    image = Image.fromarray(np.arange(20 * 10 * 3, dtype=np.uint8).reshape(10, 20, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return image


def test_rotation_follows_the_size_of_the_annotations(tmp_path):
    raw = np.asarray(rotated_photo(tmp_path / "a.png", 6))
    turned = np.rot90(raw, -1)
    assert np.array_equal(np.asarray(decode_file(tmp_path / "a.png", 0, (20, 10))), turned)
    assert np.array_equal(np.asarray(decode_file(tmp_path / "a.png", 0, (10, 20))), raw)
    rotated_photo(tmp_path / "b.png", 3)
    assert np.array_equal(np.asarray(decode_file(tmp_path / "b.png", 0, (10, 20))), raw[::-1, ::-1])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    grey = np.linspace(0, 255, 64).reshape(8, 8)
    if mode in ("I;16", "I"):
        image = Image.fromarray((grey * 256).astype(np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    else:
        image = (
            Image.fromarray(grey.astype(np.uint8))
            .convert("RGB")
            .convert(mode, palette=Image.Palette.ADAPTIVE)
        )
    assert image.mode == mode
    pixels = np.asarray(to_rgb(image)).astype(float)
    assert pixels.shape == (8, 8, 3)
    if mode != "1":
        assert np.abs(pixels.mean(axis=-1) - grey).max() < 4


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("names: [no, yes]", {0: "no", 1: "yes"}),
        ("names:\n  0: 0042\n  1: 0117", {0: "0042", 1: "0117"}),
        ("names: [12:30, 1_000]", {0: "12:30", 1: "1_000"}),
        ("names: [null, ~]", {0: "null", 1: "~"}),
        ("names: [a, b]\nnc: '2'", {0: "a", 1: "b"}),
    ],
)
def test_names_of_data_yaml_are_text(tmp_path, names, classes):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5\n1 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text(f"train: images\n{names}\n")
    source = read(tmp_path)
    assert source.classes == classes
    assert [fault for fault in source.faults if fault.severity == "error"] == []
