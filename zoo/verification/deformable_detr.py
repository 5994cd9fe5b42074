"""Deformable DETR against fundamentalvision/Deformable-DETR@11169a6: one function for each kind of case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.architectures.deformable_detr import DeformableDetr, TransformerConfig, from_published, our_name
from zoo.contract.batch import Batch, OutputSet, Predictions
from zoo.layers.backbone import ResNet, freeze_batch_norm
from zoo.layers.deformable_attention import sample_maps, sample_rows
from zoo.layers.position import sine_2d
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, SetCriterion
from zoo.training.losses import SigmoidFocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.schedule import ParamRule, Schedule
from zoo.verification.cases import (
    Case,
    Comparison,
    FamilyCases,
    compare,
    compare_exact,
    compare_listed,
    with_weights,
)
from zoo.verification.criterion import (
    EXACT,
    SINGLE,
    SINGLE_GRADIENT,
    OfficialLosses,
    compare_criterion,
    compare_train_steps,
)
from zoo.verification.detections import compare_detections
from zoo.verification.detr import CASES as DETR_CASES
from zoo.verification.masks import sizes
from zoo.verification.network import compare_layers, in_both_precisions, padded_batch, supervised_on
from zoo.verification.schedule import compare_rates
from zoo.verification.structure import compare_structure

LOSSES = OfficialLosses({"label": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"})
SCHEDULE = Schedule(
    lr=2e-4,
    weight_decay=1e-4,
    rules=[
        ParamRule(match=r"^backbone\.(conv1|layer1)\.", freeze=True),
        ParamRule(match=r"^backbone\.", lr=2e-5),
        ParamRule(match="reference_points|sampling_offsets", lr=2e-5),
    ],
    warmup_steps=0,
    drop_epochs=[40],
    global_batch_size=32,
)


def criterion() -> SetCriterion:
    """The official criterion."""
    return SetCriterion(
        HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost),
        [
            LabelTerm(2.0, SigmoidFocal(alpha=0.25, gamma=2.0)),
            L1Term(5.0),
            GiouTerm(2.0),
        ],
    )


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion, of the decoder and of the encoder's proposals."""
    return compare_criterion(case, criterion(), LOSSES, output_set)


def output_set(name: str, predictions: Predictions) -> OutputSet:
    """The encoder's proposals are trained with class 0 for every object."""
    return OutputSet(name, predictions, class_agnostic=name == "encoder")


# -- network --------------------------------------------------------------------------------------


def build(case: Case) -> DeformableDetr:
    """The case's network with its weights, float64, dropout 0, loaded strictly through `from_published`."""
    config = case.facts["config"]

    def make() -> DeformableDetr:
        backbone = ResNet("resnet50", dilate_last=config.get("dilation", False))
        freeze_batch_norm(backbone)
        return DeformableDetr(config["num_classes"], backbone, transformer)

    transformer = TransformerConfig(
        dim=config["hidden_dim"],
        num_heads=config["nheads"],
        ffn_dim=config["dim_feedforward"],
        encoder_layers=config["enc_layers"],
        decoder_layers=config["dec_layers"],
        encoder_points=config["enc_n_points"],
        decoder_points=config["dec_n_points"],
        num_levels=config["num_feature_levels"],
        num_queries=config["num_queries"],
        dropout=0.0,
        refine_boxes=config["with_box_refine"],
        two_stage=config["two_stage"],
    )
    weights = {f"backbone.0.body.{k}": v for k, v in case.shared_weights("weights_resnet50").items()}
    return with_weights(make, from_published(weights | case.weights()))


