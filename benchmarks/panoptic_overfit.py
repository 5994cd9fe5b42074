"""Can DETR with masks learn at all? A small panoptic model overfits eight real images on one core.

Boxes, classes and masks train together from random weights, without augmentation, on the images of a COCO
panoptic folder that have the fewest segments, resized to 192x256; then PQ, box AP and mask AP on those images
at their original size, by the published rules (score above 0.85, more than 4 pixels; no image has padding).
    python benchmarks/panoptic_overfit.py DATA [--steps 800] [--picture FILE] [--tiny] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.base import LoadedData
from datamodules.panoptic import CocoPanopticDataModule
from zoo.architectures.detr import DetrSegmentationModule
from zoo.contract.batch import Batch
from zoo.contract.preprocess import InputContract
from zoo.contract.segments import PanopticSegmentation
from zoo.evaluation.coco_ap import CocoAP
from zoo.evaluation.panoptic_quality import PanopticQuality
from zoo.layers.backbone import BackboneConfig
from zoo.layers.transformer import TransformerConfig
from zoo.pictures.detections import gallery
from zoo.pictures.segments import compare_panoptic
from zoo.prediction.masks import PanopticRule, sizes_without_padding
from zoo.training.criterion import LossWeights, MaskLossWeights
from zoo.training.matcher import MatchCosts
from zoo.training.preflight import alone, use_batch_statistics_of
from zoo.training.schedule import Schedule

IMAGES = 8
STEPS = 800
SIZE = (192, 256)
EVERY = 50  # steps between two measurements


def model(num_classes: int, lr: float) -> DetrSegmentationModule:
    """DETR with the published losses and rules, but small: 2 decoder layers of width 128, 20 queries."""
    torch.manual_seed(0)
    return DetrSegmentationModule(
        num_classes=num_classes,
        backbone=BackboneConfig(
            name="residual", weights="random", freeze_stem=False, frozen_norm=False,
            widths=[16, 24, 32, 64, 96, 128],
        ),
        transformer=TransformerConfig(
            dim=128, num_heads=8, ffn_dim=256, encoder_layers=2, decoder_layers=2, num_queries=20,
            dropout=0.0, pre_norm=False, position="sine",
        ),
        costs=MatchCosts(label=1, l1=5, giou=2),
        losses=LossWeights(label=1, l1=5, giou=2),
        mask_losses=MaskLossWeights(focal=1, dice=1),
        no_object_weight=0.1,
        normalizer="exact",
        mask_threshold=0.5,
        panoptic=PanopticRule(score_threshold=0.85, min_area=4, crop_padding=False),
        schedule=Schedule(
            lr=lr, weight_decay=1e-4, rules=[], warmup_steps=20, drop_epochs=[], global_batch_size=IMAGES,
            decay="cosine", final_factor=0.05,
        ),
        ema=None,
    )  # fmt: skip


class FewestSegments(CocoPanopticDataModule):
    """The images with the fewest segments: less to learn, so fewer steps, on real pictures all the same."""

    def load(self) -> LoadedData:
        """As the base class, cut to `IMAGES`."""
        loaded = super().load()
        splits = {}
        for name, index in loaded.splits.items():
            rows = np.argsort(np.diff(index.offsets), kind="stable")[:IMAGES]
            splits[name] = index.take(sorted(rows.tolist()))
        return replace(loaded, splits=splits, faults=())


def data_of(root: Path, size: tuple[int, int]) -> CocoPanopticDataModule:
    """Images of the training split, for training and for evaluation."""
    data = FewestSegments(
        root=str(root), labels="contiguous", train_transform="none", batch_size=IMAGES,
        input=InputContract(resize="stretch", size=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        eval_batch_size=IMAGES, num_workers=0, seed=0, train_split="train2017", eval_split="train2017",
    )  # fmt: skip
    data.setup("fit")
    data.plan_steps(IMAGES, 1, 0)
    return data


def segments(module: DetrSegmentationModule, batch: Batch) -> list[PanopticSegmentation]:
    """Panoptic prediction of each image."""
    assert module.panoptic is not None
    assert module.label_map is not None
    sizes = sizes_without_padding(batch)
    return module.panoptic(module.predictions(batch), sizes, batch.original_sizes, module.label_map.things)


def measured(module: DetrSegmentationModule, batch: Batch) -> dict[str, float]:
    """PQ, SQ, RQ, box AP and mask AP on one batch with its truth."""
    quality, boxes, masks = PanopticQuality(), CocoAP(), CocoAP(iou_type="segm")
    quality.update(segments(module, batch), batch)
    sizes = sizes_without_padding(batch)
    found = module.instances(module.predictions(batch), sizes, batch.original_sizes)
    boxes.update(found, batch)
    masks.update(found, batch)
    scores = {k: v for k, v in quality.compute().items() if k in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")}
    return {**scores, "AP": boxes.compute()["AP"], "segm_AP": masks.compute()["AP"]}


def trained(
    data: CocoPanopticDataModule, steps: int, lr: float, say: Callable[[str], None]
) -> tuple[DetrSegmentationModule, Batch, list[dict[str, Any]]]:
    """The module after `steps`, the images with their truth, and what was measured on the way."""
    module = model(data.label_map.num_classes, lr)
    module.adopt(data.label_map, data.input)
    truth = next(iter(data.val_dataloader()))
    batch = module.normalized(next(iter(data.train_dataloader())))
    optimizer = module.schedule.optimizer(module.network)
    scheduler = module.schedule.scheduler(optimizer, 1, steps)
    begun, rows = time.process_time(), []
    for step in range(1, steps + 1):
        module.train()
        losses = module.losses(alone(batch, step))
        total = torch.stack([v.sum() for v in losses.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        if step % EVERY == 0 or step == steps:
            use_batch_statistics_of(module, batch)
            row = {"step": step, "loss": float(total.detach()), **measured(module, truth)}
            row["cpu_seconds"] = time.process_time() - begun
            rows.append(row)
            say("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return module, truth, rows


def write_picture(
    path: Path, module: DetrSegmentationModule, truth: Batch, data: CocoPanopticDataModule
) -> None:
    """Prediction beside truth for each image, at its original size."""
    assert truth.panoptic is not None
    index, pictures = data.read().splits["val"], []
    for row, (found, true) in enumerate(zip(segments(module, truth), truth.panoptic, strict=True)):
        with Image.open(index.path(row)) as file:
            pictures.append(compare_panoptic(file.convert("RGB"), found, true, data.label_map))
    gallery(pictures, columns=2).save(path)


def main() -> None:
    """Prints a line every 50 steps; with --json one object last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="h w")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--picture", type=Path, help="PNG of predictions beside truths")
    parser.add_argument("--tiny", action="store_true", help="two steps on 64x64 images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, size = (2, (64, 64)) if options.tiny else (options.steps, tuple(options.size))
    data = data_of(options.data, size)
    module, truth, rows = trained(data, steps, options.lr, lambda line: print(line, flush=True))
    if options.picture is not None:
        write_picture(options.picture, module, truth, data)
    if options.json:
        segmented = sum(truth.targets.counts)
        print(json.dumps({"images": len(truth), "segments": segmented, "size": size, "rows": rows}))


if __name__ == "__main__":
    main()
