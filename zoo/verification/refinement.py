"""What D-FINE and DEIMv2 share against official numbers: HGNetv2, refined distributions, sampling by level."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.layers.backbone import BackboneConfig, build_backbone
from zoo.layers.deformable_attention import sample_maps, sample_rows
from zoo.layers.distribution import (
    Bins,
    LocationQuality,
    bins_of,
    boxes_around,
    distances_of,
    expected_distances,
    weighting_function,
)
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.distribution_losses import localisation
from zoo.verification.cases import Case, Comparison, compare, compare_exact, compare_listed, with_weights
from zoo.verification.criterion import EXACT, SINGLE, SINGLE_GRADIENT
from zoo.verification.detections import compare_detections

PRECISIONS = (("f64", torch.float64, EXACT), ("f32", torch.float32, SINGLE))
Activation = Callable[[Tensor], Tensor]


def stored_backbone(case: Case, name: str) -> dict[str, Tensor]:
    """The weights of the backbone `b0`, `atto`, ..., which lie in the case or beside it."""
    return (
        case.weights()
        if "w/stem.stem1.conv.weight" in case
        else case.shared_weights(f"weights_hgnetv2_{name.lower()}")
    )


@torch.no_grad()
def run_backbone(case: Case) -> list[Comparison]:
    """Stem and every stage, in evaluation and in train mode."""
    found = re.match(r"backbone_([a-z]+\d?)", case.name)
    assert found, case.name
    weights = stored_backbone(case, found[1])
    affine = any(".lab." in name for name in weights)
    stages = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("stages."))
    config = BackboneConfig(
        name=f"hgnetv2_{found[1]}", weights="random", freeze_stem=False, frozen_norm=False, affine=affine,
        maps=stages,
    )  # fmt: skip
    official = with_weights(lambda: build_backbone(config), weights)
    results = []
    for precision, dtype, tolerance in (("f64", torch.float64, EXACT), ("f32", torch.float32, 1e-4)):
        for mode in ("eval", "train"):
            network = copy.deepcopy(official).to(dtype).train(mode == "train")
            images = case.images("images").to(dtype)
            stem = copy.deepcopy(network).stem(images)  # type: ignore[operator]
            maps = network(images)
            results += compare_listed(case, f"{precision}/{mode}", [stem, *maps], tolerance)
        shapes = [list(m.shape) for m in maps]
        results.append(compare_exact(f"{precision} shapes", shapes, case["shapes"].tolist()))
    return results


def run_attention(case: Case) -> list[Comparison]:
    """Sampling with as many points as each level has: output and gradients, each way that it is computed."""
    points = case["in/num_points"].tolist()
    sizes = [(int(h), int(w)) for h, w in case["in/spatial_shapes"].tolist()]
    results = []
    for how, attention in (("maps", sample_maps), ("rows", sample_rows)):
        for precision, dtype, tolerance in PRECISIONS:
            values = [case[f"in/value_{i}"].to(dtype).requires_grad_() for i in range(len(sizes))]
            places, weights = (
                case[f"in/{n}"].to(dtype).requires_grad_()
                for n in ("sampling_locations", "attention_weights")
            )
            value = torch.cat(values, -1).permute(0, 3, 1, 2)  # [B, S, M, D]
            output = attention(value, sizes, places.split(points, dim=-2), weights.split(points, dim=-1))
            output.backward(case["in/grad_output"].to(dtype))
            results.append(
                compare(f"{how} {precision} output", output, case[f"{precision}/output"], tolerance)
            )
            leaves = {f"value_{i}": v for i, v in enumerate(values)}
            leaves |= {"sampling_locations": places, "attention_weights": weights}
            for name, leaf in leaves.items():
                if (key := f"{precision}/grad/{name}") in case:
                    assert leaf.grad is not None
                    results.append(compare(f"{how} {key}", leaf.grad, case[key], tolerance))
    return results


# -- distributions --------------------------------------------------------------------------------


def run_distributions(case: Case, activation: Activation) -> list[Comparison]:
    """Weighting function, boxes from distributions and back, the localisation loss, the quality estimate."""
    results = [r for name in case.arrays if "/W" in name for r in [_weighting(case, name)]]
    for precision, dtype, tolerance in PRECISIONS:
        exact = 1e-12 if precision == "f64" else tolerance
        results += [
            *_boxes(case, precision, dtype, exact),
            *_bins(case, precision, dtype, exact),
            *_localisation(case, precision, dtype, exact),
            *_quality(case, precision, dtype, exact, activation),
        ]
    return results


def _weighting(case: Case, name: str) -> Comparison:
    found = re.fullmatch(r"reg_max(\d+)_scale([\d.]+)_up([\d.]+)", name.split("/")[-1])
    assert found, name
    ours = weighting_function(int(found[1]) + 1, float(found[2]), float(found[3]))
    return compare(name, ours, case[name], 1e-12 if name.startswith("f64") else 1e-6)


def _scales(case: Case, what: str) -> list[float]:
    names = [n.split("/")[-1] if what != "bbox2distance" else n.split("/")[-2] for n in case.arrays]
    return sorted({float(n.removeprefix("scale")) for n in names if re.fullmatch(r"scale[\d.]+", n)})


def _boxes(case: Case, precision: str, dtype: torch.dtype, tolerance: float) -> list[Comparison]:
    results = []
    bins = case.facts["config"]["reg_max"] + 1
    reference = case["in/ref_points"].to(dtype)
    for scale in _scales(case, "integral"):
        at = f"scale{scale:g}"
        corners = case.sixteenths("in/corners").to(dtype).requires_grad_()
        distances = expected_distances(corners, weighting_function(bins, scale).to(dtype))
        boxes = boxes_around(reference, distances, scale)
        boxes.backward(case["in/grad_output"].to(dtype))
        assert corners.grad is not None
        for what, ours, within in (
            ("integral", distances, tolerance),
            ("distance2bbox", boxes, tolerance),
            ("grad_corners", corners.grad, max(tolerance, SINGLE_GRADIENT) if tolerance > 1e-9 else 1e-11),
        ):
            key = f"{precision}/{what}/{at}"
            results.append(compare(key, ours, case[key], within))
    return results


def _bins(case: Case, precision: str, dtype: torch.dtype, tolerance: float) -> list[Comparison]:
    """The point between two bins, which is the same on the edge of either: a value there may fall into both."""
    bins = case.facts["config"]["reg_max"] + 1
    results = []

    def compared(key: str, distances: Tensor, weighting: Tensor) -> None:
        left, share = bins_of(distances, weighting)
        ours = weighting[left].lerp(weighting[left + 1], share)
        theirs = case[f"{key}/bin"].long()
        official = case[f"{key}/weight_left"].to(dtype) * weighting[theirs]
        official = official + case[f"{key}/weight_right"].to(dtype) * weighting[theirs + 1]
        results.append(
            compare(key, ours, official, max(tolerance, 1e-10 if dtype == torch.float64 else 1e-5))
        )

    for scale in _scales(case, "bbox2distance"):
        boxes, points = case["in/b2d_boxes_cxcywh"].to(dtype), case["in/b2d_points"].to(dtype)
        distances = distances_of(boxes, points, scale).flatten()
        compared(
            f"{precision}/bbox2distance/scale{scale:g}", distances, weighting_function(bins, scale).to(dtype)
        )
    compared(
        f"{precision}/translate_gt",
        case["in/translate_gt"].to(dtype),
        weighting_function(bins, 4.0).to(dtype),
    )
    return results


def _localisation(case: Case, precision: str, dtype: torch.dtype, tolerance: float) -> list[Comparison]:
    logits = case.sixteenths("in/fgl_corners").to(dtype).requires_grad_()
    right = case["in/fgl_weight_right"].to(dtype)
    each = localisation(logits, Bins(case["in/fgl_bin"].long(), right)) * case["in/fgl_iou"].to(dtype)
    loss = each.sum() / 6  # the official avg_factor of this case
    loss.backward()
    assert logits.grad is not None
    return [
        compare(f"{precision} localisation", loss, case[f"{precision}/fgl/loss"], tolerance),
        compare(f"{precision} localisation gradient", logits.grad, case[f"{precision}/fgl/grad"], tolerance),
    ]


def _quality(
    case: Case, precision: str, dtype: torch.dtype, tolerance: float, activation: Activation
) -> list[Comparison]:
    config = case.facts["config"]
    bins, size = config["reg_max"] + 1, config["lqe"]
    quality = with_weights(
        lambda: LocationQuality(bins, activation, size["k"], size["hidden"]), case.weights()
    ).to(dtype)
    corners = case.sixteenths("in/corners").to(dtype)
    # the official run added this, so that no two of the largest probabilities are equal
    corners = (corners + torch.arange(corners.shape[-1], dtype=dtype) / 2048).requires_grad_()
    scores = case["in/lqe_scores"].to(dtype)
    output = quality(scores, corners)
    output.backward(case["in/grad_output"].to(dtype)[..., : scores.shape[-1]])
    assert corners.grad is not None
    return [
        compare(f"{precision} quality", output, case[f"{precision}/lqe/out"], tolerance),
        compare(
            f"{precision} quality gradient", corners.grad, case[f"{precision}/lqe/grad_corners"],
            1e-10 if precision == "f64" else SINGLE_GRADIENT,
        ),
    ]  # fmt: skip


def run_postprocess(case: Case) -> list[Comparison]:
    """The best 300 and the best 100 pairs of query and class."""
    sizes = [(int(h), int(w)) for w, h in case["orig_target_sizes_wh"].tolist()]
    tops = sorted({key.split("/")[1] for key in case.arrays if re.match(r"f64/top\d+/", key)})
    return [
        result
        for top in tops
        for result in compare_detections(case, TopKSigmoid(int(top.removeprefix("top"))), sizes, f"{top}/")
    ]
