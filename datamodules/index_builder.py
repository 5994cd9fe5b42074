"""Builds the annotation index of one split: every format hands its images and objects in here."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from datamodules.annotation_index import AnnotationIndex
from datamodules.columns import Columns, Outlines, name_code, name_text, offsets_of
from datamodules.faults import Fault, Severity, relative, shown_path
from datamodules.judge import Verdict, is_id, judge_area, judge_box, judge_segmentation
from datamodules.segmentation import Segmentation


class IndexBuilder:
    """Collects images and objects of one split and judges every object once, for all formats alike.

    Args:
        root: folder of the data set; file names are relative to it.
        classes: source id -> name of the classes that are kept.
        ignored: ids of images whose objects are left out without a word.
    """

    def __init__(self, root: Path, classes: Mapping[int, str], ignored: Collection[int] = ()) -> None:
        self._root = root
        self._classes = classes
        self._excluded: set[int] = set(ignored)
        self._row_of: dict[int, int] = {}
        self._names = bytearray()
        self._name_ends = array("q", [0])
        self._sizes = array("q")
        self._rows = array("q")
        self._boxes = array("d")
        self._source_ids = array("q")
        self._areas = array("d")
        self._crowd = array("b")
        self._annotation_ids = array("q")
        self._seen_annotations: set[int] = set()
        self._outlines = _GrowingOutlines()
        self.faults: list[Fault] = []

    def fault(
        self, severity: Severity, kind: str, file: Path | str, id: int | str | None, message: str
    ) -> None:
        """Writes down one fault."""
        self.faults.append(Fault(severity, kind, shown_path(file, self._root), id, message))

    def exclude_image(self, image_id: int) -> None:
        """Its objects are left out without a fault each: the image's own fault tells it."""
        self._excluded.add(image_id)

    def add_image(self, path: Path, image_id: int, size: tuple[int, int]) -> None:
        """An image that exists, with the (h, w) of the frame of its boxes."""
        if image_id in self._row_of:
            self.fault(
                "error",
                "duplicate_image_id",
                path,
                image_id,
                f"image id {image_id} is already that of {self._file(self._row_of[image_id])}; this image is "
                "left out; give it an id of its own",
            )
            return
        self._row_of[image_id] = len(self._row_of)
        self._names += name_code(relative(path, self._root))
        self._name_ends.append(len(self._names))
        self._sizes.extend(size)

    def add_object(
        self,
        image_id: int,
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
        row = self._row_of.get(image_id) if is_id(image_id) else None
        if row is None:
            if not is_id(image_id) or image_id not in self._excluded:
                self.fault(
                    "error",
                    "unknown_image",
                    file,
                    annotation_id,
                    f"annotation {annotation_id} is for image id {image_id}, which is not listed; it is "
                    "left out; list the image or remove the annotation",
                )
            return
        where = self._file(row)
        if not is_id(source_id) or source_id not in self._classes:
            self.fault(
                "error",
                "unknown_category",
                where,
                annotation_id,
                f"category {source_id!r} is not in the class list ({_few(self._classes)}); the object is "
                "left out; add the class or correct the annotation",
            )
            return
        size = (self._sizes[2 * row], self._sizes[2 * row + 1])
        box, verdict = judge_box(box_xywh, size)
        self._tell(verdict, where, annotation_id)
        if box is None:
            return
        kept_area, verdict = judge_area(area, box)
        self._tell(verdict, where, annotation_id)
        outline, verdict = judge_segmentation(segmentation, box, size, crowd)
        self._tell(verdict, where, annotation_id)
        if annotation_id in self._seen_annotations:
            self.fault(
                "warning",
                "duplicate_annotation_id",
                where,
                annotation_id,
                f"annotation id {annotation_id} is used more than once; both objects are kept; number them "
                "anew",
            )
        self._seen_annotations.add(annotation_id)
        self._rows.append(row)
        self._boxes.extend(box)
        self._source_ids.append(source_id)
        self._areas.append(kept_area)
        self._crowd.append(crowd)
        self._annotation_ids.append(annotation_id)
        self._outlines.append(outline)

    def _tell(self, verdict: Verdict | None, where: str, annotation_id: int) -> None:
        if verdict is not None:
            self.fault(verdict.severity, verdict.kind, where, annotation_id, verdict.message)

    def _file(self, row: int) -> str:
        return name_text(bytes(self._names[self._name_ends[row] : self._name_ends[row + 1]]))

    def build(self) -> AnnotationIndex:
        """The index, objects sorted by image and otherwise in file order."""
        rows = _read(self._rows, np.int64)
        order = np.argsort(rows, kind="stable")
        outlines = self._outlines.columns()
        columns = Columns(
            name_offsets=_read(self._name_ends, np.int64),
            name_bytes=np.frombuffer(bytes(self._names), dtype=np.uint8),
            image_ids=np.fromiter(self._row_of, dtype=np.int64, count=len(self._row_of)),
            sizes=_read(self._sizes, np.int64).reshape(-1, 2),
            offsets=offsets_of(np.bincount(rows, minlength=len(self._row_of))),
            boxes_xywh=_read(self._boxes, np.float64).reshape(-1, 4)[order],
            source_ids=_read(self._source_ids, np.int64)[order],
            areas=_read(self._areas, np.float64)[order],
            crowd=_read(self._crowd, np.int8)[order].astype(np.bool_),
            annotation_ids=_read(self._annotation_ids, np.int64)[order],
            outlines=None if outlines is None else outlines.take(order),
        )
        return AnnotationIndex(str(self._root), columns, faults=tuple(self.faults))


class _GrowingOutlines:
    """The outlines of objects that are added one by one."""

    def __init__(self) -> None:
        self._polygons = array("q")
        self._points = array("q")
        self._coordinates = array("d")
        self._letters = array("q")
        self._rles = bytearray()

    def append(self, outline: Segmentation | None) -> None:
        before = len(self._rles)
        for polygon in outline.polygons if outline else ():
            self._points.append(len(polygon))
            self._coordinates.frombytes(polygon.tobytes())
        if outline and outline.rle is not None:
            self._rles += msgspec.json.encode(outline.rle)
        self._polygons.append(len(outline.polygons) if outline else 0)
        self._letters.append(len(self._rles) - before)

    def columns(self) -> Outlines | None:
        if not self._points and not self._rles:
            return None
        return Outlines(
            polygon_offsets=offsets_of(_read(self._polygons, np.int64)),
            point_offsets=offsets_of(_read(self._points, np.int64)),
            coordinates=_read(self._coordinates, np.float64),
            rle_offsets=offsets_of(_read(self._letters, np.int64)),
            rle_bytes=np.frombuffer(bytes(self._rles), dtype=np.uint8),
        )


def _read(values: array, dtype: type) -> NDArray:
    return np.frombuffer(values.tobytes(), dtype=dtype)


def _few(classes: Mapping[int, str]) -> str:
    shown = [f"{i} {name!r}" for i, name in list(classes.items())[:5]]
    return ", ".join(shown) + (f", ... {len(classes)} in all" if len(classes) > 5 else "")
