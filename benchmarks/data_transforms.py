"""What does it cost to make a network's input from a JPEG, against the official chains and transformers?

One thread, process CPU time, from the file's bytes in memory to the tensor and its boxes. All contestants of a
chain, each in a process of its own, go over all images in turns, `--rounds` times; a ratio is the median of the
ratios round by round.
    python benchmarks/data_transforms.py [--images 32] [--rounds 7] [--coco DIR] [--tiny] [--json]
Images: of COCO's layout in DIR (or $ZOO_TEST_DATA/coco) where it is, else drawn, 640x480.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import official_chains as official
import torch
import transformers
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from datamodules.augmentations.allowed import TORCHVISION
from datamodules.augmentations.chain import Augmentations
from datamodules.images.decoding import decode_tensor
from datamodules.loading.pictures import cropped
from datamodules.tiling.cutting import cut_targets
from datamodules.transforms.presets import build_transform
from datamodules.transforms.targets import resized_targets, training_targets
from zoo.contract.batch import Sample, collate
from zoo.contract.preprocess import InputContract, normalize_levels
from zoo.contract.tiles import Tiles

DETR = InputContract(resize="shortest", size=(800, 1333), mean=tuple(official.MEAN), std=tuple(official.STD))
RT_DETR = InputContract(resize="stretch", size=(640, 640))
TILES = Tiles(size=(640, 640))
BATCH = 8  # of the deferred work


@dataclass
class Photo:
    """A JPEG and its objects; a store of one file."""

    data: bytes
    size: tuple[int, int]  # h, w
    boxes_xywh: list[list[float]]
    labels: list[int]

    @cached_property
    def columns(self) -> np.ndarray:
        """Boxes as the annotation index has them; the official code has lists from a json."""
        return np.array(self.boxes_xywh, dtype=np.float64).reshape(-1, 4)

    def read(self, name: str) -> bytes:
        return self.data

    def where(self, name: str) -> str:
        return name

    def decoded(self) -> Tensor:
        return decode_tensor(self, "photo.jpg", 0, self.size)

    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data)).convert("RGB")

    def targets(self) -> Any:
        return training_targets(self.columns, self.labels, [False] * len(self.labels), self.size)

    def official_target(self) -> official.Target:
        boxes = torch.as_tensor(self.boxes_xywh, dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=self.size[1])
        boxes[:, 1::2].clamp_(min=0, max=self.size[0])
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        return {"boxes": boxes[keep], "labels": torch.tensor(self.labels, dtype=torch.int64)[keep]}

    def annotations(self) -> dict[str, Any]:
        entries = [
            {"bbox": b, "category_id": c, "area": b[2] * b[3], "iscrowd": 0, "image_id": 0}
            for b, c in zip(self.boxes_xywh, self.labels, strict=True)
        ]
        return {"image_id": 0, "annotations": entries}


def drawn_photos(count: int, size: tuple[int, int]) -> list[Photo]:
    """Smooth colours with noise: about 150 kB at 640x480, as COCO's photographs."""
    photos = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=92)
        corners = np.sort(rng.uniform(0, 1, (7, 2, 2)), axis=1) * [size[1], size[0]]
        boxes = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], axis=1)
        photos.append(Photo(file.getvalue(), size, boxes.tolist(), list(range(7))))
    return photos


def coco_photos(folder: Path, count: int) -> list[Photo]:
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    objects: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        if not entry["iscrowd"]:
            objects.setdefault(entry["image_id"], []).append(entry)
    photos = []
    for image in content["images"]:
        file, own = folder / "val2017" / image["file_name"], objects.get(image["id"], [])
        if len(photos) < count and file.is_file():
            boxes, labels = [o["bbox"] for o in own], [o["category_id"] for o in own]
            photos.append(Photo(file.read_bytes(), (image["height"], image["width"]), boxes, labels))
    return photos


Contestant = Callable[[Photo, int], Any]  # photo, seed


