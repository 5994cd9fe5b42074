"""What tiles bring and cost: AP with and without, rules that merge over seams, memory and time of the loader.

    python benchmarks/tiles.py train [--data DIR] [--tiles 320] [--steps 200]   fine-tunes twice, with tiles and without
    python benchmarks/tiles.py merge --data DIR [--images 192]                  one network, rules of merging in turn
    python benchmarks/tiles.py memory [--images 1000]                           of a process that reads tiles
Without --data, `train` draws images of 2000x1500 with objects of 12 pixels. With it, images of DIR are put side by
side, --grid a side, so that its objects are small in large images. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import zoo
from datamodules.formats.detect import read
from datamodules.images.decoding import decode
from datamodules.index import AnnotationIndex
from datamodules.loading.pictures import TilePictures
from datamodules.loading.truth import Truth
from datamodules.tiling.items import TileItems
from datamodules.tiling.rules import TileSampling
from zoo.contract.batch import Annotations, Batch, Detections, Targets
from zoo.contract.labels import LabelMap
from zoo.contract.tiles import Tiles, parse_tiles
from zoo.evaluation.coco_ap import CocoAP
from zoo.prediction.tiles import merge as ours
from zoo.prediction.tiles.merge import View
from zoo.prediction.tiles.overlaps import areas
from zoo.prediction.tiles.views import cropped, placed, worth_it

MODEL = "deimv2_atto"
DRAWN = (1500, 2000)  # h, w
SIDE = 12
OBJECTS = 40  # an image
CELL = (480, 640)
_SHOWN = ("AP", "AP50", "APs", "APm", "APl", "AR100")


def write(
    folder: Path, split: str, images: Sequence[tuple[Image.Image, list[Any]]], names: Sequence[str]
) -> None:
    """COCO; objects are (class, x, y, w, h, area, crowd)."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    rows, annotations = [], []
    for number, (image, objects) in enumerate(images):
        image.save(folder / split / f"{number}.jpg", quality=92)
        rows.append(
            {"id": number, "file_name": f"{number}.jpg", "width": image.width, "height": image.height}
        )
        for label, x, y, w, h, area, crowd in objects:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": [x, y, w, h],
                 "area": area, "iscrowd": int(crowd)}
            )  # fmt: skip
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(names)]
    content = {"images": rows, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def drawn(seed: int) -> tuple[Image.Image, list[Any]]:
    """Discs and squares of `SIDE` pixels on a coarse and a fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 190, (DRAWN[0] // 50, DRAWN[1] // 50, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(DRAWN[::-1], Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (*DRAWN, 1))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    draw, objects = ImageDraw.Draw(image), []
    for _ in range(OBJECTS):
        x, y = int(rng.integers(0, DRAWN[1] - SIDE)), int(rng.integers(0, DRAWN[0] - SIDE))
        label, colour = int(rng.integers(2)), tuple(rng.integers(0, 256, 3).tolist())
        shape = draw.ellipse if label == 0 else draw.rectangle
        shape((x, y, x + SIDE - 1, y + SIDE - 1), fill=colour, outline=(20, 20, 20))
        objects.append((label, x, y, SIDE, SIDE, SIDE * SIDE, False))
    return image, objects


def side_by_side(
    index: AnnotationIndex, heads: dict[int, int], grid: int, most: int
) -> list[tuple[Image.Image, list[Any]]]:
    """Images of a split, stretched to `CELL`, `grid` x `grid` in each of the new ones."""
    height, width = CELL
    found = []
    for first in range(0, len(index) - grid * grid + 1, grid * grid):
        if len(found) == most:
            break
        canvas, objects = Image.new("RGB", (grid * width, grid * height)), []
        for n, row in enumerate(range(first, first + grid * grid)):
            top, left = n // grid * height, n % grid * width
            own, (h, w) = index.objects(row), index.size(row)
            picture = decode(index.images, index.files[row], index.image_id(row), index.size(row))
            canvas.paste(picture.resize((width, height)), (left, top))
            sx, sy = width / w, height / h
            for box, area, source, crowd in zip(
                own.boxes_xywh, own.areas, own.source_ids, own.crowd, strict=True
            ):
                x, y, bw, bh = box.tolist()
                objects.append(
                    (
                        heads[int(source)],
                        left + x * sx,
                        top + y * sy,
                        bw * sx,
                        bh * sy,
                        float(area) * sx * sy,
                        bool(crowd),
                    )
                )
        found.append((canvas, objects))
    return found


def make_set(folder: Path, options: argparse.Namespace) -> Path:
    """The data set of `train`."""
    if options.data is None:
        for split, seeds in (
            ("train", range(options.images)),
            ("val", range(900, 900 + options.images // 3)),
        ):
            write(folder, split, [drawn(seed) for seed in seeds], ("disc", "square"))
        return folder
    source = read(options.data)
    labels = source.label_map()
    for split in ("train", "val"):
        index = source.splits[split if split in source.splits else "test"]
        made = side_by_side(
            index, labels.head_of_source, options.grid, options.images if split == "train" else 8
        )
        write(folder, split, made, labels.names)
    return folder


def train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fine-tunes with and without tiles: steps of the same number of images of the same size at the input."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = make_set(Path(scratch, "data"), options)
        for tiles in (None, options.tiles):
            begun, wall = time.process_time(), time.perf_counter()
            run = zoo.finetune(
                MODEL, data, max_steps=options.steps, batch_size=8, tiles=tiles, seed=0, console=zoo.Silent(),
                weights=options.weights, output=Path(scratch, f"run-{tiles}"), registry=Path(scratch, "registry"),
                overrides={"data.num_workers": 0, "trainer.accelerator": "cpu", "data.eval_batch_size": 8,
                           "trainer.check_val_every_n_epoch": 1000},
            )  # fmt: skip
            trained = time.process_time() - begun
            scored = run.scores["val"]
            detector = run.detector()
            images = sorted((data / "val").iterdir())[:4]
            begun = time.process_time()
            for image in images:
                detector.predict(image)
            took = {"cpu_s": round(trained), "wall_s": round(time.perf_counter() - wall)}
            each = round(1000 * (time.process_time() - begun) / len(images))
            shown = {"AP": scored["AP"], "interval": scored["interval"]["AP"], "AP50": scored["AP50"]}
            rows.append({"tiles": tiles or "none", **shown, **took, "predict_cpu_ms": each})
            print(json.dumps(rows[-1]), flush=True)
    return rows


# ---------------------------------------------------------------------- rules of merging


def suppressed(views: Sequence[View], measure: str, least: float, around: bool) -> Detections:
    """NMS, or with `around` greedy NMM: the box around all that the best one meets. IoU, or IoS: of the smaller box."""
    scores, labels, boxes = (torch.cat([v.detections[n] for v in views]).numpy() for n in range(3))
    kept: list[tuple[float, int, Any]] = []
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind="stable")]
        box, size, gone = boxes[own], areas(boxes[own]), np.zeros(len(own), dtype=bool)
        for n in range(len(own)):
            if gone[n]:
                continue
            low, high = np.maximum(box[n, :2], box[n:, :2]), np.minimum(box[n, 2:], box[n:, 2:])
            shared = np.maximum(high - low, 0).prod(axis=1)
            base = np.minimum(size[n], size[n:]) if measure == "ios" else size[n] + size[n:] - shared
            hit = (shared >= least * np.maximum(base, 1e-9)) & ~gone[n:]
            group = box[n:][hit]
            whole = (
                np.concatenate([group[:, :2].min(axis=0), group[:, 2:].max(axis=0)])
                if around and hit.any()
                else box[n]
            )
            gone[n:] |= hit
            kept.append((float(scores[own[n]]), label, whole))
    kept.sort(key=lambda one: -one[0])
    return Detections(
        torch.tensor([one[0] for one in kept]), torch.tensor([one[1] for one in kept]),
        torch.from_numpy(np.array([one[2] for one in kept]).reshape(-1, 4)).float(),
    )  # fmt: skip


def joined(views: Sequence[View]) -> Detections:
    """All as they are."""
    return Detections(*(torch.cat([v.detections[n] for v in views]) for n in range(3)))


Rule = Callable[[Sequence[View], tuple[int, int]], Detections]


def rules() -> dict[str, Rule]:
    """By name."""
    found: dict[str, Rule] = {
        "whole image, no tiles": lambda views, size: joined(views[:1]),
        "nothing merged": lambda views, size: joined(views),
        "one of a view (ours)": ours.merge,
        "ours, tiles alone": lambda views, size: ours.merge(views[1:], size),
    }
    for around in (False, True):
        for measure in ("iou", "ios"):
            for least in (0.5, 0.7):
                found[f"{'NMM' if around else 'NMS'}, {'IoU' if measure == 'iou' else 'IoS'} {least}"] = (
                    lambda views, size, m=measure, t=least, a=around: suppressed(views, m, t, a)
                )
    return found


def merge(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One network, as published; images side by side; each rule on the same detections."""
    detector = zoo.load(MODEL)
    source = read(options.data)
    index = source.splits["val"]
    made = side_by_side(
        index, detector.label_map.head_of_source, options.grid, options.images // options.grid**2
    )
    tiles = parse_tiles(options.tiles, options.overlap)
    contract = detector.input.with_tiles(tiles)
    seen = []
    for image, objects in made:
        size, found = (image.height, image.width), []
        for some in contract.view_batches(*size, 8):
            levels = torch.stack([contract.resize_image(cropped(image, tile)) for tile in some])
            batch = _batch(levels, [tile.size for tile in some])
            for tile, detections in zip(some, detector.module.detect(batch), strict=True):
                found.append(View(tile, placed(detections, tile)))
        own = [View(v.tile, worth_it(v.detections, v.tile, size, tiles)) for v in found]
        seen.append((size, found, own, objects))
    rows = []
    for name, rule in rules().items():
        metric, spent = CocoAP(), 0.0
        for number, (size, found, own, objects) in enumerate(seen):
            begun = time.process_time()
            merged = rule(own if "ours" in name else found, size)
            spent += time.process_time() - begun
            facts = torch.tensor(objects, dtype=torch.float64)
            truth = Annotations(
                facts[:, 1:5], facts[:, 5], facts[:, 0].long(), facts[:, 6].bool(), (len(facts),)
            )
            metric.update([merged], _batch(torch.zeros(1, 3, 1, 1), [size], number, truth))
        scores = {key: round(100 * value, 1) for key, value in metric.compute().items() if key in _SHOWN}
        rows.append({"rule": name, **scores, "ms": round(1000 * spent / len(seen))})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _batch(
    levels: torch.Tensor, sizes: list[tuple[int, int]], number: int = 0, truth: Annotations | None = None
) -> Batch:
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,) * len(levels))
    padding = torch.zeros(len(levels), *levels.shape[2:], dtype=torch.bool)
    return Batch(levels, padding, nothing, (number,) * len(levels), tuple(sizes), annotations=truth)


