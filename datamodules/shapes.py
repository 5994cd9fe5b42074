"""A made-up data set: circles, squares, triangles and crosses. What `zoo demo` trains on, offline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle", "cross")
MAX_OBJECTS = 5
SIDES = (0.14, 0.45)  # of an object, as shares of the image's side
MIN_CONTRAST = 60  # grey levels between object and background, in one channel at least
_MAX_OVERLAP = 0.3  # of the smaller box, so that no shape hides behind another
_SUPERSAMPLING = 2
_TRIES = 20
_NOISE = 4.0  # grey levels, standard deviation

Points = NDArray[np.float64]  # [n, 2] x, y
Corners = tuple[float, float, float, float]  # x0, y0, x1, y1


class _Shape(NamedTuple):
    label: int
    outline: Points  # pixels of the image
    color: tuple[int, int, int]

    @property
    def box_xyxy(self) -> Corners:
        (x0, y0), (x1, y1) = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)


def generate_shapes(root: str | Path, num_train: int, num_val: int, seed: int, size: int = 128) -> Path:
    """Writes a COCO folder: annotations/instances_{train,val}.json, train/*.png, val/*.png.

    Every image is a function of (seed, split, number) alone.

    Args:
        root: the folder; made if absent.
        num_train: training images.
        num_val: validation images.
        seed: another seed gives other images.
        size: side of the square images in pixels.

    Returns:
        `root` as a path.

    Raises:
        ValueError: if there would be no image, or none that can hold a shape.
    """
    if num_train < 1 or num_val < 1 or size < 16:
        raise ValueError(
            f"{num_train} training and {num_val} validation images of {size} pixels: needs at least 1, 1 "
            "and 16"
        )
    folder = Path(root)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split_number, (split, number) in enumerate((("train", num_train), ("val", num_val))):
        (folder / split).mkdir(exist_ok=True)
        content = _write_split(folder / split, number, (seed, split_number), size)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _write_split(folder: Path, number: int, seed: tuple[int, int], size: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(number):
        image, shapes = paint_image(np.random.default_rng([*seed, image_id]), size)
        name = f"{image_id:05d}.png"
        image.save(folder / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for label, (x0, y0, x1, y1) in shapes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "area": round((x1 - x0) * (y1 - y0), 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def paint_image(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[tuple[int, Corners]]]:
    """One image and its objects as (class, xyxy pixels)."""
    base = rng.integers(0, 256, size=3)
    shapes: list[_Shape] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        shape = _placed(rng, size, base, shapes)
        if shape is not None:
            shapes.append(shape)
    numbers = Image.new("L", (size * _SUPERSAMPLING, size * _SUPERSAMPLING))  # which shape is on top
    large = Image.new("RGBA", numbers.size)
    for number, shape in enumerate(shapes, start=1):
        corners = [(x, y) for x, y in (shape.outline * _SUPERSAMPLING).tolist()]
        ImageDraw.Draw(numbers).polygon(corners, fill=number)
        ImageDraw.Draw(large).polygon(corners, fill=(*shape.color, 255))
    image = _background(rng, size, base)
    # premultiplied, so that edges blend into the background and not into black
    layer = large.convert("RGBa").reduce(_SUPERSAMPLING).convert("RGBA")
    image.paste(layer, (0, 0), layer)
    top = np.asarray(numbers)
    return image, [(s.label, _visible_box(top == number)) for number, s in enumerate(shapes, start=1)]


def _visible_box(painted: NDArray[np.bool_]) -> Corners:
    """The xyxy box, in pixels of the image, around the painted pixels of the supersampled one."""
    columns, rows = np.flatnonzero(painted.any(axis=0)), np.flatnonzero(painted.any(axis=1))
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    x0, y0, x1, y1 = (float(edge) / _SUPERSAMPLING for edge in edges)
    return x0, y0, x1, y1


def _placed(rng: np.random.Generator, size: int, base: NDArray[Any], others: list[_Shape]) -> _Shape | None:
    """A shape wholly inside the image that overlaps no other much; None if there is no room left."""
    label = int(rng.integers(len(CLASSES)))
    color = _contrasting(rng, base)
    for _ in range(_TRIES):
        side = rng.uniform(*SIDES) * size
        outline = _rotated(_outline(label), rng.uniform(0, 2 * math.pi))
        outline *= side / np.ptp(outline, axis=0).max()
        low, high = outline.min(axis=0), outline.max(axis=0)
        outline += rng.uniform(-low, size - high)
        shape = _Shape(label, outline, color)
        if all(_overlap(shape.box_xyxy, other.box_xyxy) <= _MAX_OVERLAP for other in others):
            return shape
    return None


def _contrasting(rng: np.random.Generator, base: NDArray[Any]) -> tuple[int, int, int]:
    while True:
        color = rng.integers(0, 256, size=3)
        if np.abs(color - base).max() >= MIN_CONTRAST:
            return int(color[0]), int(color[1]), int(color[2])


def _background(rng: np.random.Generator, size: int, base: NDArray[Any]) -> Image.Image:
    """A flat colour with noise, always; the same noise in all channels keeps it cheap."""
    noise = rng.normal(0.0, _NOISE, size=(size, size, 1))
    return Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))


def _outline(label: int) -> Points:
    """Corner points around the origin, of any scale."""
    if CLASSES[label] == "circle":
        return _regular(48)
    if CLASSES[label] == "square":
        return _regular(4)
    if CLASSES[label] == "triangle":
        return _regular(3)
    a, t = 0.33, 1.0  # half the width of an arm, and its reach
    corners = [
        (a, t),
        (a, a),
        (t, a),
        (t, -a),
        (a, -a),
        (a, -t),
        (-a, -t),
        (-a, -a),
        (-t, -a),
        (-t, a),
        (-a, a),
        (-a, t),
    ]
    return np.array(corners)


def _regular(corners: int) -> Points:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotated(points: Points, angle: float) -> Points:
    c, s = math.cos(angle), math.sin(angle)
    rotated: Points = points @ np.array([[c, s], [-s, c]])
    return rotated


def _overlap(a: Corners, b: Corners) -> float:
    """Share of the smaller box that the other one covers."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(w, 0.0) * max(h, 0.0) / smaller