def normalized(image: Tensor, contract: InputContract) -> Tensor:
    """[3, h, w] uint8 to what the official chain ends with: float32, contiguous."""
    planes = image.to(torch.float32, memory_format=torch.contiguous_format)
    return normalize_levels(planes, contract.mean, contract.std)


def ours_training(name: str, contract: InputContract, *, finish: bool, device: bool = False) -> Contestant:
    transform = build_transform(name, contract, photometric="device" if device else "worker")

    def run(photo: Photo, seed: int) -> Any:
        targets = photo.targets()
        plan = transform.draw(photo.size, targets.boxes_xyxy, seed)
        out = transform.apply(photo.decoded(), targets, plan)
        return (normalized(out.image, contract) if finish else out.image), out.boxes

    return run


def own_list(*block: Any) -> Contestant:
    """RT-DETR's chain with operations of a recipe's `augmentations`, which come before it."""
    transform, augmentations = build_transform("none", RT_DETR), Augmentations.of([*block])

    def run(photo: Photo, seed: int) -> Any:
        out = augmentations(transform, photo.decoded(), photo.targets(), seed)
        return out.image, out.boxes

    return run


def ours_evaluation(contract: InputContract, *, finish: bool) -> Contestant:
    def run(photo: Photo, seed: int) -> Any:
        image = contract.resize_image(photo.decoded())
        _, boxes = resized_targets(photo.targets(), photo.size, (image.shape[1], image.shape[2]), 0.0)
        return (normalized(image, contract) if finish else image), boxes

    return run


def official_detr_training(photo: Photo, seed: int) -> Any:
    picture, random = photo.picture(), Random(seed)
    choices = official.draw_detr(random, *picture.size)
    return official.detr_end(*official.detr_train(picture, photo.official_target(), choices))


def official_detr_evaluation(photo: Photo, seed: int) -> Any:
    picture = photo.picture()
    size = official.side_rule(*picture.size, 800, 1333)
    return official.detr_end(*official.resized(picture, photo.official_target(), size))


def official_rt_detr_training(photo: Photo, seed: int) -> Any:
    picture, target = photo.picture(), photo.official_target()
    torch.manual_seed(seed)
    choices = official.draw_rt_detr(picture, target)
    return official.rt_detr_end(*official.rt_detr_train(picture, target, choices))


def official_rt_detr_evaluation(photo: Photo, seed: int) -> Any:
    return official.rt_detr_end(*official.resized(photo.picture(), photo.official_target(), (640, 640)))


def theirs(processor: Any, *, tensor: bool) -> Contestant:
    """An image processor of transformers with annotations, as their training examples call it."""

    def run(photo: Photo, seed: int) -> Any:
        if tensor:
            data = torch.frombuffer(bytearray(photo.data), dtype=torch.uint8)
            image: Any = decode_jpeg(data, ImageReadMode.RGB)
        else:
            image = photo.picture()
        return processor(images=image, annotations=photo.annotations(), return_tensors="pt")

    return run


