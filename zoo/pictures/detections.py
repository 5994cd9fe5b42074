"""Pictures for people: detections, ground truth, training images, galleries and curves.

Everything is painted with Pillow and its built-in font, curves with matplotlib's Agg canvas, so no
display, no font file and no global plotting state is needed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from torch import Tensor

from zoo.contract.batch import RLE, Annotations, Batch, Detections
from zoo.contract.boxes import cxcywh_to_xyxy
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.pictures.painting import (
    INK,
    LEGIBLE,
    PAPER,
    Colour,
    Corners,
    Font,
    Layer,
    Mask,
    Picture,
    canvas,
    colour_of,
    font_of,
    name_of,
    owners_of,
    paint,
    reduced,
    seen_rgb,
    shade,
    shortened,
)

History = Mapping[str, Sequence[tuple[float, float]]]

PADDING: Colour = (205, 205, 205)
GAP = 10


class _Labelled(NamedTuple):
    """One box to paint; later boxes cover earlier ones."""

    box: tuple[float, float, float, float]  # xyxy, pixels of the picture
    colour: Colour
    text: str


def paint_detections(
    image: Tensor | Picture,
    detections: Detections,
    label_map: LabelMap,
    threshold: float = 0.3,
    longest: int | None = None,
) -> Picture:
    """The image with every detection that scores at least `threshold`: box, class name, score, and its mask.

    With masks, objects of one class differ in shade.

    Args:
        image: PIL image or [3, h, w] uint8, of the size that `detections` refer to.
        detections: of this image.
        label_map: names the classes.
        threshold: lowest score shown.
        longest: longer side of the picture; None keeps the image's own, enlarged where too small to
            read a label on.
    """
    picture, scale = canvas(image, longest)
    kept = (detections.scores >= threshold).nonzero()[:, 0]
    labels, scores = detections.labels[kept].tolist(), detections.scores[kept].tolist()
    masks = None if detections.masks is None else [detections.masks[k] for k in kept.tolist()]
    colours = _colours(label_map, labels, shaded=masks is not None)
    boxes = [
        _Labelled(tuple(box), colour, f"{name_of(label_map, head)} {score:.2f}")
        for box, colour, head, score in zip(
            (detections.boxes_xyxy[kept] * scale).tolist(), colours, labels, scores, strict=True
        )
    ]
    return _paint_boxes(_masked(picture, masks, colours), boxes[::-1])  # best on top


def paint_annotations(
    image: Tensor | Picture, annotations: Annotations, label_map: LabelMap, longest: int | None = None
) -> Picture:
    """The image with its ground truth, masks included, crowds marked. `annotations` are of this image alone."""
    picture, scale = canvas(image, longest)
    xywh = annotations.boxes_xywh
    corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1) * scale
    colours = _colours(label_map, annotations.labels.tolist(), shaded=annotations.segmentations is not None)
    rows = zip(
        corners.tolist(), colours, annotations.labels.tolist(), annotations.crowd.tolist(), strict=True
    )
    return _paint_boxes(
        _masked(picture, annotations.segmentations, colours),
        [
            _Labelled(tuple(box), colour, name_of(label_map, head) + (" (crowd)" if crowd else ""))
            for box, colour, head, crowd in rows
        ],
    )


def compare(
    image: Tensor | Picture,
    detections: Detections,
    annotations: Annotations,
    label_map: LabelMap,
    threshold: float = 0.3,
    longest: int = LEGIBLE,
) -> Picture:
    """Prediction on the left, ground truth on the right, each with its caption."""
    found = int((detections.scores >= threshold).sum())
    return gallery(
        [
            paint_detections(image, detections, label_map, threshold, longest),
            paint_annotations(image, annotations, label_map, longest),
        ],
        columns=2,
        captions=[
            f"prediction: {found} with score >= {threshold:g}",
            f"ground truth: {len(annotations.labels)}",
        ],
    )


def annotations_of(batch: Batch, index: int) -> Annotations:
    """The annotations of one image of a batch, ready for `paint_annotations`.

    Raises:
        ValueError: if the batch carries none, as in training.
    """
    if batch.annotations is None:
        raise ValueError("the batch has no annotations; take it from a val or test dataloader")
    return batch.annotations.part(index, index + 1)


def training_gallery(
    batch: Batch,
    label_map: LabelMap,
    input: InputContract,
    limit: int = 8,
    columns: int = 4,
    names: Sequence[str] | None = None,
) -> Picture:
    """Training images as the network gets them, after augmentation and padding, with their boxes and masks.

    Padding is painted grey. The caption gives image id, objects, and size of the input in pixels.

    Args:
        batch: uint8, or normalised by `input`, whose mean and std are then undone.
        label_map: names the classes.
        input: the contract that the images were made by.
        limit: images shown at most.
        columns: of the grid.
        names: of the images in their captions, instead of their ids.
    """
    pictures, captions, start = [], [], 0
    height, width = batch.images.shape[-2:]
    for index, count in enumerate(batch.targets.counts[:limit]):
        rows = slice(start, start + count)
        start += count
        pixels = _viewable(batch.images[index], input)
        inside = ~batch.padding[index].cpu()
        pixels[:, ~inside] = torch.tensor(PADDING, dtype=torch.uint8)[:, None]
        used = int(inside.any(dim=0).sum()), int(inside.any(dim=1).sum())
        picture, scale = canvas(pixels, LEGIBLE)
        corners = cxcywh_to_xyxy(batch.targets.boxes[rows].cpu()) * torch.tensor([*used, *used]) * scale
        heads = batch.targets.labels[rows].tolist()
        masks = None if batch.targets.masks is None else batch.targets.masks[rows].cpu().numpy()
        colours = _colours(label_map, heads, shaded=masks is not None)
        boxes = [
            _Labelled(tuple(box), colour, name_of(label_map, head))
            for box, colour, head in zip(corners.tolist(), colours, heads, strict=True)
        ]
        if masks is not None:
            picture = _painted(picture, list(masks), colours)
        pictures.append(_paint_boxes(picture, boxes))
        name = f"image {batch.image_ids[index]}" if names is None else names[index]
        captions.append(f"{name}: {count} objects, {width}x{height}")
    return gallery(pictures, min(columns, max(len(pictures), 1)), captions)


def gallery(
    pictures: Sequence[Picture],
    columns: int = 4,
    captions: Sequence[str] | None = None,
    longest: int = 2 * LEGIBLE + GAP,
) -> Picture:
    """Pictures in a grid on white, row by row, each under its caption.

    Larger ones are reduced to a longer side of `longest`.

    Raises:
        ValueError: if there is no picture, no column, or not one caption for each picture.
    """
    if not pictures or columns < 1 or (captions is not None and len(captions) != len(pictures)):
        number = "no" if captions is None else len(captions)
        raise ValueError(
            f"gallery of {len(pictures)} pictures in {columns} columns with {number} captions; needs at least "
            "one picture, one column, and one caption for each picture or none"
        )
    fitted = [reduced(picture, longest) for picture in pictures]
    font = font_of(15)
    head = 24 if captions else 0
    rows = [range(start, min(start + columns, len(fitted))) for start in range(0, len(fitted), columns)]
    widths = [max(p.width for p in fitted[column::columns]) for column in range(min(columns, len(fitted)))]
    heights = [head + max(fitted[k].height for k in row) for row in rows]
    sheet = Image.new(
        "RGB", (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(rows) + 1)), PAPER
    )
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for k, width in zip(row, widths, strict=False):  # the last row may be short
            if captions:
                pen.text((left, top), shortened(captions[k], font, width), INK, font)
            sheet.paste(fitted[k], (left, top + head))
            left += width + GAP
        top += height + GAP
    return sheet


def curves(
    history: History,
    path: str | os.PathLike[str],
    bands: Mapping[str, tuple[float, float]] | None = None,
    best: int | None = None,
) -> None:
    """Writes a PNG with losses on the left and scores on the right.

    Args:
        history: name -> [(step, value)]. Names whose last part starts with AP, AR, segm_ or PQ are scores, all
            others losses; a loss with more than 200 points is shown with its running mean.
        path: of the PNG.
        bands: name -> bootstrap interval of its value at the step `best`.
        best: step of the weights that the intervals are of; None: each curve's last.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = {
        n: v for n, v in history.items() if n.rsplit("/", 1)[-1].startswith(("AP", "AR", "segm_", "PQ")) and v
    }
    losses = {n: v for n, v in history.items() if n not in scores and v}
    panels = [(title, lines) for title, lines in (("loss", losses), ("score", scores)) if lines]
    figure = Figure(figsize=(6.4 * max(len(panels), 1), 4.2), dpi=110, layout="constrained")
    for column, (title, lines) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), column)
        for number, (name, points) in enumerate(lines.items()):
            colour = f"C{number % 10}"
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) <= 30 else None
            if title == "loss" and len(points) > 200:
                axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
                values = _running_mean(values, len(values) // 50)
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=name)
            if bands and name in bands:
                low, high = bands[name]
                label = f"95% of {name}: [{low:.2f}, {high:.2f}]"
                there = (steps[-1] if best is None else best,) * 2
                axes.plot(
                    there, (low, high), color=colour, marker="_", markersize=10, linewidth=1.2, label=label
                )
        axes.set(xlabel="step", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    FigureCanvasAgg(figure).print_png(os.fspath(path))


def _running_mean(values: Sequence[float], window: int) -> tuple[float, ...]:
    """Mean of the last `window` values at each point, of fewer at the start."""
    total, means = 0.0, []
    for k, value in enumerate(values):
        total += value - (values[k - window] if k >= window else 0.0)
        means.append(total / min(k + 1, window))
    return tuple(means)


def _viewable(image: Tensor, input: InputContract) -> Tensor:
    """[3, h, w] uint8 copy; undoes the normalisation of a float image."""
    if image.dtype == torch.uint8:
        return seen_rgb(image.cpu()).clone()
    pixels = image.detach().cpu().to(torch.float32)
    if input.mean:
        pixels = pixels * torch.tensor(input.std).view(-1, 1, 1) + torch.tensor(input.mean).view(-1, 1, 1)
    return seen_rgb((pixels * 255).round().clamp(0, 255).to(torch.uint8)).clone()


def _colours(label_map: LabelMap, heads: Sequence[int], shaded: bool) -> list[Colour]:
    """The colour of each object: that of its class or, if `shaded`, another shade for each object of a class."""
    seen: Counter[int] = Counter()
    colours = []
    for head in heads:
        colours.append(shade(colour_of(label_map, head), seen[head] if shaded else 0))
        seen[head] += 1
    return colours


def _masked(picture: Picture, masks: Sequence[RLE] | None, colours: Sequence[Colour]) -> Picture:
    if not masks:
        return picture
    return _painted(picture, [coco_mask.decode(mask).astype(bool) for mask in masks], colours)


def _painted(picture: Picture, masks: Sequence[Mask], colours: Sequence[Colour]) -> Picture:
    """The picture under its masks, the first of those that overlap on top."""
    if not len(masks):
        return picture
    line = max(1.0, min(picture.size) / 600)
    layers = [Layer(colour, opacity=0.5, line=1.5 * line) for colour in colours]
    return paint(picture, owners_of(masks, masks[0].shape), layers)


def _paint_boxes(picture: Picture, boxes: Sequence[_Labelled]) -> Picture:
    """Outlines first, then labels, so that no outline runs through a label."""
    pen = ImageDraw.Draw(picture, "RGBA")
    shorter = min(picture.size)
    thickness = max(2, round(shorter / 300))
    font = font_of(max(12, min(26, round(shorter / 34))))
    for box, colour, _ in boxes:
        corners = _within(box, picture.size)
        outer = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
        pen.rectangle(outer, outline=(0, 0, 0, 110), width=1)
        pen.rectangle(corners, outline=colour, width=thickness)
    tags = [_Tag(_within(box, picture.size), colour, text, font) for box, colour, text in boxes]
    placed: list[Corners] = []
    for tag in reversed(tags):  # the best detections choose their place first
        placed.append(tag.place(pen, picture.size, placed))
    for tag, place in zip(tags, reversed(placed), strict=True):
        tag.paint(pen, place)
    return picture


def _within(box: Sequence[float], size: tuple[int, int]) -> Corners:
    """Whole pixels inside the picture, corners in order: detections are not clipped."""
    (x0, x1), (y0, y1) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    right, bottom = size[0] - 1, size[1] - 1
    left, top = min(max(round(x0), 0), right), min(max(round(y0), 0), bottom)
    return left, top, max(left, min(round(x1), right)), max(top, min(round(y1), bottom))


class _Tag(NamedTuple):
    """A label on its colour, belonging to a box."""

    corners: Corners
    colour: Colour
    text: str
    font: Font

    def place(self, pen: ImageDraw.ImageDraw, size: tuple[int, int], taken: Sequence[Corners]) -> Corners:
        """Above the box, else inside its top, below it, or at its right; above if all are taken."""
        width = int(pen.textbbox((0, 0), self.text, font=self.font)[2]) + 6
        height = int(pen.textbbox((0, 0), "Ag", font=self.font)[3]) + 3
        x0, y0, x1, y1 = self.corners
        places = []
        for left, top in ((x0, y0 - height), (x0, y0), (x0, y1 + 1), (x1 + 1, y0), (x1 - width, y0 - height)):
            left, top = max(0, min(left, size[0] - width)), max(0, min(top, size[1] - height))
            places.append((left, top, left + width - 1, top + height - 1))
        return next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])

    def paint(self, pen: ImageDraw.ImageDraw, place: Corners) -> None:
        """Filled with the colour; black or white text, whichever reads better."""
        pen.rectangle(place, fill=(*self.colour, 235))
        red, green, blue = self.colour
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        pen.text((place[0] + 3, place[1] + 1), self.text, (0, 0, 0) if bright else (255, 255, 255), self.font)


def _overlap(a: Corners, b: Corners) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
