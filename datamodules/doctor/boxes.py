"""Boxes and classes that are well formed but suspicious, found from the columns of the index alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex, Fault, Severity
from zoo.contract.coco_limit import ceiling

_AGREES = 0.02  # of the area, by which a box given as corners is recognised
_MOST = 0.5  # share of boxes past the edge from which the whole file is in doubt
_ENOUGH = 20  # boxes from which on the whole file is judged
_LARGEST_ID = 2**53  # float64 holds every whole number up to it
_ROUND = 1e-3  # pixels; boxes closer than this are the same


def box_faults(
    index: AnnotationIndex, queries: int, classes: Mapping[int, str], own_ids: bool = True
) -> Iterator[Fault]:
    """What is wrong or suspicious about the objects of a split.

    Args:
        index: the split.
        queries: of the model.
        classes: the names of the source ids.
        own_ids: whether the ids of objects are those of the files; faults do not name ids that were made up.
    """
    for fault in _all_faults(index, queries, classes, own_ids):
        yield fault if own_ids or fault.box is None else replace(fault, id=None)


def _all_faults(
    index: AnnotationIndex, queries: int, classes: Mapping[int, str], own_ids: bool
) -> Iterator[Fault]:
    boxes, rows = index.boxes_xywh, index.image_rows
    if len(boxes):
        sizes = index.sizes[rows].astype(np.float64)
        normalised = _normalised(boxes, sizes)
        for k in np.flatnonzero(normalised).tolist():
            yield _object(
                index, rows, k, "error", "normalised_box",
                "lies in the first pixel: its numbers are shares of the image, not pixels; multiply them by "
                "width and height",
            )  # fmt: skip
        yield from _corners(index, rows, sizes)
        thin = (boxes[:, 2:].min(axis=1) < 1) & ~normalised & ~index.crowd
        for k in np.flatnonzero(thin).tolist():
            yield _object(
                index, rows, k, "warning", "subpixel_box", "is thinner than a pixel; most likely a slip"
            )
        yield from _repeated(index, rows, classes, own_ids)
        yield from _maskless_crowds(index, rows)
    yield from _odd_images(index)
    counts = np.bincount(rows[~index.crowd], minlength=len(index))
    for row in np.flatnonzero(counts > queries).tolist():
        yield Fault(
            "warning", "more_objects_than_queries", str(index.files[row]), int(index.image_ids[row]),
            f"{counts[row]} objects, but {queries} queries find at most {queries}; give the model more queries or "
            "cut the image into tiles",
        )  # fmt: skip


def _odd_images(index: AnnotationIndex) -> Iterator[Fault]:
    """Ids that other programs cannot hold, and files that lie outside the data set."""
    ids = index.image_ids
    for row in np.flatnonzero((ids < 0) | (ids > _LARGEST_ID)).tolist():
        yield Fault(
            "note", "odd_image_id", str(index.files[row]), int(ids[row]),
            "the id is negative or above 2^53, which JavaScript and float columns cannot keep; it is read as it is",
        )  # fmt: skip
    for row, file in enumerate(index.files):
        if file.startswith("../"):
            message = (
                "the file lies outside the data set's folder and is lost when that is moved; bring it inside"
            )
            yield Fault("warning", "outside_folder", file, int(ids[row]), message)


def _object(
    index: AnnotationIndex, rows: NDArray[np.int64], k: int, severity: Severity, kind: str, what: str
) -> Fault:
    x, y, w, h = (round(v, 3) for v in index.boxes_xywh[k].tolist())
    message = f"box {[x, y, w, h]} {what}"
    return Fault(
        severity, kind, str(index.files[rows[k]]), int(index.annotation_ids[k]), message, (x, y, w, h)
    )


def _normalised(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    far = boxes[:, :2] + boxes[:, 2:]
    inside = (boxes[:, :2].min(axis=1) >= 0) & (far.max(axis=1) <= 1 + 1e-6)
    return inside & (boxes[:, 2:].max(axis=1) < 1) & (sizes.min(axis=1) >= 8)


def _corners(index: AnnotationIndex, rows: NDArray[np.int64], sizes: NDArray[np.float64]) -> Iterator[Fault]:
    """Boxes given as x0, y0, x1, y1: past the edge as they are, inside and of the stated area as corners."""
    x, y, w, h = index.boxes_xywh.T
    past = (x + w > sizes[:, 1] + 1) | (y + h > sizes[:, 0] + 1)
    fits = (w > x) & (h > y) & (w <= sizes[:, 1] + 1) & (h <= sizes[:, 0] + 1)
    area = (w - x) * (h - y)
    stated = index.areas > 0
    found = past & fits & stated & (np.abs(index.areas - area) <= _AGREES * area)
    for k in np.flatnonzero(found).tolist():
        yield _object(
            index, rows, k, "error", "xyxy_box",
            f"passes the edge, and its area {index.areas[k]:g} is that of the corners x0, y0, x1, y1; write "
            "x, y, width, height",
        )  # fmt: skip
    judged = ~index.crowd
    number = int(judged.sum())
    if number >= _ENOUGH and (past & judged).sum() > _MOST * number and fits[judged].mean() > 0.95:
        share = (past & judged).sum() / number
        yield Fault(
            "error", "xyxy_boxes", str(index.files[0]).rpartition("/")[0] or ".", None,
            f"{share:.0%} of {number} boxes pass the edge of their image, and as corners x0, y0, x1, y1 all "
            "would lie inside; write x, y, width, height",
        )  # fmt: skip


def _maskless_crowds(index: AnnotationIndex, rows: NDArray[np.int64]) -> Iterator[Fault]:
    """Crowds without a mask in a file that has outlines: often a flag set by mistake."""
    crowds = np.flatnonzero(index.crowd).tolist()
    if index.columns.outlines is None:
        if crowds:
            where = str(index.files[rows[crowds[0]]])
            message = f"{len(crowds)} crowds without a mask, as all objects here; they are not trained on"
            yield Fault("note", "crowd_without_mask", where, int(index.annotation_ids[crowds[0]]), message)
        return
    for k in crowds:
        if index.segmentation(k) is None:
            yield _object(
                index, rows, k, "warning", "crowd_without_mask",
                "is marked as a crowd but has no RLE mask; crowds are not trained on: clear iscrowd if it is one "
                "object",
            )  # fmt: skip


def _repeated(
    index: AnnotationIndex, rows: NDArray[np.int64], classes: Mapping[int, str], own_ids: bool
) -> Iterator[Fault]:
    """Boxes that an earlier object of the same image has already."""
    keys = np.column_stack([rows, np.round(index.boxes_xywh / _ROUND).astype(np.int64)])
    _, first, group, number = np.unique(
        keys, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    group = group.reshape(-1)  # numpy 2.0 gives it another shape
    again = np.flatnonzero((number[group] > 1) & (first[group] != np.arange(len(rows))))
    for k in again.tolist():
        j = int(first[group[k]])
        if index.crowd[k] != index.crowd[j]:
            continue
        other = f"annotation {int(index.annotation_ids[j])}" if own_ids else "an earlier object"
        message = f"repeats that of {other}"
        if index.source_ids[k] == index.source_ids[j]:
            yield _object(
                index, rows, k, "warning", "duplicate_object", f"{message}, of the same class; remove one"
            )
        else:
            yield _object(
                index, rows, k, "warning", "conflicting_object",
                f"{message}, which is {classes[int(index.source_ids[j])]!r} where this is "
                f"{classes[int(index.source_ids[k])]!r}; a query gives one class a box",
            )  # fmt: skip


def limit_faults(splits: Mapping[str, AnnotationIndex], classes: Mapping[int, str]) -> Iterator[Fault]:
    """Evaluation splits with images that have more objects of a class than COCO's AP counts."""
    scored = [name for name in splits if name != "train"] or list(splits)
    for name in scored:
        index = splits[name]
        own = ~index.crowd
        limit = ceiling(index.image_rows[own], index.source_ids[own])
        if limit is not None:
            row, source_id = limit.fullest
            yield Fault(
                "warning", "more_than_100_of_a_class", str(index.files[row]), int(index.image_ids[row]),
                f"{name}: {limit.words()}; the most is this image's {limit.objects} of {classes[source_id]!r}; cut "
                "such images into tiles, or compare models by a score of your own",
            )  # fmt: skip


