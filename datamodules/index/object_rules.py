"""The rules for one object: which boxes, areas and outlines are kept, and what is said about the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeGuard

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from datamodules.index.faults import Severity
from datamodules.index.segmentation import Segmentation, run_lengths

Box = tuple[float, float, float, float]

OUTSIDE_TOLERANCE = 1.0  # pixels; COCO's own boxes pass the edge by rounding
OUTLINE_TOLERANCE = 2.0  # pixels; a box rounded to whole ones is passed by its outline
_DRAW_AGAIN = "the object is kept without its outline; draw it again"


class Verdict(NamedTuple):
    """What is wrong with a value: the fields of a fault that the builder completes."""

    severity: Severity
    kind: str
    message: str
    box: Box | None = None  # of the object, where it is left out


def judge_box(raw: object, size: tuple[int, int]) -> tuple[Box | None, Verdict | None]:
    """The box (x, y, w, h) if the object is kept, and what is wrong with it, in an image of (h, w)."""
    box = _four_numbers(raw)
    if box is None or box[2] < 0 or box[3] < 0:
        return None, Verdict(
            "error",
            "invalid_box",
            f"box {raw!r} must be four finite numbers x, y, width, height with a size of at least 0; "
            "the object is left out; correct or remove it",
        )
    x, y, w, h = box
    if w == 0 or h == 0:
        return None, Verdict(
            "warning",
            "zero_area",
            f"box {list(box)} has no area; the object is left out; draw it again or remove it",
            box,
        )
    height, width = size
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return None, Verdict(
            "warning",
            "outside",
            f"box {list(box)} lies outside the {width}x{height} image; the object is left out; correct "
            "or remove it",
            box,
        )
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > OUTSIDE_TOLERANCE:
        return box, Verdict(
            "warning",
            "partly_outside",
            f"box {list(box)} passes the edge of the {width}x{height} image by {beyond:.1f} pixels; "
            "training clips it, evaluation takes it as it is; correct it if the image was cropped or "
            "resized after labelling",
        )
    return box, None


def surely_good(
    boxes: NDArray[np.float64], areas: NDArray[np.float64], sizes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which objects `judge_box` and `judge_area` accept without a fault; the others have to be given to both.

    Args:
        boxes: [n, 4] x, y, w, h.
        areas: [n], NaN where none is given.
        sizes: [n, 2] (h, w) of the image of each.
    """
    x, y, w, h = boxes.T
    height, width = sizes.T
    with np.errstate(over="ignore"):  # a box that ends at infinity is outside
        right, bottom = x + w, y + h
    inside = (x < width) & (y < height) & (right > 0) & (bottom > 0) & (w > 0) & (h > 0)
    near = (-x <= OUTSIDE_TOLERANCE) & (-y <= OUTSIDE_TOLERANCE)
    near &= (right - width <= OUTSIDE_TOLERANCE) & (bottom - height <= OUTSIDE_TOLERANCE)
    return np.asarray(inside & near & (np.isnan(areas) | ((areas > 0) & (areas < np.inf))))


