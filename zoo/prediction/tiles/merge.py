"""Detections of the tiles of an image, and of the whole, as those of the image: nothing twice, nothing in pieces.

A detector of sets finds an object once in a view, so two detections of one view are never taken for the same object,
however much they overlap: identical neighbours stay. Only detections of different views and one class are compared:

1. A box that ends at an inner edge of its tile is a part. If another view shows more of the object, the part goes.
2. Parts of an object that no view shows whole are joined: both reach over all that their tiles share, one cut on the
   side of the other, and at one height (or width).
3. What is left overlaps from view to view as the same object seen twice: joined best overlap first, one of a view to
   one of another.

Of the whole image only what no tile need show whole takes part (`views.worth_it`).

Suppression by overlap alone (NMS), and joining all that overlaps (NMM), lose neighbours of a crowd and objects inside
others of their class; `benchmarks/tiles.py` measures them beside this rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from zoo.contract.batch import Detections
from zoo.contract.tiles import Tile
from zoo.prediction.tiles.overlaps import Floats, Integers, Pairs, areas, touching

Flags = np.typing.NDArray[np.bool_]
SAME = 0.4  # IoU of two views of one object
COVERED = 0.7  # share of a part that the whole object covers
CREDIBLE = 0.5  # score of the whole object over that of its part
LEVEL = 0.6  # share of the shorter part's height (or width) that two parts have in common
_EDGE = 0.05  # of a tile's side, within which a box ends at its edge
_BOX = 0.1  # and of the box's own side
_OUTWARD = np.array([-1.0, -1.0, 1.0, 1.0])  # of left, top, right, bottom


class View(NamedTuple):
    """A tile, or the whole image, and what was found in it; boxes in pixels of the image."""

    tile: Tile
    detections: Detections


class _Boxes(NamedTuple):
    """Boxes of one class, each of one or more views."""

    boxes: Floats  # [n, 4] xyxy
    scores: Floats  # [n]
    views: Integers  # [n] of the tile that it was found in; for a joined box that of its best part
    cut: Flags  # [n, 4] left, top, right, bottom: ends at an inner edge of its tile there
    near: Floats  # [n, 4] pixels by which it may end before an edge and still be cut there
    fine: Floats  # [n] minus the area of its view: of two views the smaller shows an object larger
    seen: list[int]  # [n] bits of all views that it is of

    def only(self, kept: Flags) -> _Boxes:
        seen = [bits for bits, keep in zip(self.seen, kept.tolist(), strict=True) if keep]
        return _Boxes(
            self.boxes[kept], self.scores[kept], self.views[kept], self.cut[kept], self.near[kept],
            self.fine[kept], seen,
        )  # fmt: skip


def merge(views: Sequence[View], size: tuple[int, int], most: int | None = None) -> Detections:
    """The detections of an image of (h, w) `size`, best first, without masks.

    A score is the best of all that were joined, so nothing that a view finds falls below a threshold.

    Args:
        views: of the image.
        size: of the image.
        most: of a class that are looked at, the best; None for all.
    """
    tiles = [view.tile for view in views]
    boxes = torch.cat([view.detections.boxes_xyxy for view in views]).double().numpy()
    scores = torch.cat([view.detections.scores for view in views]).double().numpy()
    labels = torch.cat([view.detections.labels for view in views]).numpy()
    of_view = np.repeat(np.arange(len(views)), [len(view.detections.scores) for view in views])
    near = _near(boxes, of_view, tiles)
    fine = -np.array([tile.height * tile.width for tile in tiles], dtype=np.float64)[of_view]
    cut = _cut(boxes, near, of_view, tiles, size)
    merged: list[tuple[int, _Boxes]] = []
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        if most is not None and len(own) > most:
            own = own[np.argsort(-scores[own], kind="stable")[:most]]
        seen = [1 << view for view in of_view[own].tolist()]
        found = _Boxes(boxes[own], scores[own], of_view[own], cut[own], near[own], fine[own], seen)
        merged.append((label, merge_class(found, tiles)))
    if not merged:
        return Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    found_scores = np.concatenate([one.scores for _, one in merged])
    found_labels = np.concatenate([np.full(len(one.scores), label) for label, one in merged])
    found_boxes = np.concatenate([one.boxes for _, one in merged])
    order = np.argsort(-found_scores, kind="stable")
    return Detections(
        torch.from_numpy(found_scores[order]).float(),
        torch.from_numpy(found_labels[order]).long(),
        torch.from_numpy(found_boxes[order]).float(),
    )


def _near(boxes: Floats, of_view: Integers, tiles: Sequence[Tile]) -> Floats:
    """[n, 4] how far from an edge of its tile a box may end and still be cut there: boxes are a little off."""
    sides = np.array([[t.width, t.height] for t in tiles], dtype=np.float64).reshape(-1, 2)
    own = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return np.tile(np.minimum(_EDGE * sides[of_view], 1 + _BOX * own), 2)


def _cut(
    boxes: Floats, near: Floats, of_view: Integers, tiles: Sequence[Tile], size: tuple[int, int]
) -> Flags:
    """[n, 4] whether each box ends at the left, top, right, bottom edge of its tile, and the image goes on there."""
    inner = np.array([[t.left > 0, t.top > 0, t.right < size[1], t.bottom < size[0]] for t in tiles])
    beyond = (boxes - _edges(tiles)[of_view]) * _OUTWARD
    found: Flags = inner.reshape(-1, 4)[of_view] & (beyond > -near)
    return found


def _edges(tiles: Sequence[Tile]) -> Floats:
    """[V, 4] left, top, right, bottom."""
    return np.array([[t.left, t.top, t.right, t.bottom] for t in tiles], dtype=np.float64).reshape(-1, 4)


def merge_class(found: _Boxes, tiles: Sequence[Tile]) -> _Boxes:
    """The three steps for the boxes of one class."""
    joined = _joined_parts(_without_parts(found), tiles)
    return _once(_without_parts(joined))  # a third tile may show a corner of what two have shown together


def _without_parts(found: _Boxes) -> _Boxes:
    """Step 1: parts that another view shows more of go, and leave it their score if that is the higher one.

    It shows more if it covers the part, reaches further on a side on which the part is cut, and on no side on which one
    of them is cut does the part reach further. So a whole object that ends near an edge by chance takes its parts too;
    and if it is not cut in one view, it is no part in another.
    """
    if not found.cut.any():
        return found
    pairs, size = touching(found.boxes, found.views), areas(found.boxes)
    iou = pairs.shared / np.maximum(size[pairs.first] + size[pairs.second] - pairs.shared, 1e-9)
    parts = np.concatenate([pairs.first, pairs.second])
    wholes = np.concatenate([pairs.second, pairs.first])
    shared, iou = np.tile(pairs.shared, 2), np.tile(iou, 2)
    same = (iou >= SAME) & ~found.cut[wholes].any(axis=1)
    good = found.cut[parts].any(axis=1) & (same | (shared >= COVERED * size[parts]))
    good &= found.scores[wholes] >= CREDIBLE * found.scores[parts]
    parts, wholes, iou, same = parts[good], wholes[good], iou[good], same[good]
    further = (found.boxes[wholes] - found.boxes[parts]) * _OUTWARD  # [P, 4] of the whole, beyond the part
    near = found.near[parts]
    good = (found.cut[parts] & (further > near)).any(axis=1)
    good &= ((further > -near) | ~found.cut[wholes]).all(axis=1)
    good &= ((further > -near - found.near[wholes]) | ~found.cut[parts]).all(axis=1)
    good |= same
    parts, wholes, iou = parts[good], wholes[good], iou[good]
    scores, into = found.scores.copy(), list(range(len(size)))
    for n in np.argsort(-iou, kind="stable").tolist():  # the best fit gets the score
        part, more = int(parts[n]), int(wholes[n])
        while into[more] != more:
            more = into[more]
        if into[part] == part and more != part:
            into[part] = more
            scores[more] = max(scores[more], scores[part])
    return found._replace(scores=scores).only(np.array(into) == np.arange(len(into)))


def _joined_parts(found: _Boxes, tiles: Sequence[Tile]) -> _Boxes:
    """Step 2: parts that go on in each other become one box around both."""
    rows = np.flatnonzero(found.cut.any(axis=1))
    if len(rows) < 2:
        return found
    boxes, views, cut = found.boxes[rows], found.views[rows], found.cut[rows]
    pairs = touching(boxes, views, near=2 * float(found.near[rows].max()))
    firsts, seconds, fits = [], [], []
    edges, slack = _edges(tiles), found.near[rows]
    for axis in (0, 1):
        for one, other in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
            # `one` is on the left (above) and cut at its right (bottom) side, where `other` goes on
            begins, ends = edges[views[other], axis], edges[views[one], axis + 2]
            good = cut[one, axis + 2] & cut[other, axis]
            good &= (edges[views[one], axis] < begins) & (begins <= ends)
            good &= boxes[one, axis] <= begins + slack[one, axis]
            good &= boxes[other, axis + 2] >= ends - slack[other, axis]
            low = np.maximum(boxes[one, 1 - axis], boxes[other, 1 - axis])
            high = np.minimum(boxes[one, 3 - axis], boxes[other, 3 - axis])
            sides = boxes[:, 3 - axis] - boxes[:, 1 - axis]
            common = np.maximum(high - low, 0)
            level = common / np.maximum(np.minimum(sides[one], sides[other]), 1e-9)
            good &= level >= LEVEL
            firsts.append(one[good])
            seconds.append(other[good])
            together = sides[one] + sides[other] - common
            fits.append((common / np.maximum(together, 1e-9))[good])
    first, second, fit = (np.concatenate(column) for column in (firsts, seconds, fits))
    order = np.argsort(-fit, kind="stable")
    return _united(found, rows[first[order]], rows[second[order]], around=True)


def _once(found: _Boxes) -> _Boxes:
    """Step 3: views of one object become its best one."""
    pairs: Pairs = touching(found.boxes, found.views)
    size = areas(found.boxes)
    iou = pairs.shared / np.maximum(size[pairs.first] + size[pairs.second] - pairs.shared, 1e-9)
    good = iou >= SAME
    pairs, iou = pairs.only(good), iou[good]
    order = np.argsort(-iou, kind="stable")
    return _united(found, pairs.first[order], pairs.second[order], around=False)


def _united(found: _Boxes, first: Integers, second: Integers, around: bool) -> _Boxes:
    """Boxes joined pair by pair, in the order given, unless that would join two of one view.

    With `around` they become the box around all, else the best of them: the least cut, then of the highest score.
    """
    leader = list(range(len(found.scores)))
    seen = list(found.seen)

    def head(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    joined = False
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        a, b = head(one), head(other)
        if a != b and not seen[a] & seen[b]:
            leader[b], seen[a], joined = a, seen[a] | seen[b], True
    if not joined:
        return found
    groups: dict[int, list[int]] = {}
    for row in range(len(leader)):
        groups.setdefault(head(row), []).append(row)
    ends = found.cut.sum(axis=1)
    boxes, scores, cut = found.boxes.copy(), found.scores.copy(), found.cut.copy()
    for row, members in groups.items():
        if len(members) > 1:
            every = found.boxes[members]
            scores[row] = found.scores[members].max()
            if around:
                low, high = every[:, :2].argmin(axis=0), every[:, 2:].argmax(axis=0)
                outer = [members[n] for n in (*low.tolist(), *high.tolist())]
                boxes[row] = found.boxes[outer, range(4)]
                cut[row] = found.cut[outer, range(4)]
            else:
                best = max(members, key=lambda m: (-ends[m], found.scores[m], found.fine[m]))
                boxes[row], cut[row] = found.boxes[best], found.cut[best]
    kept = np.zeros(len(leader), dtype=bool)
    kept[list(groups)] = True
    return _Boxes(boxes, scores, found.views, cut, found.near, found.fine, seen).only(kept)
