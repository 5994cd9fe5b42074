"""The tensor contract between data, networks, criterion and evaluation.

Shape letters used in the whole project: B images, H W pixels, T objects of a batch (all images
together), L decoder layers, Q queries, C classes, P matched pairs, N images of an optimizer step.

Boxes are (centre x, centre y, width, height) in [0, 1] of the unpadded image unless a name says
`boxes_xyxy` (absolute pixels) or `boxes_xywh` (absolute pixels, as in a COCO file).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.contract.segments import PanopticSegmentation
from zoo.contract.tiles import Tile

RLE = Mapping[str, Any]  # COCO's run-length code of a mask: size [h, w], compressed counts as bytes
_T = TypeVar("_T")


@dataclass(frozen=True)
class Step:
    """Facts of one whole optimizer step, over all ranks and all accumulated micro-batches.

    With them a micro-batch normalises its losses, sizes its denoising groups and pads its images
    exactly as the undivided batch would.
    """

    counts: Tensor  # [N] int64 on the CPU: objects of every image of the step
    size: tuple[int, int]  # (H, W) of the largest image of the step
    index: int  # global step, counted from 0
    seed: int = 0  # every random draw inside the step is a function of (seed, index, image id)
    epoch: int = 0  # that it belongs to, counted from 0

    @property
    def num_boxes(self) -> int:
        """Objects in the step, at least 1: the divisor of the box losses."""
        return max(int(self.counts.sum()), 1)

    @property
    def max_count(self) -> int:
        """Objects of the fullest image of the step: sizes the denoising groups."""
        return int(self.counts.max()) if self.counts.numel() else 0


class Annotations(NamedTuple):
    """What COCO evaluation needs, as the annotation file has it, before any resize.

    Flat over the images of a batch (`counts` splits it), on the CPU, float64 where COCO is:
    a round trip through normalised float32 boxes moves an AP.
    """

    boxes_xywh: Tensor  # [A, 4] float64, pixels of the original image
    areas: Tensor  # [A] float64, the annotation's own area (of the segmentation where it has one)
    labels: Tensor  # [A] int64, head index
    crowd: Tensor  # [A] bool
    counts: tuple[int, ...]  # annotations of each image, crowds included
    segmentations: tuple[RLE, ...] | None = None  # A masks, in the original image; None without

    def part(self, first: int, last: int) -> Annotations:
        """The annotations of images `first` to `last` - 1."""
        return self._replace(**_part_of_rows(self, first, last))


class Piece(NamedTuple):
    """A view of an image that is evaluated in tiles; the views of an image follow each other.

    Attributes:
        tile: what of the image it shows.
        views: of the image.
        size: (h, w) of the image.
        annotations: of the image, with its last view; None with others.
    """

    tile: Tile
    views: int
    size: tuple[int, int]
    annotations: Annotations | None


class Targets(NamedTuple):
    """The objects of a batch, flat; image b owns `counts[b]` consecutive rows.

    `ignored` are regions that are neither object nor background, `ignored_counts` of them in each image.
    """

    labels: Tensor  # [T] int64 in [0, num_classes)
    boxes: Tensor  # [T, 4] float32
    counts: tuple[int, ...]  # objects of each image; Python integers, read without waiting for the device
    masks: Tensor | None = None  # [T, H, W] bool, padded with False like the images; None without masks
    ignored: Tensor | None = None  # [R, 4] float32; None without such regions
    ignored_counts: tuple[int, ...] | None = None

    def part(self, first: int, last: int) -> Targets:
        """The objects of images `first` to `last` - 1."""
        objects = self._replace(ignored=None, ignored_counts=None)
        part = objects._replace(**_part_of_rows(objects, first, last))
        if self.ignored is None or self.ignored_counts is None:
            return part
        start, stop = sum(self.ignored_counts[:first]), sum(self.ignored_counts[:last])
        return part._replace(ignored=self.ignored[start:stop], ignored_counts=self.ignored_counts[first:last])

    def each_tensor(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """The same objects, with `change` applied to every tensor."""
        tensors: dict[str, Any] = {
            name: change(v) for name, v in self._asdict().items() if isinstance(v, Tensor)
        }
        return self._replace(**tensors)

    @property
    def image_index(self) -> Tensor:
        """[T] int64 on the device of `labels`: the image of each object."""
        images = torch.arange(len(self.counts)).repeat_interleave(
            torch.tensor(self.counts, dtype=torch.int64)
        )
        return images.to(self.labels.device, non_blocking=True)


def _part_of_rows(rows: Annotations | Targets, first: int, last: int) -> dict[str, Any]:
    """The fields of some images: `counts` has one entry for each image, every other field one for each row."""
    start, stop = sum(rows.counts[:first]), sum(rows.counts[:last])
    return {
        name: value[first:last] if name == "counts" else None if value is None else value[start:stop]
        for name, value in rows._asdict().items()
    }


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    `images` are uint8 as the data path delivers them and float after `InputContract.normalize`.
    `image_ids` and `original_sizes` (h, w) name and size the images as they are in the source.
    """

    images: Tensor  # [B, 3, H, W], zero-padded at the bottom and right
    padding: Tensor  # [B, H, W] bool, True on padding
    targets: Targets
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    step: Step | None = None  # None outside training
    annotations: Annotations | None = None  # None in training
    panoptic: tuple[PanopticSegmentation, ...] | None = None  # ground truth of each image; None in training
    # [B, 12] distortions that `InputContract.normalize` applies, see zoo.contract.photometric; None without
    photometric: Tensor | None = None
    pieces: tuple[Piece, ...] | None = None  # what each image is a view of; None where images are not cut

    def __len__(self) -> int:
        return len(self.image_ids)

    def part(self, first: int, last: int) -> Batch:
        """Images `first` to `last` - 1 with everything that belongs to them; the same step."""
        return self._each(lambda value: _part(value, first, last))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Moves what the network and the criterion read; `step`, annotations and segments stay on the CPU."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Called by a DataLoader with `pin_memory=True`."""
        return self._each_tensor(Tensor.pin_memory)

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(value: Any) -> Any:
            if isinstance(value, Targets):
                return value.each_tensor(change)
            return change(value) if isinstance(value, Tensor) else value

        return self._each(changed)

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        # over all fields, so that a new one is included
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def padded_to(self, size: tuple[int, int]) -> Batch:
        """The same batch with images and padding grown to `size` (H, W) at the bottom and right.

        Raises:
            ValueError: if the images are already larger than `size`.
        """
        height, width = self.images.shape[-2:]
        if (height, width) == tuple(size):
            return self
        if height > size[0] or width > size[1]:
            raise ValueError(
                f"images of {height}x{width} do not fit into the step's size {size[0]}x{size[1]}"
            )
        grow = (0, size[1] - width, 0, size[0] - height)
        masks = None if self.targets.masks is None else F.pad(self.targets.masks, grow)
        return replace(
            self,
            images=F.pad(self.images, grow),
            padding=F.pad(self.padding, grow, value=True),
            targets=self.targets._replace(masks=masks),
        )