def surely_good_polygons(
    boxes: NDArray[np.float64], lengths: NDArray[np.int64], coordinates: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which polygons `judge_segmentation` accepts without a fault.

    Args:
        boxes: [p, 4] of the object of each polygon.
        lengths: [p] numbers of each.
        coordinates: [c] those numbers, one polygon after the other, all finite.
    """
    good = (lengths >= 6) & (lengths % 2 == 0)
    if not good.any():
        return good
    own = coordinates if good.all() else coordinates[np.repeat(good, lengths)]
    first = np.concatenate([[0], np.cumsum(lengths[good])[:-1]]) // 2
    x, y, w, h = boxes[good].T
    beyond = np.maximum.reduce(
        [
            x - np.minimum.reduceat(own[0::2], first),
            y - np.minimum.reduceat(own[1::2], first),
            np.maximum.reduceat(own[0::2], first) - (x + w),
            np.maximum.reduceat(own[1::2], first) - (y + h),
        ]
    )
    good[good] = beyond <= OUTLINE_TOLERANCE
    return good


def judge_area(raw: object, box: Box) -> tuple[float, Verdict | None]:
    """The area of an object: as given where it is a finite number, else that of its box."""
    own = box[2] * box[3]
    if raw is None:
        return own, None
    known = isinstance(raw, (int, float)) and _is_finite(raw)
    area = float(raw) if known else own  # type: ignore[arg-type]
    if known and area > 0:
        return area, None
    done = (
        "kept, and evaluation counts the object as small" if known else f"taken as that of the box, {own:g}"
    )
    return area, Verdict(
        "warning",
        "invalid_area",
        f"area {_short(raw)} of a box of {box[2]:g}x{box[3]:g} pixels must be a number above 0; it is {done}; "
        "correct it or leave it out",
    )


def judge_segmentation(
    raw: object, box: Box, size: tuple[int, int], crowd: bool
) -> tuple[Segmentation | None, Verdict | None]:
    """The outline if it is well formed, and what is wrong with it. `[]` and None: the object has none."""
    if raw is None or raw == []:
        return None, None
    if isinstance(raw, Segmentation):
        raw = raw.to_coco()
    if isinstance(raw, Mapping):
        return _judge_rle(raw, size)
    return _judge_polygons(raw, box, crowd)


def _judge_polygons(raw: object, box: Box, crowd: bool) -> tuple[Segmentation | None, Verdict | None]:
    if not isinstance(raw, (list, tuple)) or not all(_is_polygon(p) for p in raw):
        return None, _invalid(
            f"segmentation {_short(raw)} must be a list of polygons x0, y0, x1, y1, ... of finite numbers "
            "with at least three points each, or an RLE"
        )
    polygons = tuple(np.asarray(p, dtype=np.float64) for p in raw)
    beyond = max(outline_beyond(p, box) for p in polygons)
    if beyond > OUTLINE_TOLERANCE:
        return None, Verdict(
            "warning",
            "segmentation_outside_box",
            f"the outline passes the box {list(box)} by {beyond:.1f} pixels, so one of them belongs to "
            f"something else; {_DRAW_AGAIN} or correct the box",
        )
    if crowd:
        return Segmentation(polygons), Verdict(
            "warning",
            "crowd_polygon",
            "a crowd (iscrowd 1) has polygons where COCO has an RLE; both are kept; if it is a single "
            "object set iscrowd to 0, for crowds are not trained on",
        )
    return Segmentation(polygons), None


def outline_beyond(polygon: np.ndarray, box: Box) -> float:
    """Pixels by which a polygon [2k] passes its box, negative inside."""
    (x0, y0), (x1, y1) = polygon.reshape(-1, 2).min(axis=0), polygon.reshape(-1, 2).max(axis=0)
    x, y, w, h = box
    return float(max(x - x0, y - y0, x1 - (x + w), y1 - (y + h)))


def _judge_rle(raw: Mapping[str, Any], size: tuple[int, int]) -> tuple[Segmentation | None, Verdict | None]:
    runs = _runs(raw.get("counts"))
    own = raw.get("size")
    sided = isinstance(own, (list, tuple)) and len(own) == 2 and all(_is_integer(s) and s > 0 for s in own)
    if runs is None or not sided or int(runs.sum()) != int(own[0]) * int(own[1]):  # type: ignore[index]
        return None, _invalid(
            f"RLE {_short(dict(raw))} must have size [height, width] and counts that add up to their product"
        )
    if not runs[1::2].sum():
        return None, _invalid(f"RLE {_short(dict(raw))} marks no pixel")
    if tuple(own) != tuple(size):  # type: ignore[arg-type]
        return None, Verdict(
            "warning",
            "segmentation_size",
            f"the RLE is of {own[0]}x{own[1]} (height x width), the image has {size[0]}x{size[1]}; "  # type: ignore[index]
            f"{_DRAW_AGAIN} or export it for this image",
        )
    counts = raw["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return Segmentation(rle={"size": [int(s) for s in own], "counts": text}), None  # type: ignore[union-attr]


def _runs(counts: object) -> np.ndarray | None:
    """The run lengths of either form of RLE; None if they are none."""
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        try:
            runs = run_lengths(counts)
        except ValueError:
            return None
    elif isinstance(counts, (list, tuple)) and all(_is_integer(c) and 0 <= c < 2**40 for c in counts):
        runs = np.asarray(counts, dtype=np.int64)
    else:
        return None
    return runs if runs.size and runs.min() >= 0 else None


def _invalid(rule: str) -> Verdict:
    return Verdict("warning", "invalid_segmentation", f"{rule}; {_DRAW_AGAIN}")


def _is_polygon(raw: object) -> bool:
    return (
        isinstance(raw, (list, tuple, np.ndarray))
        and len(raw) >= 6
        and len(raw) % 2 == 0
        and all(_is_number(v) for v in raw)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _four_numbers(raw: object) -> Box | None:
    if not isinstance(raw, (list, tuple)) or len(raw) != 4 or not all(_is_number(v) for v in raw):
        return None
    x, y, w, h = (float(v) for v in raw)
    return x, y, w, h


Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value can be the id of an image, a class or an annotation: a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
