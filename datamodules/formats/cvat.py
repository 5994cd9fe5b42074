"""CVAT xml 1.1: for images (task and project exports) and for video (tracks)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from datamodules.index import shown_path
from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.outlines import Points, around_ellipse, flat, polygon_box, rotated
from datamodules.reading.parsing import load_xml
from datamodules.reading.records import ImageRecord, Mark, Remarks, enclosing, split_of_file

_BOXED = ("box", "polygon", "ellipse", "mask")
_UNBOXED = ("polyline", "points", "tag", "skeleton", "cuboid")
_FRAME = re.compile(r"(?<!\d)(\d{1,18})$")


def annotation_files(root: Path) -> list[Path]:
    """Every CVAT xml in the folder."""
    return sniff.of_kind(root, ".xml", "cvat")


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in the order of the labels of the task or project.

    Polygons, ellipses, masks and turned boxes give the box around them; tracks give one object a frame in
    which they are not `outside`. Images without a shape are images without objects.
    """
    names: list[str] = []
    folder.names = names
    for file in folder.files:
        document = load_xml(file)
        names += filter(None, (label.findtext("name") for label in document.iter("label")))
        yield from _images(document, file, folder.root, folder.remarks)
        yield from _frames(document, file, folder)


def _images(document: ElementTree.Element, file: Path, root: Path, remarks: Remarks) -> Iterator[ImageRecord]:
    for element in document.iter("image"):
        subset, name = element.get("subset", ""), element.get("name", "")
        split = split_of(subset) or split_of_file(file, root)
        record = ImageRecord(f"{subset}/{name}" if subset else name, file, split, _size(element), [])
        for shape in element:
            mark = _mark(shape, shape.get("label", ""), file, remarks, name)
            if mark is not None:
                record.marks.append(mark)
        yield record


def _size(element: ElementTree.Element) -> tuple[int, int] | None:
    try:
        size = int(float(element.get("height", ""))), int(float(element.get("width", "")))
    except (ValueError, OverflowError):  # 1e400 is infinite
        return None
    return size if min(size) > 0 else None


def _frames(document: ElementTree.Element, file: Path, folder: AnnotationFolder) -> Iterator[ImageRecord]:
    tracks = list(document.iter("track"))
    if not tracks and document.find("image") is not None:
        return
    marks: dict[int, list[Mark]] = {}
    for track in tracks:
        for shape in track:
            frame = _FRAME.search(shape.get("frame", ""))
            if frame is None or shape.get("outside") == "1":
                continue
            where = f"frame {frame[1]}"
            mark = _mark(shape, track.get("label", ""), file, folder.remarks, where)
            marks.setdefault(int(frame[1]), []).extend([mark] if mark is not None else [])
    images = _frame_images(folder.tree, file, folder.root)
    split = split_of_file(file, folder.root)
    if not images and marks:
        raise ValueError(
            f"{shown_path(file, folder.root)} has tracks over frames {min(marks)} to {max(marks)} of a video, and no "
            "image of a frame lies here; export the task from CVAT with `save images`, or cut the video "
            "into files named frame_000000.png by frame number"
        )
    for frame_number in sorted({*images, *marks}):
        name = images.get(frame_number, f"frame_{frame_number:06d}.png")
        yield ImageRecord(name, file, split, None, marks.get(frame_number, []))


def _frame_images(tree: ImageTree, file: Path, root: Path) -> Mapping[int, str]:
    """Frame number -> image, of the images beside or below the xml whose stems end in a number."""
    base = file.parent.relative_to(root).as_posix()
    near = [n for n in tree.all() if base == "." or n.startswith(f"{base}/")]
    numbered = ((_FRAME.search(Path(name).stem), name) for name in near)
    return {int(match[1]): name for match, name in numbered if match}


def _mark(shape: ElementTree.Element, label: str, file: Path, remarks: Remarks, where: str) -> Mark | None:
    if shape.tag in _UNBOXED:
        message = f"{shape.tag}: has no box; left out; draw boxes or polygons for what is to be detected"
        remarks.add("warning", "no_box", file, message, where)
    if shape.tag not in _BOXED:
        return None
    try:
        return _boxed(shape, label, file, remarks, where)
    except ValueError:
        return Mark(label, None)  # the index reports a box without four numbers


def _boxed(shape: ElementTree.Element, label: str, file: Path, remarks: Remarks, where: str) -> Mark:
    angle = float(shape.get("rotation", "0"))
    if shape.tag == "polygon":
        points = _points(shape.get("points", ""))
        return Mark(label, polygon_box(points), [flat(points)])
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (float(shape.get(k, "")) for k in ("cx", "cy", "rx", "ry"))
        return Mark(label, around_ellipse((cx, cy), (rx, ry), angle))
    if shape.tag == "mask":
        left, top, width, height = (float(shape.get(k, "")) for k in ("left", "top", "width", "height"))
        return Mark(label, (left, top, width, height))
    x0, y0, x1, y1 = (float(shape.get(k, "")) for k in ("xtl", "ytl", "xbr", "ybr"))
    box = (x0, y0, x1 - x0, y1 - y0)
    if not angle % 180:
        return Mark(label, box)
    message = "turned box; the upright box around it is taken"
    remarks.add("warning", "turned_box", file, message, where)
    corners = rotated(box, angle, ((x0 + x1) / 2, (y0 + y1) / 2))
    return Mark(label, enclosing(corners), [flat(corners)])


def _points(text: str) -> Points:
    pairs = [pair.split(",") for pair in text.split(";") if pair.strip()]
    return [(float(x), float(y)) for x, y in pairs]


FORMAT = named_classes(
    name="cvat",
    find=annotation_files,
    records=_read,
    lacks="CVAT xml (<annotations> with <image> or <track>)",
    unlisted="image that the CVAT export does not name; left out",
    title="CVAT",
    places="annotations.xml of an export `for images` or `for video`, with the images",
)