# ---------------------------------------------------------------------- memory


def resident() -> int:
    """Memory of this process in bytes, as the kernel counts it now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Reads so many tiles of large images in the order of an epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for split, seeds in (("train", range(6)), ("val", range(1))):
            write(folder, split, [drawn(seed) for seed in seeds], ("disc", "square"))
        index = read(folder).splits["train"]
        tiles = Tiles(size=(640, 640))
        items = TileItems(index, tiles, TileSampling(), seed=0)
        pictures = TilePictures(index, LabelMap.contiguous(["disc", "square"], [1, 2]), Truth(), items)
        order, rows, begun = np.random.default_rng(0), [], time.process_time()
        for number in range(options.images):
            item = int(order.integers(len(items)))
            pictures.image(0, item, "fast")
            pictures.targets(0, item)
            if number + 1 in (10, 100, options.images // 2, options.images):
                each = 1000 * (time.process_time() - begun) / (number + 1)
                rows.append({"tiles": number + 1, "MB": round(resident() / 1e6), "ms": round(each, 1)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "merge", "memory"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, help="default: train 24, merge 192, memory 1000")
    parser.add_argument("--grid", type=int, default=4)
    parser.add_argument("--tiles", default="320")
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weights", default="published")
    options = parser.parse_args()
    options.images = options.images or {"train": 24, "merge": 192, "memory": 1000}[options.what]
    torch.set_num_threads(1)
    rows = {"train": train, "merge": merge, "memory": memory}[options.what](options)
    names = list(rows[0])
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


if __name__ == "__main__":
    main()
