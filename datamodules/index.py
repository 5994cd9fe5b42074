"""The annotation index: the annotations of one split as flat columns, and what was wrong with them.

Columns are numpy arrays, one row an image or an object, objects sorted by image. A later memory-mapped
store only has to offer the same columns.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.stores import Folder, ImageStore

Severity = Literal["error", "warning"]

_OUTSIDE_TOLERANCE = 1.0  # pixels; COCO's own boxes pass the edge by rounding


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the data, and what to do about it.

    Attributes:
        severity: `error` refuses to train unless `skip_broken` is set; `warning` is counted and told.
        kind: short machine-readable name, e.g. `zero_area`.
        file: image or annotation file, relative to the data set's folder where it lies inside.
        id: annotation, image or category id, or line; None where the file says all.
        message: what is wrong, what was done, and what to do.
    """

    severity: Severity
    kind: str
    file: str
    id: int | str | None
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        where = self.file if self.id is None else f"{self.file} (id {self.id})"
        return f"{self.severity} {self.kind}: {where}: {self.message}"


class Objects(NamedTuple):
    """The objects of one image, crowds included, as the annotation file has them."""

    boxes_xywh: NDArray[np.float64]  # [n, 4] pixels
    source_ids: NDArray[np.int64]  # [n]
    areas: NDArray[np.float64]  # [n]
    crowd: NDArray[np.bool_]  # [n]


@dataclass(frozen=True)
class AnnotationIndex:
    """Images and objects of one split; object rows of image i are offsets[i]:offsets[i + 1].

    Sizes are those of the frame in which the boxes are given: the displayed one, unless the
    annotation file gives the size of the raw pixels of a photograph with an EXIF rotation.
    """

    root: str
    files: NDArray[np.str_]  # [N] relative to root, forward slashes
    image_ids: NDArray[np.int64]  # [N] unique
    sizes: NDArray[np.int64]  # [N, 2] h, w
    offsets: NDArray[np.int64]  # [N + 1]
    boxes_xywh: NDArray[np.float64]  # [A, 4]
    source_ids: NDArray[np.int64]  # [A]
    areas: NDArray[np.float64]  # [A]
    crowd: NDArray[np.bool_]  # [A]
    annotation_ids: NDArray[np.int64]  # [A]
    faults: tuple[Fault, ...] = field(default=())
    store: ImageStore | None = None  # where the images lie; None: plain files below `root`

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """Objects of all images, crowds included."""
        return len(self.source_ids)

    def path(self, row: int) -> Path:
        """Where image `row` lies."""
        return Path(self.root, str(self.files[row]))

    @property
    def images(self) -> ImageStore:
        """Hands out the bytes of the images by their names in `files`."""
        return self.store or Folder(self.root)

    def size(self, row: int) -> tuple[int, int]:
        """(h, w) of image `row`."""
        return int(self.sizes[row, 0]), int(self.sizes[row, 1])

    def objects(self, row: int) -> Objects:
        """The objects of image `row`: views, not copies."""
        own = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return Objects(self.boxes_xywh[own], self.source_ids[own], self.areas[own], self.crowd[own])

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> AnnotationIndex:
        """The images `rows`, in that order; faults stay."""
        chosen = np.asarray(rows, dtype=np.int64)
        counts = np.diff(self.offsets)[chosen]
        parts = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in chosen]
        own = np.concatenate([np.zeros(0, np.int64), *parts])
        return replace(
            self,
            files=self.files[chosen],
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xywh=self.boxes_xywh[own],
            source_ids=self.source_ids[own],
            areas=self.areas[own],
            crowd=self.crowd[own],
            annotation_ids=self.annotation_ids[own],
        )

    def update_digest(self, digest: hashlib._Hash) -> None:
        """Feeds file names and every annotation column; the folder's place does not count."""
        for name in self.files.tolist():
            digest.update(name.encode() + b"\0")
        for column in (
            self.image_ids,
            self.sizes,
            self.offsets,
            self.boxes_xywh,
            self.source_ids,
            self.areas,
            self.crowd,
            self.annotation_ids,
        ):
            digest.update(np.ascontiguousarray(column).tobytes())