def class_faults(
    splits: Mapping[str, AnnotationIndex], classes: Mapping[int, str], few: int = 10
) -> Iterator[Fault]:
    """Classes that training or evaluation never sees, rare ones, and holes in the ids."""
    counts = {s: _per_class(index, list(classes)) for s, index in splits.items()}
    train = counts.get("train", next(iter(counts.values()), {}))
    train_name = "train" if "train" in counts else next(iter(counts), "")
    rare, unused = [], []
    for source_id, name in classes.items():
        others = {s: c[source_id] for s, c in counts.items() if s != train_name and c[source_id]}
        if not train.get(source_id):
            if not others:
                unused.append(name)
            for split, number in others.items():
                yield Fault(
                    "warning", f"class_only_in_{split}", ".", source_id,
                    f"class {name!r} has {number} objects in {split} ({_example(splits[split], source_id)}) and "
                    f"none in {train_name}: it cannot be learned; move images or drop the class",
                )  # fmt: skip
        elif train[source_id] < few:
            rare.append(f"{name} ({train[source_id]})")
    if unused:
        yield _note(
            "unused_class", f"no object of {_some(unused)}; their head rows are trained as background"
        )
    if rare:
        yield _note("rare_class", f"fewer than {few} objects in {train_name} of {_some(rare)}")
    for split in (s for s in ("val", "test") if s in counts and s != train_name):
        unseen = [name for i, name in classes.items() if train.get(i) and not counts[split][i]]
        if unseen:
            yield _note(
                "class_not_evaluated", f"no object in {split} of {_some(unseen)}: their AP is undefined"
            )
    ids = sorted(classes)
    if ids and ids[-1] - ids[0] + 1 > len(ids):
        yield _note(
            "id_holes",
            f"class ids run from {ids[0]} to {ids[-1]} but there are {len(ids)}; head rows are numbered without "
            "holes (contiguous), a checkpoint with one row an id needs labels: category_id",
        )


def _per_class(index: AnnotationIndex, ids: Sequence[int]) -> dict[int, int]:
    found, number = np.unique(index.source_ids[~index.crowd], return_counts=True)
    counted = dict(zip(found.tolist(), number.tolist(), strict=True))
    return {i: counted.get(i, 0) for i in ids}


def _example(index: AnnotationIndex, source_id: int) -> str:
    k = int(np.flatnonzero(index.source_ids == source_id)[0])
    return str(index.files[int(np.searchsorted(index.offsets, k, side="right")) - 1])


def _note(kind: str, message: str) -> Fault:
    return Fault("note", kind, ".", None, message)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