def chains() -> dict[str, dict[str, Contestant]]:
    """Contestants by chain; the first is the official one, to which the ratios are."""
    detr = {"size": {"shortest_edge": 800, "longest_edge": 1333}}
    rt_detr = {"size": {"height": 640, "width": 640}}
    make = transformers
    return {
        "DETR train": {
            "official, PIL": official_detr_training,
            "ours, float output": ours_training("detr", DETR, finish=True),
            "ours, uint8 output": ours_training("detr", DETR, finish=False),
            "ours with pil backend, float output": ours_training(
                "detr", DETR.with_backend("pil"), finish=True
            ),
        },
        "DETR val": {
            "official, PIL": official_detr_evaluation,
            "ours, float output": ours_evaluation(DETR, finish=True),
            "ours, uint8 output": ours_evaluation(DETR, finish=False),
            "transformers, torchvision": theirs(make.DetrImageProcessor(**detr), tensor=True),
            "transformers, PIL": theirs(make.DetrImageProcessorPil(**detr), tensor=False),
        },
        "RT-DETR train": {
            "official, PIL": official_rt_detr_training,
            "ours, float output": ours_training("rt_detr", RT_DETR, finish=True),
            "ours, uint8 output": ours_training("rt_detr", RT_DETR, finish=False),
            "ours, uint8 output, photometric left too": ours_training(
                "rt_detr", RT_DETR, finish=False, device=True
            ),
        },
        "own operations": {
            "none: decoded and resized": ours_training("none", RT_DETR, finish=False),
            "ours: distort, flip, crop by IoU": own_list("distort", "flip", "iou_crop"),
            "torchvision: distort, flip, crop by IoU": own_list(
                f"{TORCHVISION}.RandomPhotometricDistort",
                f"{TORCHVISION}.RandomHorizontalFlip",
                f"{TORCHVISION}.RandomIoUCrop",
            ),
            "albumentations: colour jitter, flip, crop safe for boxes": own_list(
                {"albumentations.ColorJitter": {"p": 0.5}},
                "albumentations.HorizontalFlip",
                {"albumentations.RandomSizedBBoxSafeCrop": {"height": 480, "width": 480, "p": 0.8}},
            ),
            "torchvision: blur of 5 pixels alone": own_list(
                {f"{TORCHVISION}.GaussianBlur": {"kernel_size": 5}}
            ),
            "albumentations: blur of 5 pixels alone": own_list(
                {"albumentations.GaussianBlur": {"blur_limit": [5, 5], "p": 1.0}}
            ),
        },
        "RT-DETR val": {
            "official, PIL": official_rt_detr_evaluation,
            "ours, float output": ours_evaluation(RT_DETR, finish=True),
            "ours, uint8 output": ours_evaluation(RT_DETR, finish=False),
            "transformers, torchvision": theirs(make.RTDetrImageProcessor(**rt_detr), tensor=True),
            "transformers, PIL": theirs(make.RTDetrImageProcessorPil(**rt_detr), tensor=False),
        },
    }


def ours_in_tiles(photo: Photo, seed: int) -> Any:
    """A tile of a large image, as `finetune --tiles 640` trains on it."""
    transform = build_transform("rt_detr", RT_DETR)
    tiles = TILES.cut(*photo.size)
    tile = tiles[seed % len(tiles)]
    targets = cut_targets(photo.targets(), tile, 0.4).targets
    plan = transform.draw(tile.size, targets.boxes_xyxy, seed)
    out = transform.apply(cropped(photo.decoded(), tile), targets, plan)
    return out.image, out.boxes


def tile_chains() -> dict[str, dict[str, Contestant]]:
    """Large images, whole and in tiles; the ratio is to the whole image."""
    return {
        "RT-DETR train, 2000x1500": {
            "ours, whole image": ours_training("rt_detr", RT_DETR, finish=False),
            "ours, a tile of 640": ours_in_tiles,
        }
    }


def milliseconds(run: Contestant, photos: list[Photo], seed: int) -> float:
    start = time.process_time()
    for number, photo in enumerate(photos):
        run(photo, 1000 * seed + number)
    return (time.process_time() - start) * 1e3 / len(photos)


def serve(run: Contestant, photos: list[Photo], pipe: Connection) -> None:
    torch.set_num_threads(1)
    for seed in iter(pipe.recv, None):
        pipe.send(milliseconds(run, photos, seed))


def measure(
    photos: list[Photo], rounds: int, every: dict[str, dict[str, Contestant]]
) -> list[dict[str, Any]]:
    """Each contestant has a process of its own, as in a DataLoader, and they take turns.

    In one process the memory that one contestant has returned would serve the next.
    """
    context, rows = multiprocessing.get_context("fork"), []
    for chain, contestants in every.items():
        pipes, processes = {}, []
        for name, run in contestants.items():
            pipes[name], far = context.Pipe()
            processes.append(context.Process(target=serve, args=(run, photos, far), daemon=True))
            processes[-1].start()
        times = []
        for seed in range(rounds + 1):
            times.append({})
            for name, pipe in pipes.items():
                pipe.send(seed)
                times[-1][name] = pipe.recv()
        for pipe, process in zip(pipes.values(), processes, strict=True):
            pipe.send(None)
            process.join()
        first = next(iter(contestants))
        for name in contestants:
            ratios = [t[first] / t[name] for t in times[1:]]  # the first round warms up
            rows.append(
                {
                    "chain": chain,
                    "contestant": name,
                    "ms": statistics.median(t[name] for t in times[1:]),
                    "ratio": statistics.median(ratios),
                    "range": (min(ratios), max(ratios)),
                }
            )
    return rows


