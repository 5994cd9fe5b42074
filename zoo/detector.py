"""A trained model that takes pictures and gives named boxes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from zoo.batch import Detections, Sample, collate
from zoo.labels import LabelMap
from zoo.module import DetectionModule
from zoo.preprocess import InputContract, to_rgb
from zoo.registry.pull import Pulled, pull
from zoo.registry.weights import Released, ready_module, released_from_checkpoint, released_from_folder

Picture = str | Path | bytes | Image.Image | Tensor


@dataclass(frozen=True)
class Prediction:
    """Detections of one picture above a threshold, best first; four lists of the same length.

    Boxes are (x0, y0, x1, y1) in pixels of the picture, clipped to it. `source_ids` are the class ids
    of the data that the model was trained on (COCO's 1..90 for a COCO model), `labels` their names.
    """

    scores: list[float]
    labels: list[str]
    source_ids: list[int]
    boxes_xyxy: list[tuple[float, float, float, float]]
    size: tuple[int, int]  # (height, width)
    threshold: float
    model: str
    label_map: LabelMap

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a prediction file, with the label map that the ids belong to."""
        rows = zip(self.labels, self.source_ids, self.scores, self.boxes_xyxy, strict=True)
        return {
            "model": self.model,
            "height": self.size[0],
            "width": self.size[1],
            "threshold": self.threshold,
            "detections": [
                {"label": label, "source_id": source_id, "score": score, "box_xyxy": list(box)}
                for label, source_id, score, box in rows
            ],
            "label_map": self.label_map.to_dict(),
        }

    def to_detections(self) -> Detections:
        """The same as tensors, labels as head indices, for drawing."""
        head = self.label_map.head_of_source
        return Detections(
            torch.tensor(self.scores),
            torch.tensor([head[i] for i in self.source_ids], dtype=torch.int64),
            torch.tensor(self.boxes_xyxy).reshape(-1, 4),
        )


class Detector:
    """A module in evaluation mode with the label map and input contract it was trained with."""

    def __init__(self, module: DetectionModule, name: str) -> None:
        if module.label_map is None or module.input is None:
            raise ValueError(f"{name} has no label map or input contract; load it with zoo.load")
        self.module = module.eval()
        self.name = name
        self.label_map: LabelMap = module.label_map
        self.input: InputContract = module.input

    @classmethod
    def from_released(cls, released: Released, name: str) -> Detector:
        """With weights that were read before."""
        return cls(ready_module(released), name)

    @classmethod
    def from_pulled(cls, pulled: Pulled) -> Detector:
        """With the files of a pulled version."""
        name = f"{pulled.manifest.name}:{pulled.manifest.version}"
        return cls.from_released(released_from_folder(pulled.folder, pulled.manifest), name)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Detector:
        """With the released weights of a training checkpoint, registered or not."""
        return cls.from_released(released_from_checkpoint(path), str(path))

    def to(self, device: torch.device | str) -> Detector:
        """Moves the module; returns itself."""
        self.module.to(device)
        return self

    def predict(self, image: Picture, threshold: float = 0.3) -> Prediction:
        """Detections with a score of at least `threshold`.

        Args:
            image: path, encoded bytes, PIL image, or uint8 RGB tensor [3, h, w].
            threshold: in [0, 1].

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a picture, a tensor of another shape or type, a threshold outside [0, 1].
        """
        if not 0 <= threshold <= 1 or math.isnan(threshold):
            raise ValueError(f"threshold is {threshold}; scores are between 0 and 1")
        picture = read_picture(image)
        height, width = _size(picture)
        resized = self.input.resize_image(picture)
        sample = Sample(resized, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 0, (height, width))
        device = next(self.module.parameters()).device
        detections = self.module.detect(collate([sample]).to(device))[0]
        return self._named(detections, threshold, (height, width))

    def _named(self, detections: Detections, threshold: float, size: tuple[int, int]) -> Prediction:
        """Names and source ids; a head index that no class has (a hole of raw ids) is left out."""
        scores, heads, boxes = (t.detach().cpu() for t in detections[:3])
        limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        source, names = self.label_map.source_of_head, self.label_map.name_of_head
        rows = [
            (score, head, tuple(box))
            for score, head, box in zip(scores.tolist(), heads.tolist(), boxes.tolist(), strict=True)
            if score >= threshold and head in source
        ]
        return Prediction(
            scores=[score for score, _, _ in rows],
            labels=[names[head] for _, head, _ in rows],
            source_ids=[source[head] for _, head, _ in rows],
            boxes_xyxy=[box for _, _, box in rows],
            size=size,
            threshold=threshold,
            model=self.name,
            label_map=self.label_map,
        )


def read_picture(image: Picture) -> Image.Image | Tensor:
    """An upright RGB PIL image, or the tensor itself once it is known to be uint8 [3, h, w].

    A camera's orientation tag is applied, so boxes are those of the picture as viewers show it.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(
                f"a picture as a tensor is uint8 of shape [3, h, w], not {image.dtype} {list(image.shape)}"
            )
        return image
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    source, name = (io.BytesIO(image), "the data") if isinstance(image, bytes) else (image, str(image))
    if not isinstance(source, io.BytesIO) and not Path(source).is_file():
        raise FileNotFoundError(f"picture {name} does not exist")
    try:
        with Image.open(source) as opened:
            return to_rgb(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a picture that can be read: {error}") from error


def load(name: str, registry: str | Path | None = None) -> Detector:
    """The detector of `NAME[@alias|:version]`; hashes are checked, built-in models fetched if needed."""
    return Detector.from_pulled(pull(name, registry=registry))


def _size(picture: Image.Image | Tensor) -> tuple[int, int]:
    if isinstance(picture, Tensor):
        return int(picture.shape[1]), int(picture.shape[2])
    return picture.height, picture.width
