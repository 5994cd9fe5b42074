"""Tiny DETRs with masks, for the tests of detector and command line: one panoptic, one of instances only."""

import math

import torch
from registry_case import write_checkpoint

from zoo.contract.batch import Predictions
from zoo.contract.labels import LabelMap
from zoo.training.module import build_module

# two things and two kinds of stuff on raw ids with holes, as COCO's
LABELS = LabelMap(
    names=("cat", "dog", "grass-merged", "sky-other-merged"),
    source_ids=(2, 3, 7, 8),
    head_indices=(2, 3, 7, 8),
    num_classes=9,
    is_thing=(True, True, False, False),
    colors=((220, 20, 60), (0, 0, 142), (152, 251, 152), (70, 130, 180)),
)
INPUT = {
    "resize": "stretch",
    "size": [64, 96],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "backend": "fast",
    "padding": "batch",
}
PANOPTIC = {"score_threshold": 0.85, "min_area": 4, "crop_padding": False}


def block(panoptic=PANOPTIC):
    return {
        "class_path": "zoo.architectures.detr.DetrSegmentationModule",
        "init_args": {
            "num_classes": LABELS.num_classes,
            "backbone": {"name": "resnet18", "weights": "random", "freeze_stem": False, "frozen_norm": True},
            "transformer": {
                "dim": 128, "num_heads": 8, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1,
                "num_queries": 12, "dropout": 0.0, "pre_norm": False, "position": "sine",
            },
            "costs": {"label": 1.0, "l1": 5.0, "giou": 2.0},
            "losses": {"label": 1.0, "l1": 5.0, "giou": 2.0},
            "mask_losses": {"focal": 1.0, "dice": 1.0},
            "no_object_weight": 0.1,
            "normalizer": "exact",
            "mask_threshold": 0.5,
            "panoptic": panoptic,
            "schedule": {
                "lr": 1e-4, "weight_decay": 1e-4, "rules": [], "warmup_steps": 0, "drop_epochs": [],
                "global_batch_size": 2,
            },
            "ema": None,
        },
    }  # fmt: skip


def mask_module(panoptic=PANOPTIC):
    """Random weights."""
    torch.manual_seed(0)
    return build_module(block(panoptic)).eval()


def scripted(batch):
    """What `DetectionModule.predictions` gives: cat on the left half, dog right, sky at the top, two others.

    Scores are 0.95, 0.9, 0.88, 0.5 (grass, at the bottom) and 0.99 (a head index that no class has).
    """
    classes, scores = (2, 3, 8, 7, 5), (0.95, 0.9, 0.88, 0.5, 0.99)
    logits = torch.zeros(len(batch), 5, LABELS.num_classes + 1)
    for query, (head, score) in enumerate(zip(classes, scores, strict=True)):
        logits[:, query] = math.log((1 - score) / LABELS.num_classes)
        logits[:, query, head] = math.log(score)
    areas = torch.full((5, 8, 8), -9.0)
    areas[0, 2:6, :4], areas[1, 2:6, 4:], areas[2, :2], areas[3, 6:] = 5.0, 4.0, 6.0, 3.0
    areas[4, 7:, 7:] = 8.0
    boxes = torch.tensor(
        [
            [0.25, 0.5, 0.5, 0.5],
            [0.75, 0.5, 0.5, 0.5],
            [0.5, 0.125, 1, 0.25],
            [0.5, 0.875, 1, 0.25],
            [0.9, 0.9, 0.1, 0.1],
        ]
    )
    masks = lambda image, query: areas[query]  # noqa: E731
    return Predictions(logits, boxes.expand(len(batch), -1, -1), masks=masks)


def mask_checkpoint(path, panoptic=PANOPTIC):
    """`write_checkpoint` of a module with masks, which it returns."""
    module = mask_module(panoptic)
    write_checkpoint(path, module, LABELS, INPUT, step=3)
    return module