@torch.no_grad()
def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, projected maps, masks, positions, memory, first references."""
    results = []
    official = build(case)
    for precision, dtype, network in in_both_precisions(official):
        batch = padded_batch(case, dtype)
        trained = network.train()(batch)  # dropout is 0 and every norm constant
        final, last = network.eval()(batch).final, trained.final
        same = torch.equal(final.logits, last.logits) and torch.equal(final.boxes, last.boxes)
        results.append(compare_exact(f"{precision} evaluation is the last layer", same, True))
        results += compare_layers(case, precision, trained)
    return results + _intermediates(case, official, padded_batch(case, torch.float64))


def _intermediates(case: Case, network: DeformableDetr, batch: Batch) -> list[Comparison]:
    memory, position = network.tokens(batch)
    lengths = [height * width for height, width in memory.sizes]
    maps = [
        part.transpose(1, 2).unflatten(2, size)
        for part, size in zip(memory.tokens.split(lengths, 1), memory.sizes, strict=True)
    ]
    paddings = [
        part.unflatten(1, size)
        for part, size in zip(memory.padding.split(lengths, 1), memory.sizes, strict=True)
    ]
    sines = [sine_2d(padding, network.config.dim, shift=-0.5) for padding in paddings]
    results = [
        compare_exact(f"padding of level {level}", padding, case[f"inter/mask_{level}"])
        for level, padding in enumerate(paddings)
    ]
    memory = network.transformer.encode(memory, position)
    queries = network.propose(memory)[0] if network.config.two_stage else network.learned(memory)
    return [
        *results,
        *compare_listed(case, "f64/inter/srcs", maps, 1e-9),
        *compare_listed(case, "inter/pos", sines, 1e-6),  # float32
        *compare_listed(case, "f64/inter/memory", [memory.tokens], 1e-9),
        compare("first references", queries.reference, case["f64/inter/init_reference"], 1e-9),
    ]


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps: losses, gradients, norm, parameters."""
    network = build(case).train()
    name = partial(our_name, shared_heads=not network.config.refine_boxes)
    optimizer = SCHEDULE.optimizer(network)
    rates = {"0": 2e-4, "1": 2e-5, "2": 2e-5}
    official = {(rates[g], name(n)) for g, names in case.facts["param_groups"].items() for n in names}
    ours = {(g["lr"], n) for g in optimizer.param_groups for n in g["param_names"]}
    return [
        compare_exact("optimizer groups", ours, official),
        *compare_train_steps(
            case, network, optimizer, supervised_on(case, network), criterion(), LOSSES, name
        ),
    ]


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rate of every epoch and group."""
    rates = [SCHEDULE.lr, *(rule.lr or 0.0 for rule in SCHEDULE.rules[1:])]
    official, drop = case["deformable_50_40/lr"], int(case["deformable_50_40/epochs_lrdrop"][1])
    return [
        compare_rates("learning rates", SCHEDULE, rates, official, steps=3665),
        compare_exact("drop", SCHEDULE.drop_epochs, [drop]),
    ]


# -- attention, output ----------------------------------------------------------------------------


def run_attention(case: Case) -> list[Comparison]:
    """The sampling of a GPU and that of a CPU: output and gradients of values, locations, weights."""
    return [*_attention_by(sample_maps, "maps", case), *_attention_by(sample_rows, "rows", case)]


def _attention_by(attention: Callable[..., Tensor], how: str, case: Case) -> list[Comparison]:
    results: list[Comparison] = []
    for precision, dtype, tolerance in (("f64", torch.float64, EXACT), ("f32", torch.float32, SINGLE)):
        names = ("value", "sampling_locations", "attention_weights")
        leaves = {n: case[n].to(dtype).requires_grad_() for n in names}
        locations, weights = leaves["sampling_locations"].unbind(3), leaves["attention_weights"].unbind(3)
        output = attention(leaves["value"], sizes(case, "spatial_shapes"), locations, weights)
        output.backward(case["grad_output"].to(dtype))
        results.append(compare(f"{how} {precision} output", output, case[f"{precision}/output"], tolerance))
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            key = f"{precision}/grad/{name}"
            loose = tolerance if precision == "f64" else SINGLE_GRADIENT
            results.append(compare(f"{how} {key}", leaf.grad, case[key], loose))
    return results


def run_postprocess(case: Case) -> list[Comparison]:
    """Top 100 of queries x classes: scores, labels, boxes in pixels."""
    return compare_detections(case, TopKSigmoid(100), sizes(case, "target_sizes_hw"))


# -- structure ------------------------------------------------------------------------------------


def run_structure(facts: Mapping[str, Any], network: DeformableDetr, rules: Schedule) -> list[Comparison]:
    """A full-size network, its optimizer groups and its ties; see `compare_structure`."""
    name = partial(our_name, shared_heads=not network.config.refine_boxes)
    groups = [(g["lr"], g["weight_decay"], name(n)) for g in facts["param_groups"] for n in g["names"]]
    ties = [name(a) == name(b) for a, b in facts["tied_keys"]]
    copies = len(facts["state_dict"]) - len(network.state_dict())
    return [
        compare_exact("tied tensors", (all(ties), copies), (True, len(ties))),
        *compare_structure(facts, network, rules, name, groups),
    ]


CASES = FamilyCases(
    folder="deformable",
    kinds={
        "criterion": ("matching and losses", run_criterion),
        "forward": ("network, forward", run_forward),
        "train_steps": ("training steps", run_train_steps),
        "lr_schedule": ("schedule", run_schedule),
        "msda_core": ("deformable attention", run_attention),
        "postprocess_bbox": ("post-processing", run_postprocess),
    },
    recipes={
        "deformable_r50_single_scale": "deformable_detr/r50_single_scale_coco_50e",
        "deformable_r50_single_scale_dc5": "deformable_detr/r50_single_scale_dc5_coco_50e",
        "deformable_r50_multi_scale": "deformable_detr/r50_coco_50e",
        "deformable_r50_refine": "deformable_detr/r50_refine_coco_50e",
        "deformable_r50_two_stage": "deformable_detr/r50_two_stage_coco_50e",
    },
    compare_structure=run_structure,
    # fundamentalvision/Deformable-DETR@11169a6 datasets/transforms.py is a copy of DETR's
    copied=[(DETR_CASES, ("preprocess_sizes", "preprocess_pieces"))],
)