def _part(value: Any, first: int, last: int) -> Any:
    """Part of a field: None and facts of the whole step stay, all other fields have an entry for each image."""
    if value is None or isinstance(value, Step):
        return value
    if isinstance(value, (Annotations, Targets)):
        return value.part(first, last)
    return value[first:last]


@dataclass(frozen=True)
class Sample:
    """One image after its transform: what a dataset returns and `collate` takes."""

    image: Tensor  # [3, h, w] uint8
    labels: Tensor  # [n] int64
    boxes: Tensor  # [n, 4] float32, cxcywh in [0, 1]
    image_id: int
    original_size: tuple[int, int]  # (h, w) before any transform
    annotations: Annotations | None = None  # counts has one entry; None in training
    masks: Tensor | None = None  # [n, h, w] bool, of the objects in `boxes`; None without masks
    panoptic: PanopticSegmentation | None = None  # ground truth, at the original size; None in training
    photometric: Tensor | None = None  # [12] float32 of a distortion applied on the device; None without
    ignored: Tensor | None = None  # [r, 4] float32 as `boxes`, neither object nor background; None without
    piece: Piece | None = None  # what the image is a view of; None of a whole image, and in training


def collate(
    samples: Sequence[Sample], zeros: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None
) -> Batch:
    """Stacks samples into a batch, zero-padded to the largest height and width among them.

    Args:
        samples: at least one.
        zeros: makes the two large tensors from shape and type; None: in ordinary memory.
    """
    zeros = zeros or _zeros
    height = max(s.image.shape[1] for s in samples)
    width = max(s.image.shape[2] for s in samples)
    images = zeros((len(samples), len(samples[0].image), height, width), samples[0].image.dtype)
    padding = zeros((len(samples), height, width), torch.bool)
    for row, sample in enumerate(samples):
        _, h, w = sample.image.shape
        images[row, :, :h, :w] = sample.image
        padding[row, h:] = True
        padding[row, :h, w:] = True
    return Batch(
        images=images,
        padding=padding,
        targets=Targets(
            labels=torch.cat([s.labels for s in samples]),
            boxes=torch.cat([s.boxes.reshape(-1, 4) for s in samples]),
            counts=tuple(len(s.labels) for s in samples),
            masks=_padded_masks(samples, height, width),
            **_ignored(samples),
        ),
        image_ids=tuple(s.image_id for s in samples),
        original_sizes=tuple(s.original_size for s in samples),
        annotations=_concatenate([s.annotations for s in samples]),
        panoptic=_of_every([s.panoptic for s in samples]),
        photometric=_stacked([s.photometric for s in samples]),
        pieces=_of_every([s.piece for s in samples]),
    )


