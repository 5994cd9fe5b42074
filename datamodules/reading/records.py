"""Images and their marks as an annotation tool writes them, and how they become a `Source`.

Readers of tools that know classes by name share this: they parse, it finds the images, numbers classes,
images and objects, and lets the index judge the boxes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from datamodules.index import Fault, IndexBuilder, shown_path
from datamodules.index.source import Source, image_overlaps, similar_names, split_of
from datamodules.reading.checked_image import add_checked_image
from datamodules.reading.image_tree import ImageTree

Box = tuple[float, float, float, float]
_FEW = 3


class Mark(NamedTuple):
    """One labelled object.

    Attributes:
        name: class; empty if the tool's user gave none.
        box: x, y, width, height; None if the file has no four numbers for it.
        segmentation: COCO's raw value, or None.
        crowd: whether it stands for a group.
        fraction: the box is in shares of the image's width and height, not in pixels.
        region: a part of the image that is to be ignored, of no class: it becomes a crowd of each class, so
            that a detection in it is neither a true nor a false positive.
    """

    name: str
    box: Box | None
    segmentation: object = None
    crowd: bool = False
    fraction: bool = False
    region: bool = False


@dataclass
class ImageRecord:
    """One image with its marks.

    Attributes:
        file: path or name as the annotation file gives it.
        source: the annotation file.
        split: `train`, `val` or `test`.
        size: (h, w) in the annotations, None if they have none.
        marks: its objects.
        other_names: further names to look for if `file` is nowhere.
        way_out: the message if there is no such image; empty: the usual message.
    """

    file: str
    source: Path
    split: str = "train"
    size: tuple[int, int] | None = None
    marks: list[Mark] = field(default_factory=list)
    other_names: tuple[str, ...] = ()
    way_out: str = ""


class Remarks:
    """Collects faults that repeat: each kind is reported once, with its count and the first few places."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._severity: dict[tuple[str, str, str], str] = {}

    def add(self, severity: str, kind: str, file: Path, message: str, where: str) -> None:
        """Counts one more case, at the place `where`."""
        key = (kind, shown_path(file, self._root), message)
        self._severity[key] = severity
        self._seen[key].append(where)

    def faults(self) -> list[Fault]:
        """One fault for each kind, file and message."""
        out = []
        for (kind, file, message), places in self._seen.items():
            few = ", ".join(places[:_FEW]) + (", ..." if len(places) > _FEW else "")
            severity = self._severity[kind, file, message]
            assert severity in ("error", "warning", "note")
            out.append(Fault(severity, kind, file, None, f"{len(places)} x {message} ({few})"))  # type: ignore[arg-type]
        return out


def split_of_file(file: Path, root: Path) -> str:
    """The split an annotation file is for: by its own name, else by the folders from it up to `root`."""
    return named_split(file, root) or "train"


def named_split(file: Path, root: Path) -> str | None:
    """As `split_of_file`, but None if no name is that of a split."""
    names = [file.stem, *reversed(file.relative_to(root).parent.parts)]
    return next((split for split in map(split_of, names) if split), None)


def split_of_image(record: ImageRecord, root: Path, tree: ImageTree) -> str:
    """The split the annotation file is for; if no name there is that of a split, the one of the image's folder."""
    below = record.source.relative_to(root)
    for name in (record.file, *record.other_names):
        found = tree.candidates(name)
        if found:
            folders = Path(found[0]).parent.parts if len(found) == 1 else ()
            names = [below.stem, *reversed(below.parent.parts), *reversed(folders)]
            return next((split for split in map(split_of, names) if split), "train")
    return split_of_file(record.source, root)


