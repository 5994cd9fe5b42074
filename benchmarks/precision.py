"""One epoch of each family in float32 and in bf16-mixed on the CPU: the same weights, images and draws.

Small networks with the published criterion, on generated shapes (with their boxes as masks), learning rate
1e-4 and clipping at 0.1 as published. The losses are means over the steps of the epoch, and over its last quarter.
    python benchmarks/precision.py [--images 128] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from datamodules.custom import CustomDataModule
from datamodules.shapes import generate_shapes
from zoo.contract.preprocess import InputContract
from zoo.runs import recipes
from zoo.runs.lightning import quiet
from zoo.training.module import DetectionModule, build_module

SIDE = 128
FAMILIES = {
    "DETR": "detr/r50_coco_500e",
    "DETR with masks": "detr/r50_panoptic_coco_25e",
    "Deformable DETR": "deformable_detr/r50_coco_50e",
    "Deformable DETR, two-stage": "deformable_detr/r50_two_stage_coco_50e",
    "RT-DETR": "rt_detr/tiny",
}
PRECISIONS = ("32-true", "bf16-mixed")


class Losses(L.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        """Reads what the module logged."""
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def small(family: str) -> DetectionModule:
    """The family's recipe with a small backbone and transformer; its criterion and selection as published."""
    block = recipes.load(recipes.resolve(FAMILIES[family]))["model"]
    arguments, masks = block["init_args"], "masks" in family
    arguments["num_classes"] = 4
    arguments["schedule"] |= {
        "rules": [], "lr": 1e-4, "global_batch_size": 8, "warmup_steps": 0, "drop_epochs": [],
    }  # fmt: skip
    arguments["backbone"] = {
        "name": "residual", "weights": "random", "freeze_stem": False, "frozen_norm": False,
        "widths": [16, 24, 32, 64, 96, 128] if masks else [16, 32, 64, 96, 128],
    }  # fmt: skip
    if family != "RT-DETR":
        arguments["transformer"] |= {
            "dim": 128, "ffn_dim": 256, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 50,
        }  # fmt: skip
    torch.manual_seed(0)
    return build_module(block)


def outline_boxes(data: Path) -> None:
    """Gives every object its box as outline: the shapes have none."""
    for file in data.rglob("*.json"):
        document = json.loads(file.read_text(encoding="utf-8"))
        for one in document.get("annotations", ()):
            x, y, w, h = one["bbox"]
            one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        file.write_text(json.dumps(document), encoding="utf-8")


def epoch(family: str, precision: str, data: Path, scratch: Path) -> tuple[list[float], float]:
    """(loss of each step, seconds)."""
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision=precision, gradient_clip_val=0.1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        use_distributed_sampler=False, default_root_dir=scratch, callbacks=[losses],
    )  # fmt: skip
    images = CustomDataModule(
        root=str(data), input=InputContract(resize="stretch", size=(SIDE, SIDE)), train_transform="flip",
        batch_size=8, eval_batch_size=8, num_workers=0, seed=0, masks="masks" in family,
    )  # fmt: skip
    begun = time.monotonic()
    trainer.fit(small(family), images)
    return losses.values, time.monotonic() - begun


def row(family: str, data: Path, scratch: Path) -> dict[str, Any]:
    """Both precisions of one family."""
    runs = {precision: epoch(family, precision, data, scratch) for precision in PRECISIONS}
    steps = len(runs["32-true"][0])
    found: dict[str, Any] = {"family": family, "steps": steps}
    for name, part in (("epoch", slice(None)), ("last_quarter", slice(-(steps // 4), None))):
        exact, mixed = (sum(v[part]) / len(v[part]) for v in (runs[p][0] for p in PRECISIONS))
        found |= {name: exact, f"{name}_mixed": mixed, f"{name}_difference": (mixed - exact) / exact}
    return found | {"seconds": runs["32-true"][1], "seconds_mixed": runs["bf16-mixed"][1]}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        data = generate_shapes(Path(scratch) / "shapes", given.images, 8, seed=0, size=SIDE)
        outline_boxes(data)
        rows = [row(family, data, Path(scratch)) for family in FAMILIES]
    if given.json:
        print(json.dumps({"rows": rows}))
        return
    print(
        "| family | steps | float32 | bf16-mixed | difference | last quarter | bf16-mixed | difference | s | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['family']} | {r['steps']} | {r['epoch']:.3f} | {r['epoch_mixed']:.3f} "
            f"| {r['epoch_difference']:+.2%} | {r['last_quarter']:.3f} | {r['last_quarter_mixed']:.3f} "
            f"| {r['last_quarter_difference']:+.2%} | {r['seconds']:.1f} | {r['seconds_mixed']:.1f} |"
        )


if __name__ == "__main__":
    main()
