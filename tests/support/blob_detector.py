"""A module that finds bright blobs on black in the pixels it is given, exactly: all around a network, without one."""

from __future__ import annotations

import torch
from PIL import Image
from registry_case import LABELS, tiny_module
from scipy import ndimage

from zoo.contract.batch import Batch, Predictions
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.module import DetectionModule

_SURE, _NOT = 4.0, -20.0
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # of head index 0, 1, 2


def blob_module(contract: InputContract, labels: LabelMap = LABELS) -> DetectionModule:
    """A tiny module whose predictions are the blobs of a batch; its class is the brightest channel."""
    module = tiny_module()
    module.adopt(labels, contract)
    module.postprocess = TopKSigmoid(300)
    module.runtime = "blobs"  # it takes levels
    module.predictions = blobs  # type: ignore[method-assign]
    return module.eval()


def blobs(batch: Batch) -> Predictions:
    """A query for each blob of each image."""
    found = [_of_image(image) for image in batch.images]
    queries = max(1, *(len(own) for own in found))
    logits = torch.full((len(found), queries, 3), _NOT)
    boxes = torch.full((len(found), queries, 4), 0.5)
    for row, own in enumerate(found):
        for query, (label, box) in enumerate(own):
            logits[row, query, label] = _SURE
            boxes[row, query] = box
    return Predictions(logits, boxes)


def _of_image(image: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    height, width = image.shape[1:]
    found = []
    for label in range(3):
        numbers, _ = ndimage.label(image[label].numpy() > 100)
        for rows, columns in ndimage.find_objects(numbers):
            x0, x1, y0, y1 = (
                columns.start / width,
                columns.stop / width,
                rows.start / height,
                rows.stop / height,
            )
            found.append((label, torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])))
    return found


def painted(size: tuple[int, int], objects: list[tuple[int, tuple[int, int, int, int]]]) -> Image.Image:
    """A black image of (h, w) `size` with blobs: (head index, xyxy)."""
    image = Image.new("RGB", (size[1], size[0]))
    for label, box in objects:
        image.paste(COLOURS[label], box)
    return image
