"""Raw predictions to detections in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.batch import Detections, Predictions
from zoo.boxes import cxcywh_to_xyxy


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
        logits, boxes = (_at_least_float32(t) for t in (predictions.logits, predictions.boxes))
        images, _, classes = logits.shape
        if len(original_sizes) != images:
            raise ValueError(
                f"{len(original_sizes)} original sizes for predictions of {images} images; give one each"
            )
        if not images:
            return []
        pairs = logits.sigmoid().flatten(1)
        scores, index = pairs.topk(min(self.top_k, pairs.shape[1]), dim=1)
        width_height = torch.tensor([(w, h, w, h) for h, w in original_sizes], dtype=boxes.dtype)
        scaled = cxcywh_to_xyxy(boxes) * width_height.to(boxes.device, non_blocking=True)[:, None]
        query = torch.div(index, classes, rounding_mode="floor")
        found = scaled.gather(1, query[..., None].expand(-1, -1, 4))
        # labels ride along as floats, exact far beyond any number of classes, to make it one transfer
        packed = torch.cat([found, scores[..., None], (index % classes)[..., None].to(found.dtype)], dim=2)
        return [Detections(image[:, 4], image[:, 5].long(), image[:, :4]) for image in packed.cpu()]


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
