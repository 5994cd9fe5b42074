"""Raw predictions to detections in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoo.contract.batch import Detections, Predictions
from zoo.contract.boxes import cxcywh_to_xyxy


class Postprocess(Protocol):
    """The rule by which a family's raw predictions become detections."""

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and queries [B, K] of the detections for logits [B, Q, C]; part of an exported graph."""
        ...

    def __call__(
        self, predictions: Predictions, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """(predictions [B, ...], (h, w) of each image) -> detections of each image, best first."""
        ...


@dataclass(frozen=True)
class TopKSigmoid:
    """The rule of RT-DETR and Deformable DETR: the best (query, class) pairs after a sigmoid.

    A query may give several detections, one for each class it scores high in.

    Attributes:
        top_k: detections an image, at most; fewer where the head has fewer than that many pairs.
    """

    top_k: int

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and queries [B, K] of the best pairs, best first."""
        pairs = at_least_float32(logits).sigmoid().flatten(1)
        scores, index = pairs.topk(min(self.top_k, pairs.shape[1]), dim=1)
        classes = logits.shape[2]
        return scores, index % classes, torch.div(index, classes, rounding_mode="floor")

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image on the CPU, best first.

        One device-to-host transfer for the whole batch; half-precision inputs are read as float32.

        Args:
            predictions: logits [B, Q, C], boxes [B, Q, 4] cxcywh in [0, 1].
            original_sizes: (h, w) of each image, to which boxes are scaled. They are not clipped to it.

        Raises:
            ValueError: if there are not as many sizes as images.
        """
        return _detections(self, predictions, original_sizes)


@dataclass(frozen=True)
class BestClassSoftmax:
    """DETR's rule: every query, with its most probable class other than "no object", the last logit."""

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `best_classes`."""
        return best_classes(logits)

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image on the CPU, best first: as many as queries. Arguments as of `TopKSigmoid`.

        Raises:
            ValueError: if there are not as many sizes as images.
        """
        return _detections(self, predictions, original_sizes)


def best_classes(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, label and number of each query, [B, Q] each, best score first; the last logit is "no object"."""
    scores, labels = at_least_float32(logits).softmax(-1)[..., :-1].max(-1)
    if (
        torch.compiler.is_exporting()
    ):  # ONNX has no stable sort; its TopK breaks ties by the index, so it is one
        scores, order = scores.topk(scores.shape[1], dim=1)
    else:
        scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores, labels.gather(1, order), order


def _detections(
    rule: Postprocess, predictions: Predictions, original_sizes: Sequence[tuple[int, int]]
) -> list[Detections]:
    boxes = at_least_float32(predictions.boxes)
    _check_sizes(len(boxes), original_sizes)
    if not len(boxes):
        return []
    scores, labels, query = rule.best(predictions.logits)
    sizes = torch.tensor(original_sizes, dtype=torch.int64).to(boxes.device, non_blocking=True)
    return _to_host(scores, labels, in_pixels(boxes, query, sizes))


def _check_sizes(images: int, original_sizes: Sequence[tuple[int, int]]) -> None:
    if len(original_sizes) != images:
        raise ValueError(
            f"{len(original_sizes)} original sizes for predictions of {images} images; give one each"
        )


def in_pixels(boxes: Tensor, query: Tensor, sizes: Tensor) -> Tensor:
    """[B, K, 4] xyxy in pixels of the original images: the boxes [B, Q, 4], cxcywh in [0, 1], of queries [B, K].

    Args:
        boxes: of all queries.
        query: whose boxes.
        sizes: [B, 2] int64 (h, w) of the original images.
    """
    width_height = sizes.flip(1).repeat(1, 2).to(boxes.dtype)[:, None]
    return (cxcywh_to_xyxy(boxes) * width_height).gather(1, query[..., None].expand(-1, -1, 4))


def _to_host(scores: Tensor, labels: Tensor, boxes: Tensor) -> list[Detections]:
    """Detections of each image on the CPU, in one transfer."""
    # labels are packed as floats, which are exact for any number of classes
    packed = torch.cat([boxes, scores[..., None], labels[..., None].to(boxes.dtype)], dim=2)
    return [Detections(image[:, 4], image[:, 5].long(), image[:, :4]) for image in packed.cpu()]


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
