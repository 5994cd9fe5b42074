"""Pascal VOC xml, in the folders that `voc_layout` finds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

from datamodules.formats import voc_layout
from datamodules.images.files import SUFFIXES, ImageFolder
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, Severity, shown_path
from datamodules.index.source import Source, class_key, image_overlaps, similar_names
from datamodules.reading.checked_image import add_checked_image
from datamodules.reading.reader import Evidence, Reader, Signs
from datamodules.reading.text import decode_xml
from zoo.storage.opening import read_file

Corners = tuple[float, float, float, float]


@dataclass
class _Record:
    """One xml file."""

    file: Path
    image: str
    size: tuple[int, int] | None = None
    names: list[str] = field(default_factory=list)
    corners: list[Corners | None] = field(default_factory=list)
    error: str = ""
    error_kind: str = "malformed_xml"
    remarks: list[tuple[Severity, str, str]] = field(default_factory=list)  # severity, kind, message


_Own = tuple[Path, list[_Record]]  # the folder of the images and the xml files of one place


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """A VOC folder; classes in alphabetical order, their ids the position therein.

    Raises:
        ValueError: if there is no xml.
    """
    layout = voc_layout.find(root)
    if layout is None:
        raise ValueError(
            f"{root} has no folder of VOC xml files (annotations/*.xml and images/, or xml beside images)"
        )
    notes = list(layout.left_out)
    listed: dict[str, list[_Own]] = {}
    for own in layout.folders:
        records = {file.stem: _parse(file) for file in own.files}
        members: dict[str, list[str]] = {own.split or "train": list(records)}
        if own.split is None:
            members, more = _image_sets(root, layout.base, own.folder, records)
            notes += more
        for split, stems in members.items():
            listed.setdefault(split, []).append((own.images, [records[s] for s in stems if s in records]))
    every = [record for owns in listed.values() for _, records_ in owns for record in records_]
    names = sorted({name for record in every for name in record.names if name})
    classes = dict(enumerate(names))
    zero_based = _zero_based(every)
    order: tuple[str, ...] = ("train", "val", "test")
    splits = {
        split: _read_split(root, listed[split], classes, zero_based, verify_sizes)
        for split in order
        if split in listed
    }
    notes += _similar_names(root, every, classes)
    return Source("voc", root, classes, splits, (*notes, *image_overlaps(root, splits)))


def _similar_names(root: Path, records: Iterable[_Record], classes: Mapping[int, str]) -> list[Fault]:
    """`similar_names`, each reported for the first xml with the rarer spelling."""
    counts: Counter[str] = Counter()
    first: dict[str, Path] = {}
    for record in records:
        for name in record.names:
            counts[name] += 1
            first.setdefault(name, record.file)
    spellings: dict[str, list[str]] = {}
    for name in classes.values():
        spellings.setdefault(class_key(name), []).append(name)
    notes = []
    for fault in similar_names("", classes):
        assert isinstance(fault.id, int)
        rarer = min(spellings[class_key(classes[fault.id])], key=lambda name: counts[name])
        message = f"{fault.message} ({counts[rarer]} x {rarer!r})"
        notes.append(replace(fault, file=shown_path(first[rarer], root), message=message))
    return notes


def _image_sets(
    root: Path, base: Path, folder: Path, records: Mapping[str, _Record]
) -> tuple[dict[str, list[str]], list[Fault]]:
    """Per split: file stems, by the lists of the set; all are `train` if there is no list."""
    members, place = voc_layout.lists(base, list(records))
    if place is None:
        return {"train": list(records)}, []
    shown = shown_path(place, root)
    notes = []
    for split, stems in members.items():
        for stem in stems:
            if stem not in records:
                message = (
                    f"there is no {folder.name}/{stem}.xml; the image is left out; add it or remove the line"
                )
                notes.append(Fault("error", "missing_annotation", f"{shown}/{split}.txt", stem, message))
    listed = {stem for stems in members.values() for stem in stems}
    for stem in sorted(set(records) - listed):
        message = f"no list in {shown} names it; it is left out; add it to train.txt to use it"
        notes.append(Fault("warning", "unlisted", shown_path(records[stem].file, root), stem, message))
    return members, notes


def _parse(file: Path) -> _Record:
    data = read_file(file)
    # entities can expand a file of a kilobyte to gigabytes; no VOC file needs any
    if b"<!ENTITY" in data.replace(b"\0", b""):
        return _Record(
            file, "", error="it declares entities, which can fill the memory", error_kind="unsafe_xml"
        )
    try:
        tree = ElementTree.fromstring(decode_xml(data))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return _Record(file, "", error=f"not well-formed xml: {error}")
    for element in tree.iter():
        element.tag = str(element.tag).rpartition("}")[2]  # without a namespace
    if tree.tag != "annotation":
        message = f"it begins with <{tree.tag}>, not with <annotation>: no VOC annotation"
        return _Record(file, "", error=message, error_kind="foreign_xml")
    record = _Record(file, (tree.findtext("filename") or "").strip(), _size(tree))
    if record.size is None:
        record.remarks.append(
            ("note", "no_size", "the xml gives no size of the image; the image's own is taken")
        )
    for element in tree.iter("object"):
        record.names.append((element.findtext("name") or "").strip())
        record.corners.append(_corners(element, record))
    return record


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        height, width = (int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    except (ValueError, OverflowError):  # inf cannot become an integer
        return None
    return (height, width) if min(height, width) > 0 else None


def _corners(element: ElementTree.Element, record: _Record) -> Corners | None:
    """x0, y0, x1, y1 in order, or None; oddities become remarks of the record."""
    number = len(record.names)
    keys = ("xmin", "ymin", "xmax", "ymax")
    given = [tuple((box.findtext(k) or "").strip() for k in keys) for box in element.findall("bndbox")]
    if len(given) > 1:
        severity: Severity = "warning" if len(set(given)) == 1 else "error"
        message = (
            f"object {number} has {len(given)} boxes; the first is taken; make each an object of its own"
        )
        record.remarks.append((severity, "several_boxes", message))
    try:
        x0, y0, x1, y1 = (float(text) for text in given[0])
    except (ValueError, IndexError):
        return None
    if any(not t.lstrip("+-").isdigit() for t in given[0]) and all(map(math.isfinite, (x0, y0, x1, y1))):
        message = f"object {number} has box {given[0]}: fractions of a pixel are kept"
        record.remarks.append(("note", "float_corners", message))
    if x1 < x0 or y1 < y0:
        message = f"object {number} has box {given[0]}: its corners are swapped; they are put in order; correct them"
        record.remarks.append(("warning", "swapped_corners", message))
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    return x0, y0, x1, y1


def _zero_based(records: Iterable[_Record]) -> bool:
    """Whether any box starts at 0: VOC counts pixels from 1, some tools from 0."""
    return any(c is not None and min(c[:2]) < 1 for record in records for c in record.corners)


def _xywh(corners: Corners | None, zero_based: bool) -> Corners | None:
    """VOC's inclusive 1-based corners as x, y, w, h; a box whose corners coincide (a click by mistake) has size 0."""
    if corners is None:
        return None
    x0, y0, x1, y1 = corners
    if zero_based or x1 <= x0 or y1 <= y0:
        return x0, y0, x1 - x0, y1 - y0
    return x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1


