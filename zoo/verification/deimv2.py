"""DEIMv2 on HGNetv2 against Intellindust-AI-Lab/DEIMv2@0fff8d4: one function for each kind of case."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.architectures.deimv2 import DeimV2, RefinementWeights, build_criterion, from_published
from zoo.layers.backbone import BackboneConfig
from zoo.layers.gated_decoder import GatedConfig
from zoo.layers.sum_encoder import SumEncoderConfig
from zoo.prediction.postprocess import TopKSigmoid
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.training.criterion import LossWeights, SetCriterion
from zoo.training.matcher import MatchCosts, Unite, union_of_matchings
from zoo.training.overlap_matching import OverlapMatching
from zoo.verification.cases import Case, Comparison, FamilyCases, compare, compare_exact, with_weights
from zoo.verification.denoising import run_denoising
from zoo.verification.network import in_both_precisions
from zoo.verification.proof import build_recipe
from zoo.verification.refined_losses import (
    RefinedLosses,
    compare_refined,
    place_of_official,
    suffix_of_official,
)
from zoo.verification.refined_network import (
    compare_formula,
    compare_refined_forward,
    compare_refined_steps,
    compare_refined_structure,
    decoder_arguments,
)
from zoo.verification.refinement import (
    run_attention,
    run_backbone,
    run_distributions,
    run_postprocess,
    stored_backbone,
)
from zoo.verification.schedule import compare_schedules

RECIPES = {
    size: f"deimv2/{size}_coco_{epochs}e"
    for size, epochs in {"atto": 500, "femto": 500, "pico": 500, "n": 160}.items()
}
TERMS = {
    "label": "loss_mal", "l1": "loss_bbox", "giou": "loss_giou", "fgl": "loss_fgl", "ddf": "loss_ddf",
}  # fmt: skip
ROUNDING = 1e-6  # of the divergence of a distribution from itself, in float32
NO_DINOV3 = "S, M, L and X stand on DINOv3, which this package does not have"


class NamedLosses(RefinedLosses):
    """Official names; a layer whose distributions are the teacher's has no entry for what it learns."""

    def named(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """See `OfficialLosses.named`."""
        named = super().named(losses, weights)
        return {name: value for name, value in named.items() if "_ddf" not in name or value > ROUNDING}


OFFICIAL = NamedLosses(TERMS, place_of_official, suffix_of_official, errors=False, zeros=False)


def criterion(config: Mapping[str, Any], unite: Unite | None = None) -> SetCriterion:
    """The official criterion of a case, as it is in the case's epoch."""
    weights, matcher = config["weight_dict"], config["matcher"]
    refinement = None
    if "local" in config["losses"]:
        refinement = RefinementWeights(fgl=weights["loss_fgl"], ddf=weights["loss_ddf"])
    return build_criterion(
        MatchCosts(label=matcher["class"], l1=matcher["bbox"], giou=matcher["giou"]),
        # the epoch of a case is 0
        OverlapMatching(
            from_epoch=matcher["matcher_change_epoch"] - config["epoch"], power=matcher["iou_order_alpha"]
        ),
        LossWeights(label=weights["loss_mal"], l1=weights["loss_bbox"], giou=weights["loss_giou"]),
        refinement,
        config["reg_scale"],
        unite or union_of_matchings,
    )


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion on stored outputs."""
    return compare_refined(case, partial(criterion, case.facts["config"]), OFFICIAL)


# -- network --------------------------------------------------------------------------------------


def build(case: Case) -> DeimV2:
    """The case's network with its weights, float64, loaded strictly through `from_published`."""
    config = case.facts["config"]
    encoder, decoder = config["encoder_args"], config["decoder_args"]
    name, lite = config["backbone"].lower(), config["encoder"] == "LiteEncoder"
    backbone = BackboneConfig(
        name=f"hgnetv2_{name}", weights="random", freeze_stem=False, frozen_norm=False,
        affine=config["use_lab"], maps=1 if lite else len(encoder["in_channels"]),
    )  # fmt: skip
    state = {f"backbone.{key}": value for key, value in stored_backbone(case, name).items()}
    return with_weights(
        lambda: DeimV2(decoder["num_classes"], backbone, encoder_config(encoder), decoder_config(decoder)),
        from_published(state | case.weights()),
    )


def encoder_config(official: Mapping[str, Any]) -> SumEncoderConfig:
    """Ours for the official arguments."""
    attends = "nhead" in official
    return SumEncoderConfig(
        kind="hybrid" if attends else "lite",
        dim=official["hidden_dim"],
        num_heads=official["nhead"] if attends else 0,
        ffn_dim=official["dim_feedforward"] if attends else 0,
        expansion=official["expansion"],
        num_blocks=round(3 * official["depth_mult"]),
        convolve=official.get("version", "dfine") == "dfine",
    )


def decoder_config(official: Mapping[str, Any]) -> GatedConfig:
    """Ours for the official arguments."""
    return GatedConfig(
        **decoder_arguments(official),
        activation=official["activation"],
        gateway=official.get("use_gateway", True),
        shared_box_head=official.get("share_bbox_head", False),
    )


def run_forward(case: Case) -> list[Comparison]:
    """Every layer, in evaluation or train mode."""
    return compare_refined_forward(case, build(case), from_published)


@torch.no_grad()
def run_real(case: Case, weights: Path) -> list[Comparison]:
    """The weights of Atto trained on COCO, on four images: queries and detections."""
    trained = cast(DeimV2, build_recipe(RECIPES["atto"]).network)
    trained.load_state_dict(from_published(read_checkpoint(weights)["model"]))
    sizes = [(int(h), int(w)) for w, h in case["orig_size_wh"].tolist()]
    results = []
    for precision, dtype, network in in_both_precisions(trained.eval()):
        logits, boxes = (1e-7, 1e-7) if precision == "f64" else (2e-3, 1e-4)
        final = network.compute(case["images"].to(dtype) / 255, None).final
        # queries of almost equal scores may come in another order: those of a score are compared by their box
        ours, theirs = (_by_place(b) for b in (final.boxes, case[f"{precision}/boxes"]))
        for kind, within in (("logits", logits), ("boxes", boxes)):
            official = case[f"{precision}/{kind}"]
            found = getattr(final, kind)
            results.append(
                compare(f"{precision} {kind}", _rows(found, ours), _rows(official, theirs), within)
            )
        detections = TopKSigmoid(300)(final, sizes)
        scores = torch.stack([d.scores for d in detections])
        results.append(compare(f"{precision} scores", scores, case[f"{precision}/post/scores"], logits))
        if precision == "f64":
            labels = torch.stack([d.labels for d in detections])
            results.append(compare_exact("labels", labels, case["f64/post/labels"]))
            pixels = torch.stack([d.boxes_xyxy for d in detections])
            results.append(compare("boxes in pixels", pixels, case["f64/post/boxes"], boxes))
    return results


def _by_place(boxes: Tensor) -> Tensor:
    """[B, Q]: the queries of each image from left to right."""
    return boxes[..., 0].argsort(dim=1)


def _rows(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand_as(values))


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps."""
    recipe = build_recipe(RECIPES[case.facts["config"]["criterion_kind"]])
    return compare_refined_steps(case, build(case), recipe.criterion, OFFICIAL, from_published)


CASES = FamilyCases(
    folder="deimv2",
    kinds={
        "criterion": ("matching and losses", run_criterion),
        "backbone": ("backbone", run_backbone),
        "fdr": ("distributions", partial(run_distributions, activation=F.silu)),
        "forward": ("network, forward", run_forward),
        "formula": (
            "network, full size",
            partial(compare_formula, recipes=RECIPES, from_published=from_published),
        ),
        "train_steps": ("training steps", run_train_steps),
        "msda_core": ("deformable attention", run_attention),
        "denoising": ("denoising queries", partial(run_denoising, uncross=True)),
        "postprocess_bbox": ("post-processing", run_postprocess),
        "schedule": ("schedule", compare_schedules),
    },
    left_out={
        "forward_dinov3": NO_DINOV3,
        **{f"formula_{size}": NO_DINOV3 for size in "smlx"},
        "real_atto": "its weights are a file of their own: tests/golden/test_deimv2_golden.py compares with them",
    },
    recipes={f"structure_{size}": recipe for size, recipe in RECIPES.items()},
    compare_structure=partial(compare_refined_structure, from_published=from_published),
)
