"""Which format a folder has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from datamodules.formats import (
    coco,
    coco_panoptic,
    createml,
    csv_table,
    cvat,
    label_studio,
    labelme,
    objects365,
    open_images,
    oriented,
    panoptic_file,
    roboflow,
    shards,
    sniff,
    voc,
    vott,
    yolo,
    yolo_layout,
)
from datamodules.formats.keeping import keep_tree
from datamodules.formats.source import Source
from datamodules.images import SUFFIXES
from datamodules.index import Fault
from datamodules.scratch import Scratch
from datamodules.shards import is_address, local_path

Format = Literal[
    "auto", "coco", "coco_panoptic", "objects365", "roboflow_coco", "yolo", "oriented", "voc", "csv", "labelme", "cvat",
    "label_studio", "open_images", "vott_json", "createml", "shards",
]  # fmt: skip
FORMATS: tuple[str, ...] = get_args(Format)[1:]

_READERS: dict[str, Callable[..., Source]] = {
    "coco": coco.read,
    "coco_panoptic": coco_panoptic.read,
    "objects365": objects365.read,
    "roboflow_coco": roboflow.read,
    "yolo": yolo.read,
    "oriented": oriented.read,
    "voc": voc.read,
    "csv": csv_table.read,
    "labelme": labelme.read,
    "cvat": cvat.read,
    "label_studio": label_studio.read,
    "open_images": open_images.read,
    "vott_json": vott.read,
    "createml": createml.read,
    "shards": shards.read,
}
_STREAMED = frozenset({"coco", "objects365", "roboflow_coco"})  # of formats with files of any size
_UNDERSTOOD = """\
Layouts that are understood:
  COCO json              annotations/instances_{train,val}.json, train/*.jpg, val/*.jpg
  COCO panoptic          annotations/panoptic_{train,val}.json, a folder of PNG files beside each, images
  Objects365 v2          train/zhiyuan_objv2_train.json, train/patch0/*.jpg, val/...
  Roboflow COCO export   train/_annotations.coco.json, train/*.jpg, valid/..., test/...
  YOLO                   data.yaml, images/train/*.jpg, labels/train/*.txt (or train/images, train/labels);
                         darknet's obj.data, obj.names, train.txt
  Pascal VOC             Annotations/*.xml, JPEGImages/*.jpg, ImageSets/Main/train.txt; or xml beside images
  CSV                    rows filename,width,height,class,xmin,ymin,xmax,ymax or path,x1,y1,x2,y2,class
  LabelMe, CVAT, Label Studio, VoTT, CreateML, DOTA (labelTxt/), Open Images: their exports with the images
  Shards                 manifest.json, 00000.tar, ... as `zoo data shard` writes them; also at an address"""
_SHOWN = 12
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


class Evidence(NamedTuple):
    """Why a folder may have a format.

    Attributes:
        format: the format.
        what: the files that tell.
        layout: whether these are laid out as the format demands. Loose files beside such a layout are
            taken for leftovers.
    """

    format: str
    what: str
    layout: bool


def evidence(root: Path) -> list[Evidence]:
    """Every format that the folder may have, by the content of its files."""
    found: list[Evidence] = []

    def add(format: str, files: list[Path], layout: bool) -> None:
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            found.append(Evidence(format, f"{files[0].relative_to(root).as_posix()}{more}", layout))

    objects = objects365.annotation_files(root)
    exports = roboflow.annotation_files(root)
    others = [*objects.values(), *exports.values()]  # COCO json too, with a layout of their own
    add("objects365", list(objects.values()), True)
    add("roboflow_coco", list(exports.values()), True)
    boxes = [f for f in coco.annotation_files(root).values() if f not in others]
    panoptic = list(panoptic_file.annotation_files(root).values())
    add("coco", boxes, True)
    add("coco_panoptic", [] if boxes else panoptic, True)  # COCO's own folder has both
    base = voc.find_base(root)
    add("voc", [next((base / "Annotations").glob("*.xml"))] if base else [], True)
    file = yolo_layout.data_file(root)
    turned = oriented.annotation_files(root)
    add("yolo", [file] if file and not turned else [], True)
    add("oriented", turned, True)
    add("open_images", list(open_images.annotation_files(root).values()), True)
    add("cvat", cvat.annotation_files(root), False)
    add("labelme", labelme.annotation_files(root), False)
    add("label_studio", label_studio.annotation_files(root), False)
    add("vott_json", vott.annotation_files(root), False)
    add("createml", createml.annotation_files(root), False)
    add("csv", list(csv_table.annotation_files(root)), False)
    if not base:
        add("voc", [next(iter(sorted(f.glob("*.xml")))) for f in voc.flat_folders(root).values()], False)
    if not any(e.layout for e in found):
        labels = yolo_layout.loose_labels(root)
        add("yolo", [labels] if labels else [], False)
    return found


def detect(root: Path) -> str:
    """One of `FORMATS`.

    Raises:
        ValueError: if it may be several, naming them and the files that say so; if it is none of them,
            saying what was found and what is understood.
    """
    return _detected(root)[0]


def _detected(root: Path) -> tuple[str, list[Evidence]]:
    """The format, and what else the folder has that is not read."""
    if not root.is_dir():
        if root.is_file() and root.name.lower().endswith(_ARCHIVES):
            raise ValueError(f"{root} is an archive; unpack it first and give the folder")
        raise ValueError(f"{root} is not a folder; give the folder of the data set")
    if shards.is_sharded(root):
        return "shards", []
    shards.refuse_missing_manifest(root)
    with sniff.one_walk():
        found = evidence(root)
    chosen = [e for e in found if e.layout] or found
    if [e.format for e in chosen] == ["voc"] and voc.find_base(root) not in (None, root):
        _refuse_several(root)  # VOC is found a folder down
    if len(chosen) > 1:
        told = " and ".join(f"{e.format} ({e.what})" for e in chosen)
        raise ValueError(
            f"{root} may be {told}; name the one to read, e.g. --format {chosen[0].format}, or "
            f"--data.format {chosen[0].format} where a recipe is run"
        )
    if chosen:
        return chosen[0].format, [other for other in found if other is not chosen[0]]
    _refuse_several(root, most=0)
    raise ValueError(
        f"{root} has no known layout. {_reason(root)}At its top: {_listing(root)}.\n{_UNDERSTOOD}"
    )


def read(root: Path | str, format: Format = "auto", *, verify_sizes: bool = True) -> Source:
    """Reads the folder in the given or detected format. An address (s3://..., https://...) is of shards.

    Raises:
        ValueError: if the folder has no known layout, an annotation file cannot be parsed at all, or there is
            no such format.
    """
    if isinstance(root, str):
        if is_address(root):
            if format not in ("auto", "shards"):
                raise ValueError(f"{root}: only shards are read from an address, not the format {format!r}")
            return shards.read(root)
        root = local_path(root)
    if format != "auto" and format not in _READERS:
        raise ValueError(f"format {format!r} is unknown; choose auto, {', '.join(_READERS)}")
    if format != "auto":
        return _read(root, format, verify_sizes)
    found, others = _detected(root)
    source = _read(root, found, verify_sizes)
    notes = (_left_over(found, other) for other in others)
    return replace(source, notes=(*source.notes, *notes)) if others else source


def _read(root: Path, format: str, verify_sizes: bool) -> Source:
    reader = _READERS[format]

    def build(scratch: Scratch) -> Source:
        if format in _STREAMED:
            return reader(root, verify_sizes=verify_sizes, scratch=scratch)
        return reader(root, verify_sizes=verify_sizes)

    return build(Scratch()) if format == "shards" else keep_tree((format, root, verify_sizes), root, build)


def _left_over(format: str, other: Evidence) -> Fault:
    message = (
        f"the folder is read as {format}; this is {other.format} and is not read; --format {other.format} reads "
        "it instead"
    )
    return Fault("note", "other_format", other.what, None, message)


def _refuse_several(root: Path, most: int = 1) -> None:
    """Raises ValueError if more than so many folders of `root` are data sets, naming them."""
    inside = _sets_inside(root)
    if len(inside) > most:
        named = ", ".join(f"{folder} ({format})" for folder, format in inside)
        raise ValueError(f"{root} is no data set itself but has some; give one of: {named}")


def _sets_inside(root: Path) -> list[tuple[Path, str]]:
    """Folders of `root` that are a data set, and the format of each."""
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))[:_SHOWN]:
        if shards.is_sharded(folder):
            found.append((folder, "shards"))
            continue
        with sniff.one_walk():
            told = evidence(folder)
        found += [(folder, e.format) for e in [*(e for e in told if e.layout), *told][:1]]
    return found


def _reason(root: Path) -> str:
    """What the folder seems to be, of kinds that are no object detection or cannot be read."""
    if open_images.image_level_only(root):
        return (
            "It is Open Images without a table of boxes, so with labels of whole images only; add "
            "*-annotations-bbox.csv. "
        )
    if sniff.files(root, ".tfrecord"):
        return "It has TFRecord files, which are not read; export the data set as COCO json instead. "
    if any(f.name == "_classes.csv" for f in sniff.files(root, ".csv")):
        return (
            "_classes.csv gives classes of whole images: a classification data set, without boxes; annotate "
            "boxes, or export an object detection project. "
        )
    told = "; ".join(f"{f.relative_to(root).as_posix()}: {why}" for f, why in csv_table.lacking(root).items())
    if told:
        return f"It has a table of boxes that cannot be read: {told}. "
    if any(p.is_dir() and p.name.lower() in _MASK_FOLDERS for p in root.iterdir()):
        return "It has masks and no boxes: a segmentation data set; export it as COCO json. "
    if next((p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES), None):
        return "It has images and no annotation file that is known. "
    return ""


_MASK_FOLDERS = frozenset({"masks", "segmentationclass", "segmentationobject", "labels_png", "gtfine"})


def _listing(root: Path) -> str:
    entries = sorted(
        p.name + ("/" if p.is_dir() else "") for p in root.iterdir() if not p.name.startswith(".")
    )
    if not entries:
        return "nothing"
    shown = ", ".join(entries[:_SHOWN])
    return shown + (f", ... ({len(entries)} entries)" if len(entries) > _SHOWN else "")