def _read_split(
    root: Path, owns: Sequence[_Own], classes: Mapping[int, str], zero_based: bool, verify_sizes: bool
) -> AnnotationIndex:
    builder = IndexBuilder(root, classes)
    placed = (
        (images, record) for folder, records in owns for images in [ImageFolder(folder)] for record in records
    )
    id_of = {name: source_id for source_id, name in classes.items()}
    number = 0
    for image_id, (images, record) in enumerate(placed):
        if record.error:
            message = f"{record.error}; the image is left out; export it again"
            builder.fault("error", record.error_kind, record.file, image_id, message)
            continue
        for severity, kind, message in record.remarks:
            builder.fault(severity, kind, record.file, image_id, message)
        name = _image_name(images, record)
        if record.image and record.image != name:
            message = f"<filename> says {record.image!r}; the image of the same stem, {name}, is taken"
            builder.fault("note", "other_file_name", record.file, image_id, message)
        add_checked_image(builder, images, name, image_id, record.size, verify_sizes)
        for place, (class_name, corners) in enumerate(
            zip(record.names, record.corners, strict=True), start=1
        ):
            number += 1
            known = len(builder.faults)
            box = _xywh(corners, zero_based)
            builder.add_object(
                image_id,
                box,
                id_of.get(class_name, class_name),  # an object without a name becomes a fault
                number,
                file=record.file,
            )
            # annotation ids are made up here; a user can find the place in the xml
            drawn = box if box is not None and all(map(math.isfinite, box)) else None
            builder.faults[known:] = [
                replace(f, id=f"object {place}", box=f.box or drawn) for f in builder.faults[known:]
            ]
    return builder.build()


def _image_name(images: ImageFolder, record: _Record) -> str:
    """The image with the stem of the xml, for `filename` inside is often that of an earlier project."""
    for suffix in (".jpg", *sorted(SUFFIXES)):
        path, remark = images.find(record.file.stem + suffix)
        if path is not None and not remark:
            return path.name
    return record.image or f"{record.file.stem}.jpg"


def _look(root: Path, _: Sequence[Evidence]) -> Signs:
    layout = voc_layout.find(root)
    folders = layout.folders if layout else ()
    return Signs([own.files[0] for own in folders], any(own.apart for own in folders))


FORMAT = Reader(
    name="voc",
    look=_look,
    read=read,
    title="Pascal VOC",
    places="Annotations/*.xml, JPEGImages/*.jpg, ImageSets/Main/train.txt; annotations/ and images/, also in "
    "train/ and val/; or xml beside images",
)
