"""What does a report of COCO val's size cost?

Made-up detections: 5000 images, 36 781 objects of 80 classes, 500 000 detections, two in five of them near an object.
Pictures are real JPEG files, read and drawn as in any report. CPU seconds of each part, and the most memory.

    python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.coco import CocoDataModule
from zoo.analysis.comparison import compared
from zoo.contract.preprocess import InputContract
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import Collected
from zoo.report.given import Given
from zoo.report.numbers import document
from zoo.report.page import write_report

WIDTH, HEIGHT, CLASSES = 640, 480, 80


def truth(images: int, objects: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [A, 4], class and crowd [A, 2], image [A]; most are small, as in COCO."""
    image = np.sort(rng.integers(0, images, objects))
    sides = np.exp(rng.normal(3.9, 1.0, (objects, 2))).clip(4, 400)
    corner = rng.uniform(0, 1, (objects, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    labels = np.column_stack([rng.integers(0, CLASSES, objects), rng.random(objects) < 0.01])
    return np.hstack([corner, sides]).round(2), labels.astype(np.int64), image


def detections(boxes, labels, image, images: int, number: int, rng: np.random.Generator):
    """Boxes and scores [D, 5], classes [D], images [D]: near an object, or anywhere."""
    owner = np.repeat(np.arange(images), number // images)
    starts = np.searchsorted(image, np.arange(images + 1))
    counts = np.diff(starts)[owner]
    near = (rng.random(len(owner)) < 0.4) & (counts > 0)
    source = np.minimum(starts[owner] + (rng.random(len(owner)) * counts).astype(int), len(boxes) - 1)
    moved = boxes[source] * np.exp(rng.normal(0, 0.12, (len(owner), 4)))
    sides = np.exp(rng.normal(3.9, 1.0, (len(owner), 2))).clip(4, 400)
    anywhere = np.hstack([rng.uniform(0, 1, (len(owner), 2)) * [WIDTH / 2, HEIGHT / 2], sides])
    right = near & (rng.random(len(owner)) < 0.85)
    found = np.where(right, labels[source, 0], rng.integers(0, CLASSES, len(owner)))
    scores = np.where(near, rng.beta(2, 3, len(owner)), rng.beta(1, 12, len(owner)))
    return np.column_stack([np.where(near[:, None], moved, anywhere), scores]), found, owner


def write_set(root: Path, boxes, labels, image, images: int) -> None:
    """A COCO folder; the images are links to one JPEG."""
    (root / "annotations").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(root / "one.jpg", quality=85)
    rows = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images)]
    objects = [
        {"id": k + 1, "image_id": int(image[k]), "category_id": int(labels[k, 0]) + 1, "bbox": boxes[k].tolist(),
         "area": float(boxes[k, 2] * boxes[k, 3]), "iscrowd": int(labels[k, 1])}
        for k in range(len(boxes))
    ]  # fmt: skip
    categories = [{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)]
    content = {"images": rows, "annotations": objects, "categories": categories}
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for row in rows:
            (root / split / row["file_name"]).symlink_to(root / "one.jpg")
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


class Laps:
    """CPU seconds between calls."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def say(self, part: str) -> None:
        now = time.process_time()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{part:<28}{now - self.last:7.1f} s CPU   most memory so far {most:.2f} GB", flush=True)
        self.last = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_781)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--compare", action="store_true", help="also the difference of two such models")
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    boxes, labels, image = truth(chosen.images, chosen.objects, rng)
    found = [detections(boxes, labels, image, chosen.images, chosen.detections, rng) for _ in range(2)]
    areas = (boxes[:, 2] * boxes[:, 3])[:, None]
    sizes = np.full((chosen.images, 1), 1) * [[HEIGHT, WIDTH]]
    ids = np.column_stack([np.arange(chosen.images), sizes]).astype(np.int64)
    evaluations = [
        Evaluation(Collected(ids, d, c, o, np.hstack([boxes, areas]), labels, image)) for d, c, o in found
    ]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_set(root, boxes, labels, image, chosen.images)
        data = CocoDataModule(
            root=place, labels="contiguous", input=InputContract(resize="stretch", size=(640, 640)),
            train_transform="none", batch_size=1, eval_batch_size=1, num_workers=0, seed=0,
        )  # fmt: skip
        data.setup("validate")
        given = Given(
            "made up", "val", place, evaluations[0], data.label_map, data.read().splits["val"], contract=data.input
        )  # fmt: skip
        del boxes, found
        laps, begun = Laps(), time.process_time()
        document(given)
        laps.say("numbers")
        written = write_report(given, root / "out")
        laps.say("numbers again, and page")
        print(
            f"page {written.page.stat().st_size / 1e6:.1f} MB, numbers {written.file.stat().st_size / 1e6:.1f} MB"
        )
        if chosen.compare:
            compared(*evaluations)
            laps.say("difference of two")
        print(f"{time.process_time() - begun:.0f} s CPU in all")


if __name__ == "__main__":
    main()
