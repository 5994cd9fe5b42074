"""Which format a folder has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from datamodules.formats import coco, objects365, roboflow, voc, yolo
from datamodules.formats.source import Source

Format = Literal["auto", "coco", "objects365", "roboflow_coco", "yolo", "voc"]

_READERS: dict[str, Callable[..., Source]] = {
    "coco": coco.read,
    "objects365": objects365.read,
    "roboflow_coco": roboflow.read,
    "yolo": yolo.read,
    "voc": voc.read,
}
_UNDERSTOOD = """\
Layouts that are understood:
  COCO json              annotations/instances_{train,val}.json, train/*.jpg, val/*.jpg
  Objects365 v2          train/zhiyuan_objv2_train.json, train/patch0/*.jpg, val/...
  Roboflow COCO export   train/_annotations.coco.json, train/*.jpg, valid/..., test/...
  YOLO                   data.yaml, images/train/*.jpg, labels/train/*.txt (or train/images, train/labels)
  Pascal VOC             Annotations/*.xml, JPEGImages/*.jpg, ImageSets/Main/train.txt"""
_SHOWN = 12


def detect(root: Path) -> str:
    """`coco`, `objects365`, `roboflow_coco`, `yolo` or `voc`.

    Raises:
        ValueError: saying what was found and what is understood, if it is none of them.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder of the data set")
    if objects365.annotation_files(root):
        return "objects365"
    if roboflow.annotation_files(root):
        return "roboflow_coco"
    if voc.find_base(root):
        return "voc"
    if coco.annotation_files(root):
        return "coco"
    if yolo.data_file(root) or yolo.image_folders(root, {})[0]:
        return "yolo"
    if voc.flat_folders(root):
        return "voc"
    raise ValueError(f"{root} has no known layout. At its top: {_listing(root)}.\n{_UNDERSTOOD}")


def read(root: Path, format: Format = "auto", *, verify_sizes: bool = True) -> Source:
    """Reads the folder in the given or detected format.

    Raises:
        ValueError: if the folder has no known layout or an annotation file cannot be parsed at all.
    """
    return _READERS[detect(root) if format == "auto" else format](root, verify_sizes=verify_sizes)


def _listing(root: Path) -> str:
    entries = sorted(
        p.name + ("/" if p.is_dir() else "") for p in root.iterdir() if not p.name.startswith(".")
    )
    if not entries:
        return "nothing"
    shown = ", ".join(entries[:_SHOWN])
    return shown + (f", ... ({len(entries)} entries)" if len(entries) > _SHOWN else "")
