"""Mask losses and what becomes of masks, against facebookresearch/detr@29901c5: one function for each kind of case."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.contract.batch import Predictions
from zoo.prediction.masks import PanopticRule, Size, binary_masks, padded_size
from zoo.training.losses import focal_and_dice
from zoo.verification.cases import Case, Comparison, compare, compare_exact

LAST_THING = 90  # of COCO's raw category ids; those above are stuff
SMALLEST_KEPT = 5  # pixels


@dataclass(frozen=True)
class StoredMasks:
    """Masks of all queries [B, Q, h, w] as a `MaskFunction`, a leaf of the graph."""

    logits: Tensor

    def __post_init__(self) -> None:
        self.logits.requires_grad_()

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """[P, h, w]."""
        return self.logits[image, query]


def run_mask_losses(case: Case) -> list[Comparison]:
    """Focal and dice loss alone with their gradients, for several divisors."""
    results = []
    masks = case["targets"].bool()[:, None]  # a picture of one row
    for precision, dtype, value, slope in (
        ("f32", torch.float32, 1e-5, 1e-4),
        ("f64", torch.float64, 1e-10, 1e-10),
    ):
        inputs = case["inputs"].to(dtype).requires_grad_()
        for name, per_mask in zip(("focal", "dice"), focal_and_dice(inputs[:, None], masks), strict=True):
            for key in (
                k for k in case.arrays if k.startswith(f"{precision}/{name}/") and k.endswith("/loss")
            ):
                ours = per_mask.sum() / int(key.split("/")[2].removeprefix("num_boxes_"))
                [gradient] = torch.autograd.grad(ours, inputs, retain_graph=True)
                results.append(compare(key, ours, case[key], value))
                official = case[key.removesuffix("loss") + "grad"]
                results.append(compare(f"{key} gradient", gradient, official, slope))
    return results


def run_instances(case: Case) -> list[Comparison]:
    """Binary masks of every query in the original images; pixels on the threshold may fall either way."""
    processed, original = sizes(case, "processed_sizes_hw"), sizes(case, "orig_target_sizes_hw")
    near = case["near_threshold_pixels"].tolist()
    results = []
    for image, logits in enumerate(case["pred_masks"]):
        ours = binary_masks(logits, padded_size(processed), processed[image], original[image], threshold=0.5)
        official = case.image_masks("masks", image)[:, 0]
        results.append(compare_exact(f"image {image} shape", ours.shape, official.shape))
        if ours.shape == official.shape:
            enlargement = max(1, original[image][0] // processed[image][0] + 1) ** 2
            different = float((ours != official).sum())
            allowed = float(near[image] * enlargement)
            results.append(Comparison(f"image {image} pixels that differ", different, allowed))
    return results


def run_panoptic(case: Case) -> list[Comparison]:
    """Id maps and segments, exactly."""
    predictions = Predictions(case["logits"], case["boxes"], masks=StoredMasks(case["masks"]))
    rule = PanopticRule(
        score_threshold=float(case["threshold"]), min_area=SMALLEST_KEPT - 1, crop_padding=False
    )
    things = range(LAST_THING + 1)
    final = sizes(case, "target_sizes_hw")
    results = []
    for image, found in enumerate(rule(predictions, sizes(case, "processed_sizes_hw"), final, things)):
        key = f"segments/{image}"
        different = float((found.ids != case[f"id_map/{image}"]).sum())
        results += [
            Comparison(f"image {image} pixels that differ", different, float(case["near_tie_pixels"])),
            compare_exact(f"{key} ids", [s.id for s in found.segments], case[f"{key}/id"].tolist()),
            compare_exact(
                f"{key} classes", [s.label for s in found.segments], case[f"{key}/category_id"].tolist()
            ),
            compare_exact(
                f"{key} things", [s.is_thing for s in found.segments], case[f"{key}/isthing"].tolist()
            ),
            compare_exact(f"{key} areas", [s.area for s in found.segments], case[f"{key}/area"].tolist()),
        ]
    return results


def sizes(case: Case, name: str) -> list[Size]:
    """Stored [B, 2] (h, w)."""
    return [(int(h), int(w)) for h, w in case[name].tolist()]
