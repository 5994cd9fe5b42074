"""Small folders in every format, with the same images and objects in each, written by the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.custom import CustomDataModule
from zoo.contract.preprocess import InputContract

CLASSES = ("cat", "dog")
# per image: (width, height), then (class, x, y, w, h) of its objects; the third image is empty
PICTURES: tuple[tuple[tuple[int, int], tuple[tuple[int, int, int, int, int], ...]], ...] = (
    ((40, 30), ((0, 5, 5, 10, 10), (1, 20, 10, 15, 12))),
    ((32, 48), ((1, 2, 3, 20, 30),)),
    ((40, 40), ()),
)
# of an AnnotationIndex
INDEX_COLUMNS = (
    "image_ids",
    "sizes",
    "offsets",
    "boxes_xywh",
    "source_ids",
    "areas",
    "crowd",
    "annotation_ids",
)
SQUARE = InputContract(resize="stretch", size=(32, 32))


def write_image(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Noise of (width, height) `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def coco_content(names: list[str] | None = None) -> dict[str, Any]:
    images, annotations = [], []
    for i, ((width, height), objects) in enumerate(PICTURES):
        name = names[i] if names else f"{i}.jpg"
        images.append({"id": 10 + i, "file_name": name, "width": width, "height": height})
        for label, *box in objects:
            annotation_id = len(annotations) + 1
            annotations.append(
                {
                    "id": annotation_id,
                    "image_id": 10 + i,
                    "category_id": 3 + 2 * label,
                    "bbox": box,
                    "area": 7.5,
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_coco(root: Path, content: dict[str, Any] | None = None) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for i, (size, _) in enumerate(PICTURES):
            write_image(root / split / f"{i}.jpg", size, i)
        own = content if content is not None and split == "train" else coco_content()
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(own))
    return root


def write_roboflow(root: Path) -> Path:
    for split in ("train", "valid", "test"):
        for i, (size, _) in enumerate(PICTURES):
            write_image(root / split / f"{i}.jpg", size, i)
        content = coco_content()
        content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def write_yolo(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        (root / "labels" / split).mkdir(parents=True)
        for i, (size, objects) in enumerate(PICTURES):
            write_image(root / "images" / split / f"{i}.jpg", size, i)
            rows = [
                f"{c} {(x + w / 2) / size[0]} {(y + h / 2) / size[1]} {w / size[0]} {h / size[1]}"
                for c, x, y, w, h in objects
            ]
            (root / "labels" / split / f"{i}.txt").write_text("\n".join(rows))
    lines = [f"{split}: images/{split}" for split in splits]
    (root / "data.yaml").write_text("\n".join([*lines, "nc: 2", "names: [cat, dog]"]))
    return root


def write_voc(root: Path) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, (size, objects) in enumerate(PICTURES):
        write_image(root / "JPEGImages" / f"{i}.jpg", size, i)
        (root / "Annotations" / f"{i}.xml").write_text(voc_xml(f"{i}.jpg", size, objects))
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n")
    (root / "ImageSets/Main/test.txt").write_text("2\n")
    return root


def voc_xml(name: str, size: tuple[int, int], objects: tuple[tuple[int, int, int, int, int], ...]) -> str:
    boxes = "".join(
        f"<object><name>{CLASSES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for c, x, y, w, h in objects
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{name}</filename>{shape}{boxes}</annotation>"


def module(root: Path, **changes: Any) -> CustomDataModule:
    """A datamodule on `root` with small defaults."""
    arguments: dict[str, Any] = {
        "root": str(root), "input": SQUARE, "train_transform": "flip", "batch_size": 2, "eval_batch_size": 2,
        "num_workers": 0, "seed": 3,
    }  # fmt: skip
    return CustomDataModule(**(arguments | changes))


def real_data() -> Path:
    """The folder of real data sets, or a skip that says why."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("ZOO_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ZOO_TEST_DATA to the folder that has coco/ and custom/")
    return folder
