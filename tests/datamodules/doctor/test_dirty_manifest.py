"""Every entry of the dirty set: what we say about it, and that we say nothing about what is right."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest

from datamodules.doctor import examine
from datamodules.index import Fault

# manifest file, or file#annotation id -> (severity, kind) that must be told of it; "" = nothing may be told
SAID: dict[str, tuple[str, str]] = {
    "coco/train/ok_plain.jpg": ("", ""),
    "coco/train/exif6_boxes_displayed.jpg": ("note", "exif_rotation"),
    "coco/train/exif8_boxes_raw.jpg": ("warning", "rotation_ignored"),
    "coco/train/exif3_180.jpg": ("warning", "rotation_unclear"),
    "coco/train/gray.jpg": ("note", "grayscale"),
    "coco/train/cmyk.jpg": ("note", "colour_space"),
    "coco/train/rgba.png": ("note", "transparent"),
    "coco/train/palette.png": ("note", "palette"),
    "coco/train/gray16.png": ("note", "high_bit_depth"),
    "coco/train/png_named.jpg": ("note", "wrong_suffix"),
    "coco/train/webp.webp": ("note", "uncommon_format"),
    "coco/train/animated.gif": ("warning", "animated"),
    "coco/train/truncated.jpg": ("error", "corrupt_image"),
    "coco/train/corrupt_scan.jpg": ("warning", "damaged_image"),
    "coco/train/html404.jpg": ("error", "unreadable_image"),
    "coco/train/zero_bytes.jpg": ("error", "unreadable_image"),
    "coco/train/does_not_exist.jpg": ("error", "missing_image"),
    "coco/train/case_mismatch.jpg": ("warning", "file_name"),
    "coco/train/ünï cödé 图 1.jpg": ("", ""),
    "coco/train/sub/dir/nested.jpg": ("", ""),
    "coco/train/sub\\dir\\win.jpg": ("warning", "file_name"),
    "coco/train//home/alice/data/train/abs_path.jpg": ("warning", "file_name"),
    "coco/train/swapped_wh.jpg": ("warning", "swapped_size"),
    "coco/train/wrong_size.jpg": ("error", "wrong_size"),
    "coco/train/one_pixel.png": ("warning", "tiny_image"),
    "coco/train/extreme_aspect.jpg": ("warning", "extreme_aspect"),
    "coco/train/bomb.png": ("error", "unreadable_image"),
    "coco/train/negative_no_ann.jpg": ("", ""),
    "coco/train/dup_a.jpg": ("error", "conflicting_duplicate"),
    "coco/train/dup_b.jpg": ("error", "conflicting_duplicate"),
    "coco/val/leak_of_dup_a.jpg": ("warning", "leak"),
    "coco/train/ann_geometry.jpg#108": ("warning", "partly_outside"),
    "coco/train/ann_geometry.jpg#109": ("warning", "partly_outside"),
    "coco/train/ann_geometry.jpg#110": ("warning", "outside"),
    "coco/train/ann_geometry.jpg#111": ("warning", "zero_area"),
    "coco/train/ann_geometry.jpg#112": ("warning", "zero_area"),
    "coco/train/ann_geometry.jpg#113": ("error", "invalid_box"),
    "coco/train/ann_geometry.jpg#114": ("warning", "subpixel_box"),
    "coco/train/ann_geometry.jpg#115": ("", ""),
    "coco/train/ann_geometry.jpg#116": ("warning", "partly_outside"),
    "coco/train/ann_geometry.jpg#117": ("error", "xyxy_box"),
    "coco/train/ann_geometry.jpg#118": ("error", "normalised_box"),
    "coco/train/ann_types.jpg#119": ("error", "invalid_box"),
    "coco/train/ann_types.jpg#120": ("error", "invalid_box"),
    "coco/train/ann_types.jpg#121": ("error", "invalid_box"),
    "coco/train/ann_types.jpg#122": ("error", "invalid_box"),
    "coco/train/ann_types.jpg#123": ("error", "invalid_box"),
    "coco/train/ann_types.jpg#124": ("error", "invalid_box"),
    "coco/train/ann_types.jpg#125": ("error", "unknown_category"),
    "coco/train/ann_types.jpg#126": ("error", "unknown_category"),
    "coco/train/ann_types.jpg#127": ("error", "unknown_category"),
    "coco/train/ann_types.jpg#128": ("", ""),
    "coco/train/ann_types.jpg#129": ("warning", "crowd_without_mask"),
    "coco/train/ann_types.jpg#130": ("error", "invalid_box"),
    "coco/train/ann_segm.jpg#131": ("warning", "invalid_segmentation"),
    "coco/train/ann_segm.jpg#132": ("warning", "invalid_segmentation"),
    "coco/train/ann_segm.jpg#133": ("warning", "invalid_segmentation"),
    "coco/train/ann_segm.jpg#134": ("warning", "segmentation_outside_box"),
    "coco/train/ann_segm.jpg#135": ("warning", "invalid_segmentation"),
    "coco/train/ann_segm.jpg#136": ("warning", "segmentation_size"),
    "coco/train/ann_dups.jpg#140": ("warning", "duplicate_object"),
    "coco/train/ann_dups.jpg#141": ("warning", "conflicting_object"),
    "coco/train/ann_dup_id.jpg#142": ("warning", "duplicate_annotation_id"),
    "coco/train/crowd.jpg": ("", ""),
    "coco/train/many.jpg": ("warning", "more_objects_than_queries"),
    "coco/val/val_only_class.jpg": ("warning", "class_only_in_val"),
    "coco/val/val_ok.jpg": ("", ""),
    "coco/train/dup_image_id.jpg": ("error", "duplicate_image_id"),
    "annotation 877": ("error", "unknown_image"),
    "coco/annotations/*.json": ("error", "duplicate_category"),
    "coco/train/.DS_Store": ("note", "stray_file"),
    "coco/train/Thumbs.db": ("note", "stray_file"),
    "coco/train/._ok_plain.jpg": ("note", "stray_file"),
    "coco/train/notes.txt": ("note", "stray_file"),
    "coco/train/not_in_json.jpg": ("warning", "unlisted_image"),
    "yolo/images/train/ok.jpg": ("", ""),
    "yolo/images/train/out_of_range.jpg": ("warning", "partly_outside"),
    "yolo/images/train/pixels.jpg": ("error", "not_normalised"),
    "yolo/images/train/bad_class.jpg": ("error", "unknown_category"),
    "yolo/images/train/six_cols.jpg": ("error", "invalid_row"),
    "yolo/images/train/segment.jpg": ("warning", "polygon"),
    "yolo/images/train/empty.jpg": ("", ""),
    "yolo/images/train/no_label.jpg": ("warning", "no_label_file"),
    "yolo/images/train/crlf_bom.jpg": ("note", "byte_order_mark"),
    "yolo/images/train/dup_rows.jpg": ("warning", "duplicate_object"),
    "yolo/images/train/commas.jpg": ("warning", "comma_separated"),
    "yolo/images/train/zero_wh.jpg": ("warning", "zero_area"),
    "yolo/images/train/float_class.jpg": ("note", "float_class"),
    "yolo/labels/train/orphan.txt": ("warning", "orphan_label"),
    "yolo/labels/train/classes.txt": ("note", "stray_file"),
    "yolo/data.yaml": ("error", "class_list"),
    "voc/ok.xml": ("", ""),
    "voc/zero_size.xml": ("note", "no_size"),
    "voc/wrong_filename.xml": ("note", "other_file_name"),
    "voc/swapped.xml": ("warning", "swapped_corners"),
    "voc/difficult.xml": ("", ""),
    "voc/floats.xml": ("note", "float_corners"),
    "voc/class_typo.xml": ("warning", "similar_classes"),
    "voc/no_object.xml": ("", ""),
    "voc/one_based.xml": ("", ""),
    "voc/malformed.xml": ("error", "malformed_xml"),
}
# entries that a fault names in its message only: the first of a pair, the example of a class
MENTIONED = ("coco/train/dup_a.jpg", "coco/val/val_only_class.jpg")
# what else must be told: an entry that holds several faults
ALSO = (
    ("coco", "warning", "similar_classes", "annotations/instances_train.json", 91),
    ("coco", "warning", "similar_classes", "annotations/instances_train.json", 92),
    ("coco", "note", "transparent", "train/palette.png", 8),
    ("coco", "warning", "class_only_in_val", ".", 90),
    ("yolo", "warning", "outside", "labels/train/out_of_range.txt", 2),
    ("yolo", "note", "split_path", "data.yaml", "train"),
    ("yolo", "warning", "missing_split", "data.yaml", "val"),
)
# faults of the whole folder, which follow from the small and contrived sets
OF_THE_FOLDER = {
    "unused_class", "rare_class", "class_not_evaluated", "id_holes", "below_stride", "empty_images", "mixed_sizes",
    "class_only_in_val", "input_scale",
}  # fmt: skip


@pytest.fixture(scope="module")
def said(test_data) -> dict[str, list[Fault]]:
    return {name: examine(test_data / "dirty" / name, workers=0).faults for name in ("coco", "yolo", "voc")}


@pytest.fixture(scope="module")
def manifest(test_data) -> list[dict]:
    return json.loads((test_data / "dirty" / "MANIFEST.json").read_text())


def keys(entry: dict) -> list[str]:
    """One for an entry, or one for each annotation id that the manifest describes apart."""
    if entry["file"] is None:
        return [f"annotation {entry['ann_ids'][0]}"]
    return [f"{entry['file']}#{i}" for i in entry.get("annotations", ())] or [entry["file"]]


def about(key: str, faults: list[Fault]) -> list[Fault]:
    """The faults of one entry: by annotation id, else by file, its label file, or a mention in the message."""
    if key.startswith("annotation "):
        return [f for f in faults if f.id == int(key.split()[1])]
    path, _, annotation = key.partition("#")
    name = path.partition("/")[2]
    if annotation:
        return [f for f in faults if f.file == name and f.id == int(annotation)]
    if "*" in name:
        return [f for f in faults if PurePosixPath(f.file).match(name)]
    shown = name.removeprefix("train/") if name.startswith("train//") else name
    images = name.startswith("images/")
    same = {shown.lstrip("/"), shown, shown.removeprefix("/")}
    if images:
        same.add(name.replace("images/", "labels/").replace(".jpg", ".txt"))
    if name.endswith(".xml"):
        same.add(name.replace(".xml", ".jpg"))
    if key in MENTIONED:
        return [f for f in faults if f.file in same or f"({name})" in f.message or f" {name}," in f.message]
    return [f for f in faults if f.file in same or f.file.lstrip("/") in same]


def test_every_entry_has_its_word(manifest):
    assert len(manifest) == 74
    assert sorted({k for entry in manifest for k in keys(entry)}) == sorted(SAID)


@pytest.mark.parametrize("key", [k for k, (severity, _) in SAID.items() if severity])
def test_fault_is_named(key, said):
    found = about(key, said["coco" if key.startswith("annotation") else key.partition("/")[0]])
    assert SAID[key] in {(f.severity, f.kind) for f in found}, [str(f) for f in found]


@pytest.mark.parametrize("key", [k for k, (severity, _) in SAID.items() if not severity])
def test_nothing_is_said_of_what_is_right(key, said):
    assert [str(f) for f in about(key, said[key.partition("/")[0]])] == []


def test_manifest_entries_that_are_ok_are_those_without_a_word(manifest):
    right = {k for entry in manifest if entry["kind"] == "ok" for k in keys(entry)}
    legal = {"coco/train/ann_geometry.jpg#115", "coco/train/ann_types.jpg#128"}  # within faulty images
    assert {k for k, (severity, _) in SAID.items() if not severity} == right | legal


@pytest.mark.parametrize("expected", ALSO)
def test_further_faults_are_named(expected, said):
    folder, *rest = expected
    assert tuple(rest) in {(f.severity, f.kind, f.file, f.id) for f in said[folder]}


def test_no_other_file_is_blamed(said):
    """Every fault belongs to an entry of the manifest, to `ALSO`, or to the folder as a whole."""
    for folder, faults in said.items():
        mine = [k for k in SAID if k.startswith((f"{folder}/", "annotation"))]
        # an image's own key, where the manifest tells of its annotations apart
        mine += sorted({k.partition("#")[0] for k in mine if "#" in k})
        accounted = {id(f) for k in mine for f in about(k, faults)}
        accounted |= {id(f) for f in faults if (folder, f.severity, f.kind, f.file, f.id) in ALSO}
        left = [str(f) for f in faults if id(f) not in accounted and f.kind not in OF_THE_FOLDER]
        assert left == []
