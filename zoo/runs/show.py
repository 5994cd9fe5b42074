"""Images of a data set with their boxes, masks or segments as the reader understood them, in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from datamodules.formats.coco_panoptic import PanopticSource
from datamodules.formats.detect import Format, read
from datamodules.images.decoding import decode_seen
from datamodules.index import AnnotationIndex
from datamodules.loading.mask_truth import coded
from datamodules.loading.panoptic_truth import read_segmentation
from zoo.contract.batch import RLE, Annotations
from zoo.contract.labels import LabelMap
from zoo.pictures.detections import gallery, paint_annotations
from zoo.pictures.painting import INK, LEGIBLE, font_of, shortened
from zoo.pictures.segments import paint_panoptic

GREY = (176, 176, 176)


@dataclass(frozen=True)
class Shown:
    """A picture of some images of a data set.

    Attributes:
        picture: the images in a grid.
        format: of the data set.
        split: that the images are of.
        total: images of that split.
        files: images that are shown.
        broken: image -> why it cannot be decoded; it is a grey tile.
    """

    picture: Image.Image
    format: str
    split: str
    total: int
    files: list[str]
    broken: dict[str, str]


def show(
    folder: str | Path, *, split: str | None = None, count: int = 16, seed: int = 0, format: Format = "auto"
) -> Shown:
    """Images with their boxes, masks or segments as the reader understood them; those with objects come first.

    Args:
        folder: the data set; shards also by their address.
        split: whose images; None for the first split that has any.
        count: of images.
        seed: of the choice of images.
        format: of the data set, `auto` to detect it.

    Raises:
        ValueError: an unknown format or split, or a split without images.
    """
    source = read(folder, format)
    usual = sorted(source.splits, key=lambda n: ("train", "val", "test", n).index(n))
    name = split or next((n for n in usual if len(source.splits[n])), "")
    if name not in source.splits or not len(source.splits[name]):
        counts = ", ".join(f"{n} with {len(index)} images" for n, index in source.splits.items())
        raise ValueError(f"{folder} has no images in a split {name!r}; it has {counts or 'none'}")
    index = source.splits[name]
    rows = chosen(index, count, seed)
    pictures, broken = [], {}
    for row in rows:
        try:
            image = decode_seen(index.images, index.files[row], index.image_id(row), index.size(row))
        except ValueError as error:
            pictures.append(grey_tile(index.files[row]))
            broken[index.files[row]] = str(error)
            continue
        if isinstance(source, PanopticSource):
            pictures.append(painted_segments(source, name, row, image))
        else:
            pictures.append(painted(index, row, image, source.label_map()))
    captions = [f"{Path(index.files[row]).name}: {len(index.objects(row).source_ids)}" for row in rows]
    picture = gallery(pictures, min(4, len(pictures)), captions, longest=LEGIBLE)
    return Shown(picture, source.format, name, len(index), [index.files[row] for row in rows], broken)


def chosen(index: AnnotationIndex, count: int, seed: int) -> list[int]:
    """Rows of random images, in their order; such with objects as long as there are any."""
    order = np.random.default_rng(seed).permutation(len(index))
    filled = np.diff(index.offsets)[order] > 0
    return sorted(np.concatenate([order[filled], order[~filled]])[:count].tolist())


def grey_tile(name: str) -> Image.Image:
    """In place of an image that cannot be decoded."""
    tile = Image.new("RGB", (LEGIBLE, LEGIBLE * 3 // 4), GREY)
    font = font_of(15)
    text = shortened(f"cannot be decoded: {Path(name).name}", font, tile.width - 16)
    ImageDraw.Draw(tile).text((8, tile.height // 2), text, INK, font, anchor="lm")
    return tile


def painted(index: AnnotationIndex, row: int, image: Image.Image, label_map: LabelMap) -> Image.Image:
    """One image with its boxes, class names, and masks where objects have outlines."""
    objects = index.objects(row)
    heads = [label_map.head_of_source[source_id] for source_id in objects.source_ids.tolist()]
    annotations = Annotations(
        torch.from_numpy(objects.boxes_xywh),
        torch.from_numpy(objects.areas),
        torch.tensor(heads, dtype=torch.int64),
        torch.from_numpy(objects.crowd),
        (len(heads),),
        _masks(index, row),
    )
    return paint_annotations(image, annotations, label_map, longest=LEGIBLE)


def _masks(index: AnnotationIndex, row: int) -> tuple[RLE, ...] | None:
    """Of each object, empty where it has none or one of another image size; None where no object has any."""
    height, width = size = index.size(row)
    outlines = [
        None
        if outline is None or (outline.rle and [int(v) for v in outline.rle["size"]] != [*size])
        else outline
        for outline in index.segmentations(row)
    ]
    if not any(outlines):
        return None
    empty: RLE = coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return tuple(empty if outline is None else coded(outline, size) for outline in outlines)


def painted_segments(source: PanopticSource, split: str, row: int, image: Image.Image) -> Image.Image:
    """One image with its segments, read from its PNG."""
    index, label_map = source.splits[split], source.panoptic_label_map("contiguous")
    found = read_segmentation(source.pngs[split].path(index, row), index, row, label_map)
    return paint_panoptic(image, found, label_map, longest=LEGIBLE)
