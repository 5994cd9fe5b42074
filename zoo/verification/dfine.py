"""D-FINE against Peterande/D-FINE@4a1f73a: one function for each kind of case."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.nn import functional as F

from zoo.architectures.dfine import DFine, from_published
from zoo.layers.backbone import BackboneConfig
from zoo.layers.distribution_decoder import DistributionConfig
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, SetCriterion
from zoo.training.distribution_losses import DistillationTerm, LocalisationTerm
from zoo.training.losses import Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, Unite, focal_cost, union_of_matchings
from zoo.verification.cases import Case, Comparison, FamilyCases, with_weights
from zoo.verification.denoising import run_denoising
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
    size: f"dfine/{size}_coco_{epochs}e"
    for size, epochs in {"n": 160, "s": 132, "m": 132, "l": 80, "x": 80}.items()
}
TERMS = {
    "label": "loss_vfl", "l1": "loss_bbox", "giou": "loss_giou", "fgl": "loss_fgl", "ddf": "loss_ddf",
}  # fmt: skip


def official_losses(zeros: bool = True) -> RefinedLosses:
    """Official names; see `RefinedLosses`."""
    return RefinedLosses(TERMS, place_of_official, suffix_of_official, errors=False, zeros=zeros)


def criterion(reg_scale: float, unite: Unite | None = None) -> SetCriterion:
    """The official criterion."""
    return SetCriterion(
        HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost),
        [
            LabelTerm(1.0, Varifocal(alpha=0.75, gamma=2.0)),
            L1Term(5.0),
            GiouTerm(2.0),
            LocalisationTerm(0.15, reg_scale),
            DistillationTerm(1.5),
        ],
        unite or union_of_matchings,
    )


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion on stored outputs."""
    denoising = "dn/num_group" in case
    make = partial(criterion, case.facts["config"]["reg_scale"])
    return compare_refined(case, make, official_losses(zeros=denoising))


def build(case: Case) -> DFine:
    """The case's network with its weights, float64, loaded strictly through `from_published`."""
    config = case.facts["config"]
    encoder, decoder = config["encoder_args"], config["decoder_args"]
    frozen, name = config["frozen_norm_and_stem"], config["backbone"].lower()
    backbone = BackboneConfig(
        name=f"hgnetv2_{name}", weights="random", freeze_stem=frozen, frozen_norm=frozen,
        affine=config["use_lab"], maps=len(encoder["in_channels"]),
    )  # fmt: skip
    suffix = "" if config["use_lab"] else "_nolab"
    weights = stored_backbone(case, f"{name}{suffix}{'_frozen' if frozen else ''}")
    state = {f"backbone.{key}": value for key, value in weights.items()} | case.weights()
    refined = DistributionConfig(**decoder_arguments(decoder))
    return with_weights(
        lambda: DFine(decoder["num_classes"], backbone, encoder_config(encoder), refined),
        from_published(state),
    )


def encoder_config(official: Mapping[str, Any]) -> EncoderConfig:
    """Ours for the official arguments."""
    return EncoderConfig(
        dim=official["hidden_dim"],
        num_heads=official["nhead"],
        ffn_dim=official["dim_feedforward"],
        expansion=official["expansion"],
        num_blocks=round(3 * official["depth_mult"]),
    )


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps."""
    reg_scale = case.facts["config"]["decoder_args"]["reg_scale"]
    return compare_refined_steps(case, build(case), criterion(reg_scale), official_losses(), from_published)


CASES = FamilyCases(
    folder="dfine",
    kinds={
        "criterion": ("matching and losses", run_criterion),
        "backbone": ("backbone", run_backbone),
        "fdr": ("distributions", partial(run_distributions, activation=F.relu)),
        "forward": (
            "network, forward",
            lambda case: compare_refined_forward(case, build(case), from_published),
        ),
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
    recipes={f"structure_{size}": recipe for size, recipe in RECIPES.items()},
    compare_structure=partial(compare_refined_structure, from_published=from_published),
)