def assemble(
    format: str,
    root: Path,
    records: Sequence[ImageRecord],
    tree: ImageTree,
    *,
    names: Sequence[str] = (),
    ids: Mapping[str, int] | None = None,
    notes: Iterable[Fault] = (),
    unlisted: str = "",
    verify_sizes: bool = True,
) -> Source:
    """Builds the splits.

    Args:
        format: of the source.
        root: folder of the data set.
        records: all of them; one listed twice in a split keeps the marks of both.
        tree: where the images are.
        names: class names in the order of the tool; others follow by alphabet. Ids are positions.
        ids: class ids where the format has them, instead of positions.
        notes: faults of the folder as a whole.
        unlisted: the message about images that no annotation file names; empty: none.
        verify_sizes: read each image's header even if the annotations give its size.
    """
    id_of = _class_ids(records, names, ids)
    classes = {source_id: name for name, source_id in sorted(id_of.items(), key=lambda item: item[1])}
    remarks = Remarks(root)
    builders: dict[str, IndexBuilder] = {}
    placed: dict[tuple[str, str], tuple[int, tuple[int, int] | None]] = {}
    regions: list[ImageRecord] = []
    number = 0
    for image_id, record in enumerate(records):
        builder = builders.setdefault(record.split, IndexBuilder(root, classes))
        name = _name_on_disk(tree, record, builder, image_id)
        own_id, size = placed.get((record.split, name), (image_id, None))
        if (record.split, name) in placed:
            message = "image listed twice; the objects of both are taken; merge them"
            remarks.add("warning", "listed_twice", record.source, message, record.file)
        elif name:
            size = add_checked_image(builder, tree, name, image_id, record.size, verify_sizes)
            placed[record.split, name] = (image_id, size)
            if size is None and record.way_out and builder.faults[-1].kind == "missing_image":
                builder.faults[-1] = replace(builder.faults[-1], message=record.way_out)
        for mark in record.marks:
            number += 1
            if mark.region:
                regions.append(record)
                for source_id in classes:
                    number += 1
                    builder.add_object(
                        own_id, _pixels(mark, size), source_id, number, crowd=True, file=record.source
                    )
                continue
            if not mark.name:
                message = "object without a class; left out; name it"
                remarks.add("error", "unlabelled", record.source, message, record.file)
                continue
            builder.add_object(
                own_id, _pixels(mark, size), id_of[mark.name], number, crowd=mark.crowd,
                segmentation=mark.segmentation, file=record.source,
            )  # fmt: skip
    order: tuple[str, ...] = ("train", "val", "test")
    splits = {s: builders[s].build() for s in order if s in builders}
    every = [
        *notes,
        *remarks.faults(),
        *_ignored(regions, root),
        *similar_names(shown_path(root, root), classes),
    ]
    if unlisted:
        every += _unlisted(tree, {name for _, name in placed}, unlisted)
    return Source(format, root, classes, splits, (*every, *image_overlaps(root, splits)))


def _ignored(records: Sequence[ImageRecord], root: Path) -> Iterable[Fault]:
    """One note for all regions that are to be ignored, given the image of each."""
    if records:
        few = ", ".join(p.file for p in records[:_FEW]) + (", ..." if len(records) > _FEW else "")
        message = (
            f"{len(records)} x region to ignore, which is no object; it becomes a crowd of each class: not trained "
            f"on, and a detection in it is neither a true nor a false positive; nothing to do ({few})"
        )
        yield Fault("note", "ignore_region", shown_path(records[0].source, root), None, message)


def _class_ids(
    records: Sequence[ImageRecord], names: Sequence[str], ids: Mapping[str, int] | None
) -> dict[str, int]:
    used = sorted({mark.name for record in records for mark in record.marks if mark.name})
    known = dict(ids) if ids is not None else {name: i for i, name in enumerate(dict.fromkeys(names))}
    following = max(known.values(), default=-1) + 1
    return {**known, **{n: following + i for i, n in enumerate(u for u in used if u not in known)}}


def _name_on_disk(tree: ImageTree, record: ImageRecord, builder: IndexBuilder, image_id: int) -> str:
    """The path of the image below the tree's folder; the given name if there is none, empty if there are several."""
    for name in (record.file, *record.other_names):
        found = tree.candidates(name)
        if len(found) == 1:
            return found[0]
        if found:
            builder.exclude_image(image_id)
            message = (
                f"{len(found)} files are called {name!r}: {', '.join(found[:_FEW])}; the image is left out; "
                "give the annotations the folder too"
            )
            builder.fault("error", "ambiguous_image", record.source, image_id, message)
            return ""
    return record.file


def _pixels(mark: Mark, size: tuple[int, int] | None) -> object:
    if mark.box is None or not mark.fraction or size is None:
        return mark.box
    x, y, w, h = mark.box
    return x * size[1], y * size[0], w * size[1], h * size[0]


def _unlisted(tree: ImageTree, listed: set[str], words: str) -> list[Fault]:
    rest = sorted(set(tree.all()) - listed)
    if not rest:
        return []
    few = ", ".join(rest[:_FEW]) + (", ..." if len(rest) > _FEW else "")
    return [Fault("warning", "unlisted_image", ".", None, f"{len(rest)} x {words} ({few})")]


def enclosing(points: Sequence[tuple[float, float]]) -> Box:
    """The box around points."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