def concatenate(indices: Sequence[AnnotationIndex]) -> AnnotationIndex:
    """Several splits as one. Images are renumbered if ids collide, for an id names one image.

    Raises:
        ValueError: if the splits lie under different roots.
    """
    roots = {i.root for i in indices}
    if len(roots) != 1:
        raise ValueError(f"splits of different folders cannot be joined: {sorted(roots)}")
    image_ids = np.concatenate([i.image_ids for i in indices])
    if len(np.unique(image_ids)) < len(image_ids):
        image_ids = np.arange(len(image_ids), dtype=np.int64)
    counts = np.concatenate([np.diff(i.offsets) for i in indices])
    return AnnotationIndex(
        root=indices[0].root,
        files=np.concatenate([i.files for i in indices]),
        image_ids=image_ids,
        sizes=np.concatenate([i.sizes for i in indices]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=np.concatenate([i.boxes_xywh for i in indices]),
        source_ids=np.concatenate([i.source_ids for i in indices]),
        areas=np.concatenate([i.areas for i in indices]),
        crowd=np.concatenate([i.crowd for i in indices]),
        annotation_ids=np.concatenate([i.annotation_ids for i in indices]),
        faults=tuple(f for i in indices for f in i.faults),
    )


class IndexBuilder:
    """Collects images and objects of one split and judges every box once, for all formats alike."""

    def __init__(self, root: Path, classes: Mapping[int, str], ignored: Collection[int] = ()) -> None:
        self._root = root
        self._classes = classes
        self._excluded: set[int] = set(ignored)
        self._row_of: dict[int, int] = {}
        self._files: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._rows: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._source_ids: list[int] = []
        self._areas: list[float] = []
        self._crowd: list[bool] = []
        self._annotation_ids: list[int] = []
        self._seen_annotations: set[int] = set()
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
            first = self._files[self._row_of[image_id]]
            self.fault(
                "error",
                "duplicate_image_id",
                path,
                image_id,
                f"image id {image_id} is already that of {first}; this image is left out; give it an id of "
                "its own",
            )
            return
        self._row_of[image_id] = len(self._files)
        self._files.append(relative(path, self._root))
        self._sizes.append(size)

    def add_object(
        self,
        image_id: int,
        box_xywh: object,
        source_id: object,
        annotation_id: int,
        *,
        area: object = None,
        crowd: bool = False,
        file: Path | str = "",
    ) -> None:
        """One annotation as its file has it; a bad one becomes a fault. `file` names it in faults."""
        row = self._row_of.get(image_id)
        if row is None:
            if image_id not in self._excluded:
                self.fault(
                    "error",
                    "unknown_image",
                    file,
                    annotation_id,
                    f"annotation {annotation_id} is for image id {image_id}, which is not listed; it is "
                    "left out; list the image or remove the annotation",
                )
            return
        where = self._files[row]
        if not isinstance(source_id, int) or source_id not in self._classes:
            self.fault(
                "error",
                "unknown_category",
                where,
                annotation_id,
                f"category {source_id!r} is not in the class list ({_few(self._classes)}); the object is "
                "left out; add the class or correct the annotation",
            )
            return
        box = self._judged(box_xywh, self._sizes[row], where, annotation_id)
        if box is None:
            return
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
        self._boxes.append(box)
        self._source_ids.append(source_id)
        known = isinstance(area, (int, float)) and math.isfinite(area)
        self._areas.append(float(area) if known else box[2] * box[3])  # type: ignore[arg-type]
        self._crowd.append(crowd)
        self._annotation_ids.append(annotation_id)

    def _judged(
        self, raw: object, size: tuple[int, int], where: str, annotation_id: int
    ) -> tuple[float, float, float, float] | None:
        box = _four_numbers(raw)
        if box is None or box[2] < 0 or box[3] < 0:
            self.fault(
                "error",
                "invalid_box",
                where,
                annotation_id,
                f"box {raw!r} must be four finite numbers x, y, width, height with a size of at least 0; "
                "the object is left out; correct or remove it",
            )
            return None
        x, y, w, h = box
        if w == 0 or h == 0:
            self.fault(
                "warning",
                "zero_area",
                where,
                annotation_id,
                f"box {list(box)} has no area; the object is left out; draw it again or remove it",
            )
            return None
        height, width = size
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            self.fault(
                "warning",
                "outside",
                where,
                annotation_id,
                f"box {list(box)} lies outside the {width}x{height} image; the object is left out; correct "
                "or remove it",
            )
            return None
        beyond = max(-x, -y, x + w - width, y + h - height)
        if beyond > _OUTSIDE_TOLERANCE:
            self.fault(
                "warning",
                "partly_outside",
                where,
                annotation_id,
                f"box {list(box)} passes the edge of the {width}x{height} image by {beyond:.1f} pixels; "
                "training clips it, evaluation takes it as it is; correct it if the image was cropped or "
                "resized after labelling",
            )
        return box

    def build(self) -> AnnotationIndex:
        """The columns, objects sorted by image and otherwise in file order."""
        rows = np.asarray(self._rows, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        counts = (
            np.bincount(rows, minlength=len(self._files))
            if len(rows)
            else np.zeros(len(self._files), np.int64)
        )
        return AnnotationIndex(
            root=str(self._root),
            files=np.asarray(self._files, dtype=np.str_),
            image_ids=np.asarray(list(self._row_of), dtype=np.int64),
            sizes=np.asarray(self._sizes, dtype=np.int64).reshape(-1, 2),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xywh=np.asarray(self._boxes, dtype=np.float64).reshape(-1, 4)[order],
            source_ids=np.asarray(self._source_ids, dtype=np.int64)[order],
            areas=np.asarray(self._areas, dtype=np.float64)[order],
            crowd=np.asarray(self._crowd, dtype=np.bool_)[order],
            annotation_ids=np.asarray(self._annotation_ids, dtype=np.int64)[order],
            faults=tuple(self.faults),
        )


def relative(path: Path | str, root: Path) -> str:
    """`path` relative to `root` with forward slashes, also where it lies beside it."""
    return Path(os.path.relpath(path, root)).as_posix()


def shown_path(path: Path | str, root: Path) -> str:
    """`path` for a message: relative to `root` if it lies inside, else as it is."""
    if not os.path.isabs(path):
        return str(path)
    inside = relative(path, root)
    return str(path) if inside.startswith("..") else inside


def _four_numbers(raw: object) -> tuple[float, float, float, float] | None:
    if not isinstance(raw, (list, tuple)) or len(raw) != 4:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in raw):
        return None
    x, y, w, h = (float(v) for v in raw)
    return x, y, w, h


def _few(classes: Mapping[int, str]) -> str:
    shown = [f"{i} {name!r}" for i, name in list(classes.items())[:5]]
    return ", ".join(shown) + (f", ... {len(classes)} in all" if len(classes) > 5 else "")
