"""Pictures for people: detections, ground truth, training images, galleries and curves.

Everything is drawn with Pillow and its built-in font, curves with matplotlib's Agg canvas, so no
display, no font file and no global plotting state is needed.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoo.batch import Annotations, Batch, Detections
from zoo.boxes import cxcywh_to_xyxy
from zoo.labels import LabelMap
from zoo.preprocess import InputContract

Picture = Image.Image
Colour = tuple[int, int, int]
Corners = tuple[int, int, int, int]  # xyxy, whole pixels, both ends inside
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
History = Mapping[str, Sequence[tuple[float, float]]]

LEGIBLE = 480  # pictures with a longer side below this are enlarged before anything is drawn on them
PAPER: Colour = (255, 255, 255)
INK: Colour = (40, 40, 40)
PADDING: Colour = (205, 205, 205)
GAP = 10


class _Labelled(NamedTuple):
    """One box to draw; later boxes cover earlier ones."""

    box: tuple[float, float, float, float]  # xyxy, pixels of the picture
    head: int
    text: str


def class_colour(head: int) -> Colour:
    """A bright colour for a head index, the same in every picture and run.

    Hues step by the golden ratio, so that neighbouring indices, often used together, stay apart.
    """
    hue = (0.58 + head * 0.6180339887) % 1.0
    lightness = (0.55, 0.42, 0.66)[head // 7 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Tensor | Picture,
    detections: Detections,
    label_map: LabelMap,
    threshold: float = 0.3,
    longest: int | None = None,
) -> Picture:
    """The image with every detection that scores at least `threshold`: outline, class name, score.

    Args:
        image: PIL image or [3, h, w] uint8, of the size that `detections` refer to.
        detections: of this image.
        label_map: names the classes.
        threshold: lowest score drawn.
        longest: longer side of the picture; None keeps the image's own, enlarged where too small to
            read a label on.
    """
    picture, scale = _canvas(image, longest)
    kept = detections.scores >= threshold
    rows = zip(
        (detections.boxes_xyxy[kept] * scale).tolist(),
        detections.labels[kept].tolist(),
        detections.scores[kept].tolist(),
        strict=True,
    )
    boxes = [
        _Labelled(tuple(box), head, f"{_name(label_map, head)} {score:.2f}") for box, head, score in rows
    ]
    return _draw(picture, boxes[::-1])  # best on top


def draw_annotations(
    image: Tensor | Picture, annotations: Annotations, label_map: LabelMap, longest: int | None = None
) -> Picture:
    """The image with its ground truth, crowds marked. `annotations` are those of this image alone."""
    picture, scale = _canvas(image, longest)
    xywh = annotations.boxes_xywh
    corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1) * scale
    rows = zip(corners.tolist(), annotations.labels.tolist(), annotations.crowd.tolist(), strict=True)
    return _draw(
        picture,
        [
            _Labelled(tuple(box), head, _name(label_map, head) + (" (crowd)" if crowd else ""))
            for box, head, crowd in rows
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
            draw_detections(image, detections, label_map, threshold, longest),
            draw_annotations(image, annotations, label_map, longest),
        ],
        columns=2,
        captions=[
            f"prediction: {found} with score >= {threshold:g}",
            f"ground truth: {len(annotations.labels)}",
        ],
    )


def annotations_of(batch: Batch, index: int) -> Annotations:
    """The annotations of one image of a batch, ready for `draw_annotations`.

    Raises:
        ValueError: if the batch carries none, as in training.
    """
    if batch.annotations is None:
        raise ValueError("the batch has no annotations; take it from a val or test dataloader")
    flat = batch.annotations
    start = sum(flat.counts[:index])
    rows = slice(start, start + flat.counts[index])
    return Annotations(
        flat.boxes_xywh[rows],
        flat.areas[rows],
        flat.labels[rows],
        flat.crowd[rows],
        (flat.counts[index],),
        None if flat.segmentations is None else flat.segmentations[rows],
    )


def training_gallery(
    batch: Batch, label_map: LabelMap, input: InputContract, limit: int = 8, columns: int = 4
) -> Picture:
    """Training images as the network gets them, after augmentation and padding, with their boxes.

    Padding is drawn grey. The caption gives image id, objects, and size of the input in pixels.

    Args:
        batch: uint8, or normalised by `input`, whose mean and std are then undone.
        label_map: names the classes.
        input: the contract that the images were made by.
        limit: images shown at most.
        columns: of the grid.
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
        picture, scale = _canvas(pixels, LEGIBLE)
        corners = cxcywh_to_xyxy(batch.targets.boxes[rows].cpu()) * torch.tensor([*used, *used]) * scale
        heads = batch.targets.labels[rows].tolist()
        boxes = [
            _Labelled(tuple(box), head, _name(label_map, head))
            for box, head in zip(corners.tolist(), heads, strict=True)
        ]
        pictures.append(_draw(picture, boxes))
        captions.append(f"image {batch.image_ids[index]}: {count} objects, {width}x{height}")
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
        told = "no" if captions is None else len(captions)
        raise ValueError(
            f"gallery of {len(pictures)} pictures in {columns} columns with {told} captions; needs at least "
            "one picture, one column, and one caption for each picture or none"
        )
    fitted = [_reduced(picture, longest) for picture in pictures]
    font = _font(15)
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
                pen.text((left, top), _shortened(captions[k], font, width), INK, font)
            sheet.paste(fitted[k], (left, top + head))
            left += width + GAP
        top += height + GAP
    return sheet


