"""What a folder of no known layout seems to be: data without boxes, or a format that is not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamodules.formats import csv_table, imagefolder, open_images
from datamodules.images.files import SUFFIXES
from datamodules.reading import kinds as sniff

_MASK_FOLDERS = frozenset({
    "masks", "mask", "segmentationclass", "segmentationobject", "labels_png", "gtfine", "gtcoarse", "annotations_png",
})  # fmt: skip
_LOOKED_AT = 40  # json files that are looked into
# keys of a json that is not read -> what it is, and the way out
_JSON: tuple[tuple[tuple[str, ...], str], ...] = (
    (("imgHeight", "imgWidth", "objects", "polygon"),
     "Cityscapes json of polygons, which is not read; convert it to COCO json, each polygon with the box around it"),
    (("sample_token", "translation"),
     "nuScenes, whose boxes are in space; export its boxes in the images as COCO json (its devkit has "
     "export_2d_annotations_as_json.py)"),
    (("data_row", "projects"), "an export of Labelbox, which is not read; convert it to COCO json"),
    (("Labeled Data", "Label"), "an export of Labelbox, which is not read; convert it to COCO json"),
    (("dm_format_version",), "Datumaro json, which is not read; `datum convert -if datumaro -f coco` writes COCO"),
    (("samples", "_cls"), "a FiftyOne data set, which is not read; export it with `fo.types.COCODetectionDataset`"),
    (("bounding_box", "annotations", "item"), "Darwin json of V7, which is not read; export it as COCO json"),
    (("className", "instances"), "an export of SuperAnnotate, which is not read; convert it to COCO json"),
    (("classTitle", "objects"), "an export of Supervisely, which is read where each json lies in ann/ beside img/"),
    (("images", "annotations", "caption"), "captions of COCO, without boxes; add instances_*.json"),
)  # fmt: skip


def reason(root: Path) -> str:
    """One sentence about what the folder seems to be and what to do; empty if it is not recognised."""
    return next((said for look in _LOOKS if (said := look(root))), "")


def _open_images(root: Path) -> str:
    if not open_images.image_level_only(root):
        return ""
    return (
        "It is Open Images without a table of boxes, so with labels of whole images only; add "
        "*-annotations-bbox.csv. "
    )


def _records(root: Path) -> str:
    files = [f for suffix in (".tfrecord", ".tfrecords", ".record") for f in sniff.files(root, suffix)]
    if not files and (files := [f for f in sorted(root.glob("**/*.tfrecord-*"))[:1] if f.is_file()]):
        pass  # sharded ones are called train.tfrecord-00000-of-00010
    if any(f.name.startswith("segment-") for f in files):
        return (
            "It is Waymo's TFRecord files, which are not read; write the images and camera boxes out with its "
            "toolkit, as COCO json. "
        )
    return (
        "It has TFRecord files, which are not read; export the data set as COCO json instead. "
        if files
        else ""
    )


def _tables(root: Path) -> str:
    if any(f.name == "_classes.csv" for f in sniff.files(root, ".csv")):
        return (
            "_classes.csv gives classes of whole images: a classification data set, without boxes; annotate boxes, or "
            "export an object detection project. "
        )
    tables = "; ".join(
        f"{f.relative_to(root).as_posix()}: {why}" for f, why in csv_table.lacking(root).items()
    )
    return f"It has a table of boxes that cannot be read: {tables}. " if tables else ""


def _hub(root: Path) -> str:
    if files := [*sniff.files(root, ".parquet"), *sniff.files(root, ".arrow")]:
        return (
            f"It has {_named(root, files)}: a data set of the Hugging Face hub with its images inside, which is not "
            "read; load it with `datasets`, save the images, and write train/metadata.jsonl with file_name and objects "
            "(bbox, categories). "
        )
    if found := imagefolder.without_boxes(root):
        return f"It is an imagefolder without boxes: {found}; add objects with bbox and categories to each line. "
    return ""


def _json(root: Path) -> str:
    for file in sniff.files(root, ".json")[:_LOOKED_AT]:
        text = sniff.ends(file)
        for keys, what in _JSON:
            if all(f'"{key}"'.encode() in text for key in keys):
                return f"{file.relative_to(root).as_posix()} is {what}. "
    return ""


def _tracking(root: Path) -> str:
    for file in sniff.files(root, ".txt"):
        rows = [line.split() for line in sniff.first_lines(file, 3)]
        if rows and all(len(row) == 17 and row[0].isdigit() and row[2][:1].isalpha() for row in rows):
            return (
                f"{file.relative_to(root).as_posix()} is of KITTI's tracking benchmark, which is not read; write a "
                "label file a frame, without the first two columns, into training/label_2. "
            )
    return ""


def _binaries(root: Path) -> str:
    kinds = (
        (".mat", "MATLAB files"), (".pkl", "pickles"), (".pickle", "pickles"), (".npy", "NumPy arrays"),
        (".npz", "NumPy arrays"), (".h5", "HDF5 files"), (".hdf5", "HDF5 files"), (".lmdb", "an LMDB"),
    )  # fmt: skip
    for suffix, what in kinds:
        if files := sniff.files(root, suffix):
            return (
                f"It has {_named(root, files)}: {what}, which are not read, for they may hold anything; write the "
                "boxes as a csv with the columns filename, xmin, ymin, xmax, ymax, class. "
            )
    return ""


def _masks(root: Path) -> str:
    if not sniff.folders(root, _MASK_FOLDERS):
        return ""
    return "It has masks and no boxes: a segmentation data set; export it as COCO json. "


def _images(root: Path) -> str:
    if any(p.suffix.lower() in SUFFIXES for p in root.rglob("*")):
        return "It has images and no annotation file that can be read. "
    return ""


def _named(root: Path, files: list[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return files[0].relative_to(root).as_posix() + more


_LOOKS: tuple[Callable[[Path], str], ...] = (
    _open_images, _records, _tables, _hub, _json, _tracking, _binaries, _masks, _images,
)  # fmt: skip
