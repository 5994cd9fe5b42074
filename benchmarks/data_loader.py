"""What does a batch cost, from the files to the training loop, against a plain torchvision pipeline?

DETR's published train transform, batch 8, 2 workers, collated in the worker. CPU time of the main process
and its workers, and wall time; all of them in one process in turns, worker start-up included:
    python benchmarks/data_loader.py [--data COCO] [--split val2017] [--rounds 5] [--workers 2] [--tiny] [--json]
Without --data, 192 JPEGs of 640 x 480 are made. What is the same and what is not is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from official_chains import detr_end, detr_train, draw_detr
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection

from datamodules.coco import CocoDataModule
from datamodules.formats.coco import read
from datamodules.loading.samplers import StepBatchSampler
from datamodules.shards.writer import pack
from zoo.contract.batch import Sample, collate
from zoo.contract.preprocess import InputContract

BATCH = 8
CONTRACT = InputContract(
    resize="shortest", size=(800, 1333), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


# ---------------------------------------------------------------------- the plain pipeline


class Plain(CocoDetection):
    """torchvision's data set with DETR's chain on PIL images, as the official code prepares its targets."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        picture, annotations = super().__getitem__(index)
        annotations = [a for a in annotations if not a.get("iscrowd")]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=picture.width)
        boxes[:, 1::2].clamp_(min=0, max=picture.height)
        labels = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        target = {"boxes": boxes[keep], "labels": labels[keep]}
        choices = draw_detr(Random(int(torch.randint(1 << 40, ()))), *picture.size)
        return detr_end(*detr_train(picture, target, choices))