def curves(
    history: History,
    path: str | os.PathLike[str],
    bands: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Writes a PNG with losses on the left and scores on the right.

    Args:
        history: name -> [(step, value)]. Names whose last part starts with AP, AR, segm_ or PQ are scores, all
            others losses; a loss with more than 200 points is drawn with its running mean.
        path: of the PNG.
        bands: name -> bootstrap interval of its last value, drawn at the end of its curve.
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
                end = (steps[-1], steps[-1])
                axes.plot(
                    end, (low, high), color=colour, marker="_", markersize=10, linewidth=1.2, label=label
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


def _canvas(image: Tensor | Picture, longest: int | None) -> tuple[Picture, float]:
    """An RGB copy to draw on, and its size over the image's."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image is {image.dtype} {tuple(image.shape)}; pictures are uint8 [3, h, w]")
        image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    longer = max(image.size)
    scale = (longest or max(longer, LEGIBLE)) / longer
    picture = image.convert("RGB")  # a copy even of an RGB image
    if scale != 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    return picture, scale


def _viewable(image: Tensor, input: InputContract) -> Tensor:
    """[3, h, w] uint8 copy; undoes the normalisation of a float image."""
    if image.dtype == torch.uint8:
        return image.cpu().clone()
    pixels = image.detach().cpu().to(torch.float32)
    if input.mean:
        pixels = pixels * torch.tensor(input.std).view(3, 1, 1) + torch.tensor(input.mean).view(3, 1, 1)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _draw(picture: Picture, boxes: Sequence[_Labelled]) -> Picture:
    """Outlines first, then labels, so that no outline runs through a label."""
    pen = ImageDraw.Draw(picture, "RGBA")
    shorter = min(picture.size)
    thickness = max(2, round(shorter / 300))
    font = _font(max(12, min(26, round(shorter / 34))))
    for box, head, _ in boxes:
        corners = _within(box, picture.size)
        outer = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
        pen.rectangle(outer, outline=(0, 0, 0, 110), width=1)
        pen.rectangle(corners, outline=class_colour(head), width=thickness)
    tags = [_Tag(_within(box, picture.size), class_colour(head), text, font) for box, head, text in boxes]
    placed: list[Corners] = []
    for tag in reversed(tags):  # the best choose first
        placed.append(tag.place(pen, picture.size, placed))
    for tag, place in zip(tags, reversed(placed), strict=True):
        tag.draw(pen, place)
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

    def draw(self, pen: ImageDraw.ImageDraw, place: Corners) -> None:
        """Filled with the colour; black or white text, whichever reads better."""
        pen.rectangle(place, fill=(*self.colour, 235))
        red, green, blue = self.colour
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
        pen.text((place[0] + 3, place[1] + 1), self.text, (0, 0, 0) if bright else (255, 255, 255), self.font)


def _overlap(a: Corners, b: Corners) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _shortened(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _reduced(picture: Picture, longest: int) -> Picture:
    if max(picture.size) <= longest:
        return picture
    scale = longest / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _name(label_map: LabelMap, head: int) -> str:
    return label_map.name_of_head.get(head, f"class {head}")