def deferred(photos: list[Photo], rounds: int) -> list[dict[str, Any]]:
    """The work left to the device, done by this CPU, a batch at a time, per image."""
    rows = []
    for chain, name, contract, device in (
        ("DETR train", "detr", DETR, False),
        ("RT-DETR train", "rt_detr", RT_DETR, False),
        ("RT-DETR train, photometric too", "rt_detr", RT_DETR, True),
    ):
        transform = build_transform(name, contract, photometric="device" if device else "worker")
        samples = []
        for seed, photo in enumerate(photos[:BATCH]):
            out = transform(photo.decoded(), photo.targets(), seed)
            sample = Sample(out.image, out.labels, out.boxes, seed, photo.size, photometric=out.photometric)
            samples.append(sample)
        batch, times = collate(samples), []
        for _ in range(rounds + 1):
            start = time.process_time()
            contract.normalize(batch)
            times.append((time.process_time() - start) * 1e3 / len(samples))
        rows.append({"chain": chain, "ms": statistics.median(times[1:])})
    return rows


def check(photos: list[Photo]) -> float:
    """Largest difference of the evaluation chains' pixels from the official ones, in grey levels."""
    worst = 0.0
    for photo in photos:
        for contract, wanted in ((DETR, official_detr_evaluation), (RT_DETR, official_rt_detr_evaluation)):
            (image, target), (found, boxes) = (
                wanted(photo, 0),
                ours_evaluation(contract, finish=True)(photo, 0),
            )
            assert torch.equal(boxes, target["boxes"])
            worst = max(
                worst, float((found - image).abs().max()) * 255 * (min(contract.std) if contract.std else 1)
            )
    assert worst < 1.2, f"the chains differ by {worst:.2f} levels"
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--coco", type=Path, default=Path(os.environ.get("ZOO_TEST_DATA", "nowhere")) / "coco"
    )
    parser.add_argument("--tiny", action="store_true", help="two small drawn images, to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if options.tiny:
        photos = drawn_photos(2, (60, 80))
    elif (options.coco / "annotations" / "instances_val2017.json").is_file():
        photos = coco_photos(options.coco, options.images)
    else:
        photos = drawn_photos(options.images, (480, 640))
    rows = measure(photos, options.rounds, chains())
    large = drawn_photos(2, (150, 200)) if options.tiny else drawn_photos(6, (1500, 2000))
    rows += measure(large, options.rounds, tile_chains())
    levels, left = check(photos), deferred(photos, options.rounds)
    if options.json:
        print(json.dumps({"rows": rows, "deferred": left, "levels": levels, "images": len(photos)}))
        return
    kilobytes = sum(len(p.data) for p in photos) / len(photos) / 1000
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread; GPU: not measured"
    )
    print(f"{len(photos)} JPEGs of {kilobytes:.0f} kB; pixels of val differ by at most {levels:.2f} levels\n")
    print("| chain | contestant | ms an image | times the official | range |\n|---|---|---|---|---|")
    for row in rows:
        low, high = row["range"]
        print(
            f"| {row['chain']} | {row['contestant']} | {row['ms']:.2f} | {row['ratio']:.2f}x "
            f"| {low:.2f} to {high:.2f} |"
        )
    print(f"\n| left to the device, done by the CPU, batch of {BATCH} | ms an image |\n|---|---|")
    for row in left:
        print(f"| {row['chain']} | {row['ms']:.2f} |")


if __name__ == "__main__":
    main()
