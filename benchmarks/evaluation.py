"""Does an evaluation cost less than that of pycocotools and torchmetrics, and are its numbers the same bits?

AP of boxes and of masks, in sets of COCO val's proportions (a hundred detections, seven objects an image, 80 classes);
from arrays in memory to the numbers; process CPU time of all threads, in turns.
    python benchmarks/evaluation.py [--detections 500 5000 50000 500000] [--rounds 5] [--tiny] [--json]
From 100 000 detections on, pycocotools runs once and torchmetrics not at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from report import HEIGHT, WIDTH, detections, truth
from torchmetrics.detection import MeanAveragePrecision

from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import Collected, MaskCodes

MANY = 100_000
Scores = dict[str, float]


def made_up(number: int, masks: bool) -> Collected:
    """As many detections, a hundred an image."""
    rng, images = np.random.default_rng(0), max(1, number // 100)
    boxes, labels, image = truth(images, 7 * images, rng)
    found, classes, owner = detections(boxes, labels, image, images, number, rng)
    areas = (boxes[:, 2] * boxes[:, 3])[:, None]
    ids = np.column_stack([np.arange(images), np.full((images, 1), 1) * [[HEIGHT, WIDTH]]]).astype(np.int64)
    data = Collected(ids, found, classes, owner, np.hstack([boxes, areas]), labels, image)
    return data._replace(masks=MaskCodes(ellipses(found), ellipses(boxes))) if masks else data


def ellipses(boxes: np.ndarray) -> list[bytes]:
    """The code of an ellipse in each box x, y, w, h."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = 0.5 + 0.5 * np.column_stack([np.cos(angles), np.sin(angles)])
    outlines = [(box[:2] + circle * box[2:4]).ravel().tolist() for box in boxes]
    return [
        code["counts"] for outline in outlines for code in coco_mask.frPyObjects([outline], HEIGHT, WIDTH)
    ]


def by(backend: Any, data: Collected) -> Scores:
    """The twelve numbers."""
    return Evaluation(data, backend).scores


def by_torchmetrics(data: Collected) -> Scores:
    """The metric of torchmetrics, one update; its boxes are float32, so the numbers may differ in the last digits."""
    metric = MeanAveragePrecision(box_format="xywh", iou_type=data.iou_type)
    parts = []
    for values, labels, owner, codes in (
        (data.detections, data.detection_labels, data.detection_image, data.masks and data.masks.detections),
        (
            data.annotations,
            data.annotation_labels[:, 0],
            data.annotation_image,
            data.masks and data.masks.annotations,
        ),
    ):
        rows = [np.flatnonzero(owner == image) for image in range(len(data.images))]
        part = [
            {"boxes": torch.tensor(values[r, :4]).float(), "labels": torch.tensor(labels[r])} for r in rows
        ]
        if codes is not None:
            for one, r in zip(part, rows, strict=True):
                rles = [{"size": [HEIGHT, WIDTH], "counts": codes[k]} for k in r]
                one["masks"] = torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1).bool()
        parts.append((part, rows))
    (found, rows), (wanted, objects) = parts
    for one, r in zip(found, rows, strict=True):
        one["scores"] = torch.tensor(data.detections[r, 4])
    for one, r in zip(wanted, objects, strict=True):
        one["iscrowd"] = torch.tensor(data.annotation_labels[r, 1])
        one["area"] = torch.tensor(data.annotations[r, 4])
    metric.update(found, wanted)
    return {"AP": float(metric.compute()["map"])}


def timed(run: Callable[[], Scores]) -> tuple[float, Scores]:
    """(CPU milliseconds, numbers)."""
    start = time.process_time()
    scores = run()
    return 1e3 * (time.process_time() - start), scores


def measure(number: int, masks: bool, rounds: int) -> list[dict[str, Any]]:
    """A row for each other library.

    Raises:
        SystemExit: a number differs from pycocotools' in any bit.
    """
    data = made_up(number, masks)
    others: dict[str, Callable[[], Scores]] = {"pycocotools": lambda: by("pycocotools", data)}
    if number < MANY:
        others["torchmetrics"] = lambda: by_torchmetrics(data)
    by("hotcoco", data)  # its first use starts its threads
    rows = []
    for other, run in others.items():
        mine, theirs, scores = [], [], {}
        for _ in range(rounds):
            spent, scores = timed(lambda: by("hotcoco", data))
            mine.append(spent)
            if number < MANY or not theirs:
                spent, found = timed(run)
                theirs.append(spent)
        if other == "pycocotools" and json.dumps(scores) != json.dumps(found):
            raise SystemExit(f"{number} detections: {scores} are not pycocotools' {found}")
        pairs = zip(mine, theirs if len(theirs) == rounds else theirs * rounds, strict=True)
        ratios = [b / a for a, b in pairs]
        rows.append(
            {
                "what": "masks" if masks else "boxes", "detections": number, "other": other, "images": len(data.images),
                "ours_ms": statistics.median(mine), "other_ms": statistics.median(theirs),
                "ratio": statistics.median(ratios), "ratios": ratios, "ap_difference": abs(scores["AP"] - found["AP"]),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detections", type=int, nargs="*", default=[500, 5000, 50_000, 500_000])
    parser.add_argument("--masks", type=int, nargs="*", default=[500, 5000], help="detections with masks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(200, False), (200, True)] if options.tiny else []
    if not options.tiny:
        sizes = [(n, False) for n in options.detections] + [(n, True) for n in options.masks]
    rows = []
    print(
        "| what | detections | other | ours, ms | other, ms | ratio | range | AP differs by |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for number, masks in sizes:
        for row in measure(number, masks, options.rounds):
            rows.append(row)
            low, high = min(row["ratios"]), max(row["ratios"])
            print(
                f"| {row['what']} | {number} | {row['other']} | {row['ours_ms']:.1f} | {row['other_ms']:.1f} "
                f"| {row['ratio']:.1f}x | {low:.1f} to {high:.1f} | {row['ap_difference']:.1e} |",
                flush=True,
            )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