def padded(items: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Float images padded to the largest of the batch, and a mask."""
    height, width = (max(image.shape[side] for image, _ in items) for side in (1, 2))
    images = torch.zeros(len(items), 3, height, width)
    mask = torch.ones(len(items), height, width, dtype=torch.bool)
    for row, (image, _) in enumerate(items):
        images[row, :, : image.shape[1], : image.shape[2]].copy_(image)
        mask[row, : image.shape[1], : image.shape[2]] = False
    return images, mask, [target for _, target in items]


# ---------------------------------------------------------------------- what is measured


def normalised(samples: list[Sample]) -> Any:
    """Our batch with the work done that is meant for the device."""
    return CONTRACT.normalize(collate(samples))


@dataclass(frozen=True)
class Cost:
    """Milliseconds an image."""

    cpu: float
    main: float
    wall: float


def cost_of(make: Callable[[], Iterable[Any]]) -> tuple[Cost, int]:
    """Of one epoch, and its batches. Workers are counted when they have ended."""
    gc.collect()
    before, children, start = time.process_time(), used_by_children(), time.perf_counter()
    loader = make()
    batches = sum(1 for _ in loader)
    wall = time.perf_counter() - start
    del loader  # ends persistent workers
    gc.collect()
    main, workers = time.process_time() - before, used_by_children() - children
    images = batches * BATCH
    return Cost(*(1e3 * seconds / images for seconds in (main + workers, main, wall))), batches


def used_by_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def contenders(root: Path, split: str, shards: Path, workers: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """Name -> makes the loader of an epoch."""
    plain = Plain(str(root / split), str(root / "annotations" / f"instances_{split}.json"))

    def module(place: Path) -> CocoDataModule:
        data = CocoDataModule(
            root=str(place), labels="category_id", input=CONTRACT, train_transform="detr", batch_size=BATCH,
            eval_batch_size=1, num_workers=workers, seed=0, train_split=split, eval_split=split,
        )  # fmt: skip
        data.read()
        return data

    files, packed = module(root), module(shards)
    epochs = iter(range(10**6))

    def ours(data: CocoDataModule) -> Callable[[], Iterable[Any]]:
        def make() -> Iterable[Any]:
            data.set_epoch(next(epochs))
            return data.train_dataloader()

        return make

    def float_batches() -> Iterable[Any]:
        dataset = files.training_dataset()
        sampler = StepBatchSampler(len(dataset), 0, batch_size=BATCH, accumulation=1)
        sampler.epoch = next(epochs)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=normalised)

    return {
        "CocoDetection, PIL, float": lambda: DataLoader(
            plain, BATCH, shuffle=True, drop_last=True, num_workers=workers, collate_fn=padded
        ),
        "ours, normalised float": float_batches,
        "ours, uint8": ours(files),
        "ours, uint8, shards": ours(packed),
    }


def make_images(root: Path, number: int, size: tuple[int, int]) -> None:
    """A COCO folder of photograph-like noise: smooth patches with grain, some 150 KB at 640 x 480."""
    draw = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    images, annotations = [], []
    for i in range(number):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.BICUBIC
        )
        grain = draw.normal(0, 14, (size[1], size[0], 1))
        pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "train2017" / f"{i:04d}.jpg", quality=92)
        images.append({"id": i, "file_name": f"{i:04d}.jpg", "width": size[0], "height": size[1]})
        for _ in range(7):  # COCO has seven objects an image
            x, y = draw.uniform(0, size[0] * 0.7), draw.uniform(0, size[1] * 0.7)
            box = [x, y, size[0] * 0.25, size[1] * 0.25]
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3],
                 "iscrowd": 0}
            )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def measure(root: Path, split: str, shards: Path, workers: int, rounds: int) -> list[dict[str, Any]]:
    """One row a contender, medians over rounds in which they take turns."""
    makers = contenders(root, split, shards, workers)
    costs: dict[str, list[Cost]] = {name: [] for name in makers}
    batches = set()
    for number in range(-1, rounds):  # the first is the warm-up
        order = list(makers.items())
        for name, make in order if number % 2 else reversed(order):
            cost, seen = cost_of(make)
            batches.add(seen)
            if number >= 0:
                costs[name].append(cost)
    assert len(batches) == 1, batches
    first = next(iter(costs.values()))
    return [
        {
            "pipeline": name,
            "images": batches.copy().pop() * BATCH,
            "cpu_ms": statistics.median(c.cpu for c in own),
            "main_ms": statistics.median(c.main for c in own),
            "wall_ms": statistics.median(c.wall for c in own),
            "cpu_ratio": statistics.median(a.cpu / b.cpu for a, b in zip(first, own, strict=True)),
            "wall_ratio": statistics.median(a.wall / b.wall for a, b in zip(first, own, strict=True)),
            "cpu_ratios": [round(a.cpu / b.cpu, 2) for a, b in zip(first, own, strict=True)],
        }
        for name, own in costs.items()
    ]


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a COCO folder")
    parser.add_argument("--split", default="val2017", help="of the COCO folder")
    parser.add_argument("--images", type=int, default=192, help="to make where there is no --data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root, split = options.data, options.split
        if root is None:
            root, split = Path(scratch, "coco"), "train2017"
            number, size = (2 * BATCH, (640, 480)) if options.tiny else (options.images, (640, 480))
            make_images(root, number, size)
        shards = Path(scratch, "shards")
        pack(read(root), shards, 256 << 20)
        rows = measure(root, split, shards, options.workers, options.rounds)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {options.workers} workers"
    )
    print(f"{rows[0]['images']} images an epoch, batch {BATCH}; ms an image, median of {options.rounds}")
    print(f"{'':28}{'CPU':>8}{'main':>8}{'wall':>8}{'CPU':>8}{'wall':>8}")
    for row in rows:
        numbers = (row[n] for n in ("cpu_ms", "main_ms", "wall_ms"))
        print(f"{row['pipeline']:28}" + "".join(f"{n:8.2f}" for n in numbers), end="")
        print(f"{row['cpu_ratio']:7.2f}x{row['wall_ratio']:7.2f}x   by round {row['cpu_ratios']}")
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
