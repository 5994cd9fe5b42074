"""A panoptic segmentation of one image, and COCO's file format for it: an id map as PNG, and json.

In the PNG a pixel's colour is the id of its segment, R + 256 G + 65536 B. Id 0 is void, no segment, unless
a segment 0 is listed: DETR's official code numbers its segments from 0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from zoo.contract.labels import LabelMap
from zoo.contract.pixels import open_image

VOID = 0
_IDS = 256**3  # number of colours


class Segment(NamedTuple):
    """One thing or one kind of stuff in an image."""

    id: int  # its value in the id map
    label: int  # head index
    is_thing: bool
    area: int  # pixels of the id map
    crowd: bool = False  # a group of objects that were not separated; ground truth only
    score: float | None = None  # predictions only


@dataclass(frozen=True, eq=False)
class PanopticSegmentation:
    """Every pixel belongs to one segment or to none; on the CPU, at the original size of the image."""

    ids: Tensor  # [h, w] int32
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int32 or self.ids.ndim != 2 or self.ids.device.type != "cpu":
            raise ValueError(
                f"id map of shape {tuple(self.ids.shape)}, {self.ids.dtype} on {self.ids.device}; it must be "
                "[h, w] int32 on the CPU"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.ids.shape[0], self.ids.shape[1]

    def masks(self) -> Tensor:
        """[n, h, w] bool: the pixels of each segment, in the order of `segments`."""
        numbers = torch.tensor([s.id for s in self.segments], dtype=torch.int32)
        return self.ids == numbers[:, None, None]

    def faults(self) -> list[str]:
        """Where map and list disagree, one line each; empty where they agree."""
        values, counts = np.unique(self.ids.numpy(), return_counts=True)
        pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        listed = [s.id for s in self.segments]
        found = [f"id {i} is listed twice" for i in sorted({i for i in listed if listed.count(i) > 1})]
        found += [f"id {i} is listed and has no pixel" for i in listed if i not in pixels]
        unlisted = [i for i in pixels if i != VOID and i not in set(listed)]
        found += [f"id {i} has {pixels[i]} pixels and is not listed" for i in unlisted]
        return found

    def to_coco(self, label_map: LabelMap, image_id: int, file_name: str) -> tuple[bytes, dict[str, Any]]:
        """The PNG file's bytes, and the image's entry in the `annotations` of COCO's panoptic json.

        Area and box [x, y, width, height] of each segment are taken from the map.

        Args:
            label_map: turns head indices into source category ids.
            image_id: of the image.
            file_name: of the PNG.

        Raises:
            ValueError: if a label has no class in the map, or an id has no colour.
        """
        ids = self.ids.numpy()
        rows = []
        for segment in self.segments:
            if segment.label not in label_map.source_of_head:
                raise ValueError(
                    f"segment {segment.id} has label {segment.label}, which is no class of the label map; "
                    "write it with the map of the network"
                )
            area, box = _extent(ids == segment.id)
            row = {
                "id": segment.id,
                "category_id": label_map.source_of_head[segment.label],
                "iscrowd": int(segment.crowd),
                "area": area,
                "bbox": box,
                "isthing": int(segment.is_thing),
            }
            rows.append(row if segment.score is None else row | {"score": segment.score})
        entry = {"image_id": image_id, "file_name": file_name, "segments_info": rows}
        return png_of_ids(ids), entry

    @classmethod
    def from_coco(
        cls, png: bytes, segments_info: Sequence[Mapping[str, Any]], label_map: LabelMap
    ) -> PanopticSegmentation:
        """Inverse of `to_coco`: the file's bytes and the image's `segments_info`.

        Raises:
            ValueError: if the PNG is not an id map, or a category is not in the label map.
        """
        ids = ids_of_png(png)
        things = label_map.things
        values, counts = np.unique(ids, return_counts=True)
        pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        segments = []
        for row in segments_info:
            number, category = int(row["id"]), int(row["category_id"])
            if category not in label_map.head_of_source:
                raise ValueError(f"segment {number} has category {category}, which is not in the class list")
            label = label_map.head_of_source[category]
            score = row.get("score")
            segments.append(
                Segment(
                    id=number,
                    label=label,
                    is_thing=label in things,
                    area=pixels.get(number, 0),
                    crowd=bool(row.get("iscrowd", 0)),
                    score=None if score is None else float(score),
                )
            )
        return cls(torch.from_numpy(ids), tuple(segments))


def ids_of_png(png: bytes) -> npt.NDArray[np.int32]:
    """[h, w] ids of a PNG whose colours are ids; a grey PNG has the ids themselves, below 256 or 65536.

    Raises:
        ValueError: if it is not such a PNG.
    """
    try:
        with open_image(io.BytesIO(png), ("PNG",)) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image).astype(np.int32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"no readable PNG: {error}") from error
    if mode in ("RGB", "RGBA"):
        return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    if mode in ("L", "I", "I;16"):
        return pixels
    raise ValueError(
        f"the PNG is in mode {mode}, from which ids cannot be read; write ids as colours, R + 256 G + 65536 B"
    )


def png_of_ids(ids: npt.NDArray[np.integer[Any]]) -> bytes:
    """A PNG whose colours are the ids of an [h, w] map.

    Raises:
        ValueError: if an id is below 0 or has no colour.
    """
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < _IDS:
        raise ValueError(f"ids {int(ids.min())}..{int(ids.max())}; a colour can name 0..{_IDS - 1}")
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colors).save(file, format="PNG")
    return file.getvalue()


def mask_boxes(masks: Tensor) -> Tensor:
    """[n, 4] float32 x0, y0, x1, y1: the first and the last pixel of each [h, w] mask, both inclusive.

    The last pixel is not moved to its far edge; an empty mask has a box of zeros.
    Source: facebookresearch/detr@29901c5 util/box_ops.py, masks_to_boxes
    """
    boxes = torch.zeros(len(masks), 4)
    for row, mask in enumerate(masks):
        columns, lines = mask.any(dim=0).nonzero(), mask.any(dim=1).nonzero()
        if len(columns):
            boxes[row] = torch.stack([columns[0, 0], lines[0, 0], columns[-1, 0], lines[-1, 0]]).float()
    return boxes


def _extent(mask: npt.NDArray[np.bool_]) -> tuple[int, list[int]]:
    """Pixels of a mask, and its box as [x, y, width, height]."""
    columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return 0, [0, 0, 0, 0]
    x, y = int(columns[0]), int(lines[0])
    return int(mask.sum()), [x, y, int(columns[-1]) - x + 1, int(lines[-1]) - y + 1]
