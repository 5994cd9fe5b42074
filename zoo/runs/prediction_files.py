"""What `zoo predict` writes: a picture of each image, and COCO's files of masks or panoptic segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from zoo.contract.labels import LabelMap
from zoo.detector import Prediction
from zoo.storage.durable import write_json, written

RESULTS_FILE = "results.json"
PANOPTIC_FILE = "panoptic.json"
PANOPTIC_FOLDER = "panoptic"  # of the id maps: beside the json and called as it is, as in COCO


class PredictionFiles:
    """The files of one call, all images together.

    Args:
        folder: where they go; exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []  # `annotations` of the panoptic json
        self._results: list[dict[str, Any]] = []
        self._masks = False
        self._label_map: LabelMap | None = None

    def draw(self, image: Image.Image | Tensor, prediction: Prediction, stem: str) -> Path:
        """Writes the picture with segments, else with detections and the masks that they have."""
        what = "detections" if prediction.panoptic is None else "segments"
        path = self.folder / f"{stem}_{what}.png"
        with written(path):
            prediction.paint(image).save(path)
        return path

    def add(self, prediction: Prediction, stem: str, source: str) -> int:
        """Takes up one image, writes its id map if it has one, and returns its id in the files: 1, 2, ..."""
        image_id = len(self._images) + 1
        height, width = prediction.size
        self._images.append({"id": image_id, "file_name": source, "height": height, "width": width})
        self._label_map = prediction.label_map
        if prediction.panoptic is not None:
            name = f"{stem}.png"
            png, entry = prediction.panoptic.to_coco(prediction.label_map, image_id, name)
            folder = self.folder / PANOPTIC_FOLDER
            folder.mkdir(exist_ok=True)
            with written(folder / name):
                (folder / name).write_bytes(png)
            self._panoptic.append(entry)
        elif prediction.masks is not None:
            self._masks = True
            self._results += results_of(prediction, image_id)
        return image_id

    def write(self) -> dict[str, Path]:
        """Writes the files that hold all images; returns them by what they are."""
        if self._panoptic:
            assert self._label_map is not None
            document = {
                "images": self._images,
                "annotations": self._panoptic,
                "categories": categories_of(self._label_map),
            }
            return {"panoptic": self._json(PANOPTIC_FILE, document)}
        if self._masks:
            return {"results": self._json(RESULTS_FILE, self._results)}
        return {}

    def _json(self, name: str, document: Any) -> Path:
        path = self.folder / name
        write_json(path, document)
        return path


def results_of(prediction: Prediction, image_id: int) -> list[dict[str, Any]]:
    """Detections in COCO's result format: boxes [x, y, width, height]; masks, if there are any, as run lengths."""
    rows = zip(prediction.source_ids, prediction.scores, prediction.boxes_xyxy, strict=True)
    results: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": category,
            "score": score,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        for category, score, (x0, y0, x1, y1) in rows
    ]
    for result, mask in zip(results, prediction.masks or (), strict=False):
        result["segmentation"] = mask
    return results


def categories_of(label_map: LabelMap) -> list[dict[str, Any]]:
    """`categories` of a COCO panoptic file, with colours where the label map has them."""
    rows = []
    for name, source_id, head in zip(
        label_map.names, label_map.source_ids, label_map.head_indices, strict=True
    ):
        row: dict[str, Any] = {"id": source_id, "name": name, "isthing": int(head in label_map.things)}
        if head in label_map.color_of_head:
            row["color"] = list(label_map.color_of_head[head])
        rows.append(row)
    return rows