def unlabelled(resized: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Batch:
    """Resized images without objects as a batch; `sizes` are those before the resize."""
    labels, boxes = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    pairs = enumerate(zip(resized, sizes, strict=True))
    return collate([Sample(image, labels, boxes, number, size) for number, (image, size) in pairs])


def _ignored(samples: Sequence[Sample]) -> dict[str, Any]:
    regions = _of_every([s.ignored for s in samples])
    if regions is None:
        return {}
    return {"ignored": torch.cat(regions), "ignored_counts": tuple(len(region) for region in regions)}


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _padded_masks(samples: Sequence[Sample], height: int, width: int) -> Tensor | None:
    present = [s.masks for s in samples if s.masks is not None]
    if len(present) < len(samples):
        return None
    return torch.cat([F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in present])


def _of_every(values: Sequence[_T | None]) -> tuple[_T, ...] | None:
    present = tuple(v for v in values if v is not None)
    return present if len(present) == len(values) else None


def _stacked(photometric: Sequence[Tensor | None]) -> Tensor | None:
    present = [p for p in photometric if p is not None]
    if not present:
        return None
    if len(present) < len(photometric):
        raise ValueError(
            f"{len(present)} of {len(photometric)} samples of a batch have a photometric distortion for the "
            "device; all of them must have one, or none"
        )
    return torch.stack(present)


def _concatenate(annotations: Sequence[Annotations | None]) -> Annotations | None:
    present = [a for a in annotations if a is not None]
    if len(present) < len(annotations):
        return None
    masks = _of_every([a.segmentations for a in present])
    return Annotations(
        boxes_xywh=torch.cat([a.boxes_xywh for a in present]),
        areas=torch.cat([a.areas for a in present]),
        labels=torch.cat([a.labels for a in present]),
        crowd=torch.cat([a.crowd for a in present]),
        counts=tuple(count for a in present for count in a.counts),
        segmentations=None if masks is None else tuple(mask for image in masks for mask in image),
    )


class MaskFunction(Protocol):
    """Computes masks of some queries of the last layer: in training of the matched ones, else of those kept."""

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """(image [P], query [P]) -> [P, h, w] logits over the padded image, at a fraction of its size."""
        ...


class Predictions(NamedTuple):
    """Raw outputs of one set of queries. Leading dimensions are [B] or [L, B]."""

    logits: Tensor  # [..., Q, C] before sigmoid or softmax
    boxes: Tensor  # [..., Q, 4] cxcywh in [0, 1]
    extras: Mapping[str, Tensor] = {}  # family-specific outputs, e.g. box distributions
    masks: MaskFunction | None = None  # None without a mask head

    def masks_of_all(self) -> Tensor:
        """[B, Q, h, w] logits of the masks of every query of [B, Q, C] logits; there is a mask head."""
        assert self.masks is not None
        images, queries = self.logits.shape[:2]
        image = torch.arange(images, device=self.logits.device)[:, None].expand(-1, queries)
        query = torch.arange(queries, device=self.logits.device).expand(images, -1)
        return self.masks(image.reshape(-1), query.reshape(-1)).unflatten(0, (images, queries))


class Pairs(NamedTuple):
    """Matched (query, object) pairs of one layer; `target` indexes the flat rows of `Targets`."""

    image: Tensor  # [P] int64
    query: Tensor  # [P] int64
    target: Tensor  # [P] int64


Hungarian = Literal["hungarian"]
HUNGARIAN: Hungarian = "hungarian"


@dataclass(frozen=True)
class OutputSet:
    """A named set of supervised outputs and the rule that pairs its queries with objects.

    Attributes:
        name: prefix of its loss entries, e.g. `decoder`, `encoder`, `denoising`.
        predictions: [L, B, Q, ...], all layers of the set.
        matching: `HUNGARIAN` per layer and image, or the pairs themselves (the same in all layers).
        groups: Q is split into this many equal groups, each matched on its own (Group DETR).
        divisor: the losses are divided by (boxes of the step) x this; denoising passes its groups.
        class_agnostic: every object counts as class 0 (Deformable DETR's encoder proposals).
    """

    name: str
    predictions: Predictions
    matching: Hungarian | Pairs = HUNGARIAN
    groups: int = 1
    divisor: float = 1.0
    class_agnostic: bool = False


@dataclass(frozen=True)
class Outputs:
    """What a network returns: the predictions to use, and the sets to supervise (training only)."""

    final: Predictions  # [B, Q, ...]
    supervised: tuple[OutputSet, ...] = field(default=())


class Detections(NamedTuple):
    """Detections of one image, best score first."""

    scores: Tensor  # [K] float in [0, 1]
    labels: Tensor  # [K] int64, head index
    boxes_xyxy: Tensor  # [K, 4] pixels of the original image, not clipped
    masks: tuple[RLE, ...] | None = None  # K masks in the original image; None without
