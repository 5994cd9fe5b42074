"""A tiny RT-DETR as an ONNX file, captured once a process."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from registry_case import tiny_module, write_checkpoint

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector

CONTRACT = InputContract(resize="stretch", size=(64, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
LABELS = LabelMap.contiguous(["square", "disc", "no"], [3, 7, 12])


def module() -> Any:
    """The tiny module, which finds something wherever it looks."""
    made = tiny_module()
    with torch.no_grad():
        for head in made.ema.network.decoder.dec_score_head:
            head.bias += 4.0
    return made


def detector() -> Detector:
    made = module()
    made.adopt(LABELS, CONTRACT)
    return Detector(made, "tiny")


@functools.cache
def graphs() -> tuple[Any, Any]:
    """The whole graph, and the one to write; not to be changed."""
    from zoo.exporting.onnx import exported

    return exported(detector(), CONTRACT)


def copied(graph: Any) -> Any:
    """A copy that may be changed."""
    copy = type(graph)()
    copy.CopyFrom(graph)
    return copy


def written(path: Path, graph: Any = None) -> Path:
    """The file of the tiny model, or of another graph."""
    path.write_bytes((graphs()[1] if graph is None else graph).SerializeToString())
    return path


def checkpoint(path: Path) -> Path:
    """A checkpoint of the tiny model."""
    write_checkpoint(path, module(), LABELS, CONTRACT.to_dict(), 20)
    return path


def data(root: Path, images: int = 5, model: Detector | None = None) -> Path:
    """COCO json of a model's classes, whose objects lie where the model finds something: an AP that is not 0.

    `model`: another than the tiny one.
    """
    random = np.random.default_rng(5)
    (root / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    model = model or detector()
    labels = model.label_map
    rows: list[dict[str, Any]] = []
    for number in range(images):
        picture = Image.fromarray(random.integers(0, 255, (60 + number, 80, 3), dtype=np.uint8))
        picture.save(root / "val" / f"{number}.png")
        found = model.predict(root / "val" / f"{number}.png", 0.0)
        chosen = list(zip(found.source_ids, found.boxes_xyxy, strict=True))[:: 1 + number % 2][:4]
        for source_id, (x0, y0, x1, y1) in chosen:
            box = [x0 + 1, y0, max(x1 - x0 - 1, 2), max(y1 - y0, 2)]
            row = {"id": len(rows) + 1, "image_id": number, "category_id": source_id, "bbox": box}
            rows.append(row | {"area": box[2] * box[3], "iscrowd": 0})
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 60 + n, "width": 80} for n in range(images)],
        "annotations": rows,
        "categories": [{"id": i, "name": n} for n, i in zip(labels.names, labels.source_ids, strict=True)],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def certified(source: Any, path: Path, contract: InputContract, images: Path | None, *rest: Any) -> Any:
    """The certificate of a file of the tiny model; `images` is a folder."""
    from zoo.exporting.saving import learns
    from zoo.runs.certify import certified
    from zoo.runs.export_images import export_images

    precision = Detector.from_exported(path).module.network.session.facts.precision
    return certified(source, path, export_images(source, images, contract, learns("onnx", precision)), *rest)
