"""The images of a report: the worst of each kind of error and those behind the confusions, with their boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from datamodules.images.decoding import decode_seen
from zoo.analysis.tide import RIGHT
from zoo.evaluation.coco_evaluator import Floats, Integers
from zoo.report.given import Given
from zoo.report.words import NUMBER

SIDE = 440  # pixels of the longer side
QUALITY = 72
OF_A_KIND = 6  # worst images of each kind of error
OF_A_CELL = 4  # pictures behind one confusion
FILES = 40  # names of files behind one confusion
CELLS = 400  # that tell their images
MOST = 72  # pictures of a page
BOXES = 120  # of an image that are drawn


def worst_images(given: Given) -> dict[str, list[int]]:
    """Rows of the images that each kind of error is worst in, the worst first.

    Detections below the threshold are not shown and do not count; the others count as their score, missed objects
    as one each.
    """
    data, errors = given.evaluation.data, given.errors
    image, scores = data.detection_image[errors.found], data.detections[errors.found, 4]
    found = {}
    for kind, number in NUMBER.items():
        own = (errors.kind == number) & (scores >= given.threshold) & ~errors.ignored
        found[kind] = _most(image[own], scores[own], len(data.images))
    missed = data.annotation_image[errors.missed]
    found["missed"] = _most(missed, np.ones(len(missed)), len(data.images))
    return found


def _most(image: Integers, weights: Floats, number: int) -> list[int]:
    total = np.bincount(image, weights=weights, minlength=number)
    best = np.argsort(-total, kind="stable")[:OF_A_KIND]
    return [int(row) for row in best if total[row] > 0]


def confused(given: Given) -> list[dict[str, Any]]:
    """The confusions, the most frequent first, each with images behind it: (image, object, detection) rows.

    `true` and `shown` are places in the list of classes, -1 for background and missed.
    """
    pairs = given.confusion
    heads = given.evaluation.data.classes
    place = {head: k for k, head in enumerate(heads)} | {-1: -1}
    codes = (pairs.true + 1) * (max(heads, default=0) + 2) + pairs.shown + 1
    values, first, inverse, counts = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1]) if len(values) else []
    wrong = pairs.true[first] != pairs.shown[first]
    order = np.lexsort((-counts, ~wrong))[:CELLS]
    cells = []
    for k in order.tolist():
        own, at = members[k], int(first[k])
        files = list(
            dict.fromkeys(given.index.files[int(given.rows[r])] for r in pairs.image[own[:FILES]].tolist())
        )
        cells.append(
            {
                "true": place[int(pairs.true[at])],
                "shown": place[int(pairs.shown[at])],
                "count": int(counts[k]),
                "files": files,
                "examples": [
                    [int(pairs.image[p]), int(pairs.object[p]), int(pairs.found[p])] for p in own[:FILES].tolist()
                ],
            }
        )  # fmt: skip
    return cells


def chosen_images(worst: dict[str, list[int]], cells: Iterable[dict[str, Any]]) -> list[int]:
    """Rows of the images that the page holds, each once: the worst of each kind, then those behind confusions."""
    rows = dict.fromkeys(row for images in worst.values() for row in images)
    wrong = [cell for cell in cells if cell["true"] != cell["shown"]]
    wrong.sort(
        key=lambda cell: min(cell["true"], cell["shown"]) < 0
    )  # missed and background after one class for another
    for turn in range(OF_A_CELL):  # one of each, then a second
        for cell in wrong:
            images = list(dict.fromkeys(example[0] for example in cell["examples"]))
            if turn < len(images) and len(rows) < MOST:
                rows.setdefault(images[turn])
    return list(rows)[:MOST]


def picture(given: Given, row: int) -> dict[str, Any]:
    """One image: a small JPEG (empty if it cannot be read), and its objects and detections as the page draws them.

    Boxes are (x, y, w, h) as shares of the image; objects and detections tell their row, by which confusions name them.
    """
    data, index = given.evaluation.data, given.index
    own = int(given.rows[row])
    height, width = data.images[row, 1:].tolist()
    scale = np.array([width, height, width, height], dtype=np.float64)
    return {
        "file": index.files[own],
        "width": width,
        "height": height,
        "jpeg": _jpeg(given, own),
        "objects": _objects(given, row, scale),
        "found": _detections(given, row, scale),
    }


def _objects(given: Given, row: int, scale: Floats) -> list[list[Any]]:
    """[row, x, y, w, h, class, state] with state `found`, `missed` or `crowd`."""
    data = given.evaluation.data
    unfound = set(given.confusion.object[given.confusion.found < 0].tolist())
    place = {head: k for k, head in enumerate(data.classes)}
    found = []
    for a in np.flatnonzero(data.annotation_image == row)[:BOXES].tolist():
        head, crowd = data.annotation_labels[a].tolist()
        state = "crowd" if crowd else "missed" if a in unfound else "found"
        found.append([a, *_box(data.annotations[a, :4] / scale), place[head], state])
    return found


def _detections(given: Given, row: int, scale: Floats) -> list[list[Any]]:
    """[row, x, y, w, h, class, score, kind] of those that score the threshold; kind is empty of a right one."""
    data, errors = given.evaluation.data, given.errors
    names = {number: kind for kind, number in NUMBER.items()} | {RIGHT: ""}
    own = np.flatnonzero(data.detection_image[errors.found] == row)
    place = {head: k for k, head in enumerate(data.classes)}
    found = []
    for e in own[:BOXES].tolist():
        d = int(errors.found[e])
        score = float(data.detections[d, 4])
        if score >= given.threshold:
            kind = "crowd" if errors.ignored[e] else names[int(errors.kind[e])]
            box = _box(data.detections[d, :4] / scale)
            found.append([d, *box, place[int(data.detection_labels[d])], round(score, 3), kind])
    return found


def _box(shares: Floats) -> list[float]:
    return [round(float(v), 4) for v in shares]


def _jpeg(given: Given, own: int) -> str:
    index = given.index
    try:
        image = decode_seen(index.images, index.files[own], index.image_id(own), index.size(own))
    except (ValueError, OSError):
        return ""  # the page says so; a report is no place to fail for one picture
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
