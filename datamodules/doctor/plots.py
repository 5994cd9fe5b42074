"""Plots of a data set for the page of a data check: classes, boxes, images."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datamodules.doctor import Examination
from datamodules.doctor.statistics import STRIDES, viewed_boxes

if TYPE_CHECKING:
    from datamodules.index import AnnotationIndex

_COLOURS = ("#2f6fdb", "#e8833a", "#2a9d6f", "#9a5bd1", "#c9485b")
_INK, _GRID = "#33383f", "#d9dde3"
_CLASSES = 40  # rows of the class plot; the others are counted in the caption


def plots(found: Examination) -> list[tuple[str, str]]:
    """(caption, PNG as base64) of each plot that the data set has numbers for."""
    made = [_classes(found), _boxes(found), _shapes(found)]
    return [plot for plot in made if plot is not None]


def _classes(found: Examination) -> tuple[str, str] | None:
    splits, classes = found.source.splits, found.source.classes
    if not classes:
        return None
    ids = list(classes)
    counts = np.array([[int((index.source_ids == i).sum()) for i in ids] for index in splits.values()])
    order = np.argsort(-counts.sum(axis=0), kind="stable")[:_CLASSES]
    rows = len(order)
    figure = Figure(figsize=(10, 1.4 + 0.24 * rows), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / max(1, len(splits))
    for k, split in enumerate(splits):
        places = np.arange(rows) + (k - (len(splits) - 1) / 2) * height
        axes.barh(
            places, np.maximum(counts[k, order], 0), height, color=_COLOURS[k % len(_COLOURS)], label=split
        )
    axes.set_yticks(range(rows), [_short(classes[ids[k]]) for k in order])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    if counts.max(initial=0) > 50 * max(1, int(np.median(counts[counts > 0])) if (counts > 0).any() else 1):
        axes.set_xscale("symlog", linthresh=10)
    _finish(axes, "objects", "", legend=len(splits) > 1)
    axes.grid(axis="y", visible=False)
    more = f"; {len(ids) - rows} rarer ones are not drawn" if len(ids) > rows else ""
    return f"Objects of each class{more}", _png(figure)


def _boxes(found: Examination) -> tuple[str, str] | None:
    sides = {s: viewed_boxes(index, found.view) for s, index in found.source.splits.items()}
    sides = {s: b[(b > 0).all(axis=1)] for s, b in sides.items()}
    if not sum(len(b) for b in sides.values()):
        return None
    figure = Figure(figsize=(13, 3.8), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for k, (split, boxes) in enumerate(sides.items()):
        style = {"histtype": "step", "color": _COLOURS[k % len(_COLOURS)], "linewidth": 1.8, "label": split}
        if len(boxes):
            weights = np.full(len(boxes), 100 / len(boxes))
            left.hist(
                np.clip(boxes.min(axis=1), 1, None), np.geomspace(1, 1500, 50), weights=weights, **style
            )
            ratio = np.clip(boxes[:, 1] / boxes[:, 0], 1 / 16, 16)
            middle.hist(ratio, np.geomspace(1 / 16, 16, 49), weights=weights, **style)
        counts = _counts(found.source.splits[split])
        if len(counts):
            top = max(int(counts.max()), 1)
            edges = np.arange(top + 2) - 0.5 if top <= 60 else np.linspace(-0.5, top + 0.5, 61)
            right.hist(counts, edges, weights=np.full(len(counts), 100 / len(counts)), **style)
    for stride in STRIDES:
        left.axvline(stride, color=_INK, linewidth=0.9, linestyle=":")
        left.text(
            stride, 1.0, f"{stride}", transform=left.get_xaxis_transform(), ha="center", va="bottom", size=8
        )
    left.set_xscale("log")
    middle.set_xscale("log", base=2)
    most = max(int(_counts(index).max(initial=0)) for index in found.source.splits.values())
    if most > found.statistics.queries / 2:
        right.axvline(found.statistics.queries, color="#c9485b", linewidth=1.2)
    _finish(left, f"shorter side, pixels, {found.view.text}", "% of objects", legend=len(sides) > 1)
    _finish(middle, "width / height", "% of objects")
    _finish(right, "objects in an image", "% of images")
    return "Boxes as the network sees them; dotted: the strides of its feature maps", _png(figure)


def _shapes(found: Examination) -> tuple[str, str] | None:
    splits = {s: index for s, index in found.source.splits.items() if len(index)}
    if not splits:
        return None
    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    rng = np.random.default_rng(0)
    for k, (split, index) in enumerate(splits.items()):
        sizes = index.sizes[rng.permutation(len(index))[:4000]]
        left.scatter(
            sizes[:, 1], sizes[:, 0], s=14, alpha=0.35, color=_COLOURS[k % len(_COLOURS)], label=split
        )
    everywhere = np.concatenate([_centres(index) for index in splits.values()])
    if len(everywhere):
        grid, _, _ = np.histogram2d(everywhere[:, 1], everywhere[:, 0], bins=40, range=((0, 1), (0, 1)))
        right.imshow(grid, extent=(0, 1, 1, 0), cmap="magma", aspect="auto")
    _finish(left, "image width, pixels", "height", legend=len(splits) > 1)
    _finish(right, "where the middles of objects lie: share of the width", "share of the height")
    right.grid(visible=False)
    return "Sizes of the images, and places of the objects in them", _png(figure)


def _counts(index: AnnotationIndex) -> np.ndarray:
    return np.diff(index.offsets)


def _centres(index: AnnotationIndex) -> np.ndarray:
    rows = index.image_rows
    middle = index.boxes_xywh[:, :2] + index.boxes_xywh[:, 2:] / 2
    return np.clip(middle / np.maximum(index.sizes[rows][:, ::-1], 1), 0, 1)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:22]}…"


def _finish(axes: Axes, x: str, y: str, legend: bool = False) -> None:
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
