"""Can DETR with masks learn at all? A small panoptic model overfits eight real images on one core.

Boxes, classes and masks train together from random weights, without augmentation, on the images of a COCO
panoptic folder that have the fewest segments, resized to 192x256; then PQ, box AP and mask AP on those images
at their original size, by the published rules (score above 0.85, more than 4 pixels; no image has padding).
    python benchmarks/panoptic_overfit.py DATA [--steps 800] [--weights FILE] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import LoadedData
from datamodules.panoptic import CocoPanopticDataModule
from zoo.architectures.detr import DetrSegmentationModule
from zoo.batch import Batch, Step
from zoo.criterion import LossWeights, MaskLossWeights
from zoo.evaluation import CocoAP
from zoo.layers.backbone import BackboneConfig
from zoo.layers.transformer import TransformerConfig
from zoo.masks import PanopticRule, sizes_without_padding
from zoo.matcher import MatchCosts
from zoo.panoptic_quality import PanopticQuality
from zoo.preflight import use_batch_statistics_of
from zoo.preprocess import InputContract
from zoo.schedule import Schedule

IMAGES = 8
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


def measured(module: DetrSegmentationModule, batch: Batch) -> dict[str, float]:
    """PQ, SQ, RQ, box AP and mask AP on one batch with its truth."""
    module.eval()
    quality, boxes, masks = PanopticQuality(), CocoAP(), CocoAP(iou_type="segm")
    predictions = module.predictions(batch)
    sizes = sizes_without_padding(batch)
    assert module.panoptic is not None
    assert module.label_map is not None
    quality.update(module.panoptic(predictions, sizes, batch.original_sizes, module.label_map.things), batch)
    found = module.instances(predictions, sizes, batch.original_sizes)
    boxes.update(found, batch)
    masks.update(found, batch)
    module.train()
    scores = {k: v for k, v in quality.compute().items() if k in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")}
    return {**scores, "AP": boxes.compute()["AP"], "segm_AP": masks.compute()["AP"]}


def overfit(
    root: Path, steps: int, size: tuple[int, int], lr: float, say: Any
) -> tuple[Any, Batch, dict[str, Any]]:
    """Trains; returns the module, the images with their truth, and what was measured."""
    data = data_of(root, size)
    module = model(data.label_map.num_classes, lr)
    module.adopt(data.label_map, data.input)
    truth = next(iter(data.val_dataloader()))
    batch = module.normalized(next(iter(data.train_dataloader())))
    module.train()
    optimizer = module.schedule.optimizer(module.network)
    scheduler = module.schedule.scheduler(optimizer, 1, steps)
    begun, curve = time.process_time(), []
    counts = torch.tensor(batch.targets.counts)
    for step in range(1, steps + 1):
        now = replace(batch, step=Step(counts, (batch.images.shape[2], batch.images.shape[3]), step))
        losses = module.losses(now)
        total = torch.stack([v.sum() for v in losses.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        if step % EVERY == 0 or step == steps:
            use_batch_statistics_of(module, batch)
            parts = {name: float(value.detach().sum()) for name, value in losses.items()}
            row = {"step": step, "loss": float(total.detach()), **measured(module, truth), **parts}
            row["cpu_seconds"] = time.process_time() - begun
            curve.append(row)
            say("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    result = {"images": len(truth), "objects": sum(batch.targets.counts), "size": size, "curve": curve}
    return module, truth, result


def main() -> None:
    """Prints a line every 100 steps; with --json one object last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), help="h w")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weights", type=Path, help="file for the trained state dict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, _, result = overfit(
        options.data, options.steps, tuple(options.size), options.lr, lambda line: print(line, flush=True)
    )
    if options.weights:
        torch.save(module.network.state_dict(), options.weights)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
