"""Builds the annotation index of one split from the images and objects that a format's reader gives."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from datamodules.index.annotation_index import AnnotationIndex
from datamodules.index.columns import Columns, Ints, name_code, name_text
from datamodules.index.faults import Fault, Severity, relative, shown_path
from datamodules.index.growing_columns import Scratch
from datamodules.index.object_block import ObjectBlock, RawObject
from datamodules.index.object_columns import JudgedObject, ObjectColumns
from datamodules.index.object_rules import Box, Verdict, is_id, judge_area, judge_box, judge_segmentation


class IndexBuilder:
    """Collects images and objects of one split and checks every object by the same rules for all formats.

    Args:
        root: folder of the data set; file names are relative to it.
        classes: source id -> name of the classes that are kept.
        ignored: ids of images whose objects are left out without a fault.
        scratch: makes the columns of objects, in memory or on a disk.
    """

    def __init__(
        self,
        root: Path,
        classes: Mapping[int, str],
        ignored: Collection[int] = (),
        scratch: Scratch | None = None,
    ) -> None:
        self._root = root
        self._classes = classes
        self._class_ids = np.fromiter(classes, np.int64, len(classes))
        self._excluded: set[int] = set(ignored)
        self._row_of: dict[int, int] = {}
        self._shown_folders: dict[str, str] = {}
        self._names = bytearray()
        self._name_ends = array("q", [0])
        self._sizes = array("q")
        self._lookup: tuple[Ints, Ints, Ints] | None = None  # sorted ids, their rows, sizes by row
        self._objects = ObjectColumns(scratch or Scratch())
        self._faults: list[Fault] = []
        self._fault_places = array("q")  # objects that were kept before each fault
        self._kept = 0

    @property
    def faults(self) -> list[Fault]:
        """Faults of images and single objects so far; `build` adds those of repeated annotation ids."""
        return self._faults

    def fault(
        self,
        severity: Severity,
        kind: str,
        file: Path | str,
        id: int | str | None,
        message: str,
        box: Box | None = None,
    ) -> None:
        """Adds one fault."""
        self._faults.append(Fault(severity, kind, shown_path(file, self._root), id, message, box))
        self._fault_places.append(self._kept)

    # ------------------------------------------------------------------ images

    def exclude_image(self, image_id: int) -> None:
        """Leaves out the objects of an image that has a fault of its own, without a fault for each object."""
        self._excluded.add(image_id)

    def add_image(self, path: Path | str, image_id: int, size: tuple[int, int]) -> None:
        """An image that exists, with the (h, w) of the frame of its boxes."""
        if image_id in self._row_of:
            message = (
                f"image id {image_id} is already that of {self._file(self._row_of[image_id])}; this image is "
                "left out; give it an id of its own"
            )
            self.fault("error", "duplicate_image_id", path, image_id, message)
            return
        self._row_of[image_id] = len(self._row_of)
        self._names += name_code(self._relative(os.fspath(path)))
        self._name_ends.append(len(self._names))
        self._sizes.extend(size)

    def _relative(self, path: str) -> str:
        folder, _, name = path.rpartition(os.sep)
        shown = self._shown_folders.get(folder)
        if shown is None:  # once a folder: it costs more than everything else that is done for an image
            shown = (
                relative(folder or os.sep, self._root) if os.path.isabs(path) else relative(path, self._root)
            )
            if not os.path.isabs(path):
                return shown
            self._shown_folders[folder] = shown
        return name if shown == "." else f"{shown}/{name}"

    def _file(self, row: int) -> str:
        return name_text(bytes(self._names[self._name_ends[row] : self._name_ends[row + 1]]))

    # ------------------------------------------------------------------ objects

    def add_object(
        self,
        image_id: object,
        box_xywh: object,
        source_id: object,
        annotation_id: int,
        *,
        area: object = None,
        crowd: bool = False,
        segmentation: object = None,
        file: Path | str = "",
    ) -> None:
        """One annotation as its file has it; a bad one becomes a fault.

        Args:
            image_id: of an image that was added before.
            box_xywh: x, y, width, height in pixels.
            source_id: class id.
            annotation_id: id in the file, or a running number.
            area: of the outline; that of the box where there is none.
            crowd: a region of many objects, which is not trained on.
            segmentation: COCO's value, a list of polygons or an RLE; `[]` and None: there is none.
            file: names the annotation file in faults that are not an image's.
        """
        raw = RawObject(image_id, box_xywh, source_id, annotation_id, area, crowd, segmentation, file)
        judged = self._judge(raw)
        if judged is not None:
            if not is_id(annotation_id):
                message = (
                    "its id is no whole number of 64 bits; its place in the file is taken; number it anew"
                )
                self.fault("warning", "invalid_annotation_id", file, str(annotation_id)[:40], message)
                annotation_id = self._kept
            self._objects.append(judged, annotation_id)
            self._kept += 1

    def _judge(self, raw: RawObject) -> JudgedObject | None:
        """The object as it is kept; what is wrong with it becomes a fault."""
        image_id, box_xywh, source_id, annotation_id, area, crowd, segmentation, file = raw
        row = self._row_of.get(image_id) if is_id(image_id) else None
        if row is None:
            if not is_id(image_id) or image_id not in self._excluded:
                message = (
                    f"annotation {annotation_id} is for image id {image_id}, which is not listed; it is "
                    "left out; list the image or remove the annotation"
                )
                self.fault("error", "unknown_image", file, annotation_id, message)
            return None
        where = self._file(row)
        if not is_id(source_id) or source_id not in self._classes:
            message = (
                f"category {source_id!r} is not in the class list ({_few(self._classes)}); the object is "
                "left out; add the class or correct the annotation"
            )
            self.fault("error", "unknown_category", where, annotation_id, message)
            return None
        size = (self._sizes[2 * row], self._sizes[2 * row + 1])
        box, verdict = judge_box(box_xywh, size)
        self._add_verdict(verdict, where, annotation_id)
        if box is None:
            return None
        kept_area, verdict = judge_area(area, box)
        self._add_verdict(verdict, where, annotation_id)
        outline, verdict = judge_segmentation(segmentation, box, size, crowd)
        self._add_verdict(verdict, where, annotation_id)
        return JudgedObject(row, box, source_id, kept_area, crowd, outline)

    def _add_verdict(self, verdict: Verdict | None, where: str, annotation_id: int) -> None:
        if verdict is not None:
            self.fault(verdict.severity, verdict.kind, where, annotation_id, verdict.message, verdict.box)

    def add_objects(self, block: ObjectBlock, *, file: Path | str = "") -> None:
        """Adds many annotations, with the same result as `add_object` for each."""
        if not len(block.image_ids):
            return
        rows, sizes = self._looked_up(block.image_ids)
        known = rows >= 0
        good = known & np.isin(block.source_ids, self._class_ids) & block.without_doubt(sizes)
        areas = np.where(np.isnan(block.areas), block.boxes_xywh[:, 2] * block.boxes_xywh[:, 3], block.areas)
        keep, outlined = good.copy(), np.ones(len(rows), dtype=np.bool_)
        doubtful = np.flatnonzero(~good).tolist()
        before = self._kept + np.cumsum(good)
        more = 0
        for i, raw in zip(doubtful, block.raw_objects(doubtful, file), strict=True):
            self._kept = int(before[i]) + more
            judged = self._judge(raw)
            if judged is not None:
                keep[i], areas[i], outlined[i] = True, judged.area, judged.outline is not None
                more += 1
        self._kept = int(before[-1]) + more
        self._objects.extend(rows[keep], block.kept(keep, areas, outlined))

    def _looked_up(self, image_ids: Ints) -> tuple[Ints, Ints]:
        """Per object the row of its image, -1 if that is unknown, and the image's (h, w)."""
        if self._lookup is None or len(self._lookup[0]) != len(self._row_of):
            ids = np.fromiter(self._row_of, np.int64, len(self._row_of))
            order = np.argsort(ids)
            self._lookup = (ids[order], order, np.array(self._sizes, dtype=np.int64).reshape(-1, 2))
        ids, order, sizes = self._lookup
        if not len(ids):
            return np.full(len(image_ids), -1), np.ones((len(image_ids), 2), dtype=np.int64)
        place = np.minimum(np.searchsorted(ids, image_ids), len(ids) - 1)
        rows = np.where(ids[place] == image_ids, order[place], -1)
        return rows, sizes[rows]

    # ------------------------------------------------------------------ the whole

    def build(self) -> AnnotationIndex:
        """The index, objects sorted by image and otherwise in file order."""
        repeated = self._objects.repeated_annotation_ids()
        for place, row, annotation_id in repeated:
            self._kept = place
            message = (
                f"annotation id {annotation_id} is used more than once; both objects are kept; number them "
                "anew"
            )
            self.fault("warning", "duplicate_annotation_id", self._file(row), annotation_id, message)
        order = np.argsort(np.array(self._fault_places), kind="stable").tolist() if repeated else None
        faults = self._faults if order is None else [self._faults[i] for i in order]
        objects = self._objects.by_image(len(self._row_of))
        columns = Columns(
            name_offsets=np.array(self._name_ends, dtype=np.int64),
            name_bytes=np.frombuffer(self._names, dtype=np.uint8),
            image_ids=np.fromiter(self._row_of, dtype=np.int64, count=len(self._row_of)),
            sizes=np.array(self._sizes, dtype=np.int64).reshape(-1, 2),
            **objects._asdict(),
        )
        return AnnotationIndex(str(self._root), columns, faults=tuple(faults))


def _few(classes: Mapping[int, str]) -> str:
    shown = [f"{i} {name!r}" for i, name in list(classes.items())[:5]]
    return ", ".join(shown) + (f", ... {len(classes)} in all" if len(classes) > 5 else "")
