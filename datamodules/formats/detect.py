"""Which format a folder has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from datamodules.formats import (
    bdd100k,
    box_list,
    coco,
    coco_panoptic,
    createml,
    crowdhuman,
    csv_table,
    cvat,
    imagefolder,
    kitti,
    label_studio,
    labelme,
    mot,
    objects365,
    oidv4,
    open_images,
    oriented,
    roboflow,
    sagemaker,
    shards,
    supervisely,
    unread,
    via,
    visdrone,
    voc,
    voc_layout,
    vott,
    wider_face,
    yolo,
)
from datamodules.index import Fault
from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source
from datamodules.kept.large import keep_tree
from datamodules.reading import kinds as sniff
from datamodules.reading.places import beside, is_at
from datamodules.reading.reader import Evidence, Reader
from datamodules.shards.reader import is_address, local_path

Format = Literal[
    "auto", "coco", "coco_panoptic", "objects365", "roboflow_coco", "yolo", "oriented", "voc", "csv", "labelme", "cvat",
    "label_studio", "via", "open_images", "vott_json", "createml", "supervisely", "imagefolder", "sagemaker",
    "box_list", "oidv4", "bdd100k", "crowdhuman", "kitti", "visdrone", "wider_face", "mot", "shards",
]  # fmt: skip
FORMATS: tuple[str, ...] = get_args(Format)[1:]
OWN_IDS = frozenset(
    {"coco", "coco_panoptic", "objects365", "roboflow_coco", "shards"}
)  # files give ids of objects

# in the order they are asked: a format may leave files to those before it
READERS: tuple[Reader, ...] = (
    shards.FORMAT, objects365.FORMAT, roboflow.FORMAT, coco.FORMAT, coco_panoptic.FORMAT, voc.FORMAT, oriented.FORMAT,
    supervisely.FORMAT, open_images.FORMAT, cvat.FORMAT, labelme.FORMAT, label_studio.FORMAT, vott.FORMAT,
    createml.FORMAT, via.FORMAT, imagefolder.FORMAT, sagemaker.FORMAT, bdd100k.FORMAT, crowdhuman.FORMAT,
    csv_table.FORMAT, box_list.FORMAT, oidv4.FORMAT, kitti.FORMAT, visdrone.FORMAT, wider_face.FORMAT, mot.FORMAT,
    yolo.FORMAT,
)  # fmt: skip
_READERS: dict[str, Reader] = {reader.name: reader for reader in READERS}
_SHOWN = 12
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def evidence(root: Path) -> list[Evidence]:
    """Every format that the folder may have, judged by the content of its files."""
    found: list[Evidence] = []
    for reader in READERS:
        files, layout = reader.look(root, found)
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            what = f"{files[0].relative_to(root).as_posix()}{more}"
            found.append(Evidence(reader.name, tuple(files), layout, what))
        if found and reader is shards.FORMAT:
            break  # everything in a folder of shards belongs to them
    return found


def detect(root: Path) -> str:
    """One of `FORMATS`.

    Raises:
        ValueError: if it may be several, naming them and the files that show it; if it is none of them,
            naming what was found and the layouts that are understood.
    """
    return _detected(root)[0]


def is_without_annotations(root: Path) -> bool:
    """Whether a folder is no data set that is read, holds none, and is no part of one that is damaged."""
    shards.refuse_missing_manifest(root)
    with sniff.one_walk():
        return not evidence(root) and not _sets_inside(root)


def _detected(root: Path) -> tuple[str, list[Evidence]]:
    """The format, and what else the folder has that is not read."""
    if not root.is_dir():
        if root.is_file() and root.name.lower().endswith(_ARCHIVES):
            raise ValueError(f"{root} is an archive; unpack it first and give the folder")
        raise ValueError(f"{root} is not a folder; give the folder of the data set")
    shards.refuse_missing_manifest(root)
    with sniff.one_walk():
        found = evidence(root)
    chosen = [e for e in found if e.layout] or found
    # these two are also found in a subfolder, and other subfolders may be data sets too
    below = [e for e in chosen if e.format in ("voc", "coco") and not is_at(root, e.files)]
    if below and below == chosen:
        _refuse_several(root)
    elif below and any(e.layout for e in chosen if e not in below):
        chosen = [e for e in chosen if e not in below]
    if len(chosen) > 1:
        candidates = " and ".join(f"{e.format} ({e.what})" for e in chosen)
        raise ValueError(
            f"{root} may be {candidates}; name the one to read, e.g. --format {chosen[0].format}, or "
            f"--data.format {chosen[0].format} where a recipe is run"
        )
    if chosen:
        return chosen[0].format, [other for other in found if other is not chosen[0]]
    _refuse_several(root, most=0)
    if part := beside(root):
        raise ValueError(part)
    if len(deep := voc_layout.bases(root)) > 1:
        named = ", ".join(f"{folder} (voc)" for folder in deep[:_SHOWN])
        raise ValueError(f"{root} is no data set itself but has some; give one of: {named}")
    with sniff.one_walk():
        reason = unread.reason(root)
    raise ValueError(f"{root} has no known layout. {reason}At its top: {_listing(root)}.\n{_understood()}")


def read(root: Path | str, format: Format = "auto", *, verify_sizes: bool = True) -> Source:
    """Reads the folder in the given or detected format. An address (s3://..., https://...) must be that of shards.

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
        if reader.streamed:
            return reader.read(root, verify_sizes=verify_sizes, scratch=scratch)
        return reader.read(root, verify_sizes=verify_sizes)

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
        with sniff.one_walk():
            signs = evidence(folder)
        found += [(folder, e.format) for e in [*(e for e in signs if e.layout), *signs][:1]]
    return found


def _understood() -> str:
    """The list of layouts, a line each."""
    listed = [_READERS[name] for name in FORMATS]
    wide = max(len(reader.title) for reader in listed)
    lines = (f"  {reader.title:<{wide}}  {reader.places}" for reader in listed)
    return "\n".join(["Layouts that are understood:", *lines])


def _listing(root: Path) -> str:
    entries = sorted(
        p.name + ("/" if p.is_dir() else "") for p in root.iterdir() if not p.name.startswith(".")
    )
    if not entries:
        return "nothing"
    shown = ", ".join(entries[:_SHOWN])
    return shown + (f", ... ({len(entries)} entries)" if len(entries) > _SHOWN else "")
