"""RT-DETRv2 against lyuwenyu/RT-DETR@068dfde, rtdetrv2_pytorch: one function for each kind of case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.architectures.rt_detrv2 import DecoderConfig, RtDetrV2, from_published
from zoo.contract.batch import OutputSet, Pairs, Predictions
from zoo.layers.deformable_attention import sample_maps, sample_nearest, sample_rows
from zoo.training.criterion import L1Term, LossTerm, Matches, SetCriterion
from zoo.training.ema import ModelEma
from zoo.training.losses import LabelLoss, Varifocal
from zoo.training.schedule import Schedule
from zoo.verification.cases import Case, Comparison, FamilyCases, compare, with_weights
from zoo.verification.criterion import (
    EXACT,
    OfficialLosses,
    compare_criterion,
    compare_train_steps,
)
from zoo.verification.denoising import (
    run_denoising,
    stored_denoising,
    stored_pairs,
    supervised_with_stored_denoising,
)
from zoo.verification.network import (
    compare_average,
    compare_layers,
    compare_maps,
    in_both_precisions,
    name_by,
    point_scales,
    stored_groups,
    without_constants,
)
from zoo.verification.rt_detr import (
    EMA,
    backbone_and_encoder,
    criterion,
    run_postprocess,
    run_preprocess,
    stem_is_frozen,
)
from zoo.verification.schedule import compare_ema
from zoo.verification.structure import compare_structure

SCHEDULE = Schedule(
    lr=1e-4, weight_decay=1e-4, rules=[], warmup_steps=2000, drop_epochs=[], global_batch_size=16
)
STEPS = 7392  # of an epoch of COCO
# official query_select_method and cross_attn_method -> ours
SELECTION: dict[str, Any] = {"default": "best_class", "one2many": "any_class", "agnostic": "objects"}
SAMPLING: dict[str, Any] = {"default": "bilinear", "discrete": "discrete"}
our_name = name_by(from_published)


def place_of_official(name: str, num_aux: int) -> tuple[str, int]:
    """`final`, `aux_1`, `dn_0`, `enc_0` to (our set, layer)."""
    if name == "final":
        return "decoder", num_aux
    kind, index = name.split("_")
    return {"aux": "decoder", "dn": "denoising", "enc": "encoder"}[kind], int(index)


def suffix_of_official(output_set: str, layer: int, num_layers: int) -> str:
    """What the official name of a loss ends in."""
    if output_set == "encoder":
        return "_enc_0"
    if output_set == "denoising":
        return f"_dn_{layer}"
    return "" if layer == num_layers - 1 else f"_aux_{layer}"


def official_losses(label_loss: str = "vfl") -> OfficialLosses:
    """Official names, with one of the label losses."""
    terms = {"label": f"loss_{label_loss}", "l1": "loss_bbox", "giou": "loss_giou"}
    return OfficialLosses(terms, place_of_official, suffix_of_official, errors=False)


# -- criterion ------------------------------------------------------------------------------------


class OverlapTerm:
    """A label or GIoU term with the IoU or GIoU of the pair as target or weight: no recipe has one.

    Args:
        name: `label` or `giou`.
        weight: of the term.
        overlap: `iou` or `giou`.
        loss: of labels; None for the GIoU term.
    """

    def __init__(self, name: str, weight: float, overlap: str, loss: LabelLoss | None = None) -> None:
        self.name, self.weight = name, weight
        self.index, self.loss = ("iou", "giou").index(overlap), loss

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L]}."""
        overlap = matches.overlaps[self.index].detach()
        if self.loss is None:
            return matches.sum_per_layer((1 - matches.overlaps[1]) * overlap)
        losses = {}
        for matched, quality in zip(matches.sets, matches.split(overlap), strict=True):
            logits = matched.outputs.predictions.logits.flatten(1, 2)
            value = self.loss(logits, matched.matched_logits(matches.targets), quality)
            losses[matched.outputs.name] = value / matched.normalizer
        return losses


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion with the case's label loss, and two settings that no recipe has."""
    config = case.facts["config"]
    label = "focal" if "focal" in str(config.get("losses", "")) else "vfl"
    ours = criterion(label)
    if overlap := config.get("boxes_weight_format"):
        terms: list[LossTerm] = [
            OverlapTerm("label", 1.0, overlap, Varifocal()),
            L1Term(5.0),
            OverlapTerm("giou", 2.0, overlap),
        ]
        ours = SetCriterion(ours.matcher, terms)
    shared = str(config.get("share_matched_indices")) == "True"
    output_set = partial(_output_set, case, ours if shared else None)
    return compare_criterion(case, ours, official_losses(label), output_set)


def _output_set(case: Case, shared_by: SetCriterion | None, name: str, predictions: Predictions) -> OutputSet:
    """Denoising queries have their stored pairs; `shared_by` matches the last decoder layer for all of them."""
    if name == "denoising":
        return OutputSet(name, predictions, stored_pairs(case), divisor=int(case["dn/num_group"]))
    if name == "encoder" or shared_by is None:
        return OutputSet(name, predictions)
    last = Predictions(predictions.logits[-1:].detach(), predictions.boxes[-1:].detach())
    ((rows, objects),) = shared_by.matcher([OutputSet(name, last)], case.targets())
    queries = last.logits.shape[2]
    return OutputSet(name, predictions, Pairs(rows // queries, rows % queries, objects))


# -- network --------------------------------------------------------------------------------------


def points_of(case: Case) -> list[int]:
    """Sampling points on each level."""
    config = case.facts["config"]
    points = config.get("num_points", config.get("num_decoder_points", 4))
    return [points] * 3 if isinstance(points, int) else list(points)


def build(case: Case, freeze_stem: bool) -> RtDetrV2:
    """The case's network with its weights, float64, loaded strictly through `from_published`."""
    config = case.facts["config"]
    backbone, encoder, weights = backbone_and_encoder(case, freeze_stem)
    decoder = DecoderConfig(
        dim=encoder.dim,
        num_queries=config["num_queries"],
        num_layers=config["decoder_layers"],
        eval_layers=config.get("eval_idx", -1) % config["decoder_layers"] + 1,
        num_heads=encoder.num_heads,
        num_points=points_of(case),
        ffn_dim=encoder.ffn_dim,
        num_denoising=config["num_denoising"],
        label_noise=0.5,
        box_noise=1.0,
        learned_queries=config.get("learn_query_content", False),
        sampling=SAMPLING[config.get("cross_attn_method", "default")],
        selection=SELECTION[config.get("query_select_method", "default")],
    )
    return with_weights(
        lambda: RtDetrV2(config["num_classes"], backbone, encoder, decoder),
        from_published(weights | case.weights()),
    )


@torch.no_grad()
def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, maps of backbone and encoder; in evaluation or train mode."""
    training = "train_mode" in case.name
    # with batch statistics the official code itself differs this much between float32 and float64
    single = (2e-3, 2e-4) if training else (1e-3, 1e-4)
    # the official code keeps 1 / points in float32: exact for powers of two, not for a third
    double = 1e-9 if all(n & (n - 1) == 0 for n in points_of(case)) else 1e-7
    results = []
    for precision, dtype, network in in_both_precisions(build(case, freeze_stem=False).train(training)):
        features = network.backbone(case.images("images").to(dtype))
        maps = network.encoder(features)
        outputs = network.decoder(maps, stored_denoising(case))
        results += compare_layers(case, precision, outputs, place_of_official, single, double)
        if precision == "f64":
            results += compare_maps(case, network, features, maps, our_name)
    return results


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps of the warm-up: losses, gradients, norm, parameters, BatchNorm buffers, EMA."""
    network = build(case, freeze_stem=stem_is_frozen(case)).train()
    ema, groups = ModelEma(network, EMA), stored_groups(case, network, our_name)
    for group, rate in zip(groups, case["lr_per_step"][0], strict=True):
        # the rates in param_groups are those after the last step
        group["lr"] = float(rate) / SCHEDULE.factor(0, STEPS, STEPS)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    scheduler = SCHEDULE.scheduler(optimizer, STEPS, STEPS)

    def after_step(network: nn.Module) -> None:
        ema.update(network)
        scheduler.step()

    results = compare_train_steps(
        case, network, optimizer, supervised_with_stored_denoising(case, network), criterion(),
        official_losses(), our_name, weighted=True, after_step=after_step,
    )  # fmt: skip
    constants = point_scales(points_of(case), case.facts["config"]["decoder_layers"])
    return results + compare_average(case, ema.network, our_name, constants)


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rates of the warm-up, EMA decay and an example."""
    official = case["lr_step/warmup_2000"]
    factors = [SCHEDULE.factor(step, STEPS, STEPS) for step in range(len(official))]
    ours = torch.tensor(factors, dtype=torch.float64)[:, None] * official[-1]
    return [*compare_ema(case, EMA), compare("warm-up", ours, official, 1e-12)]


# -- attention ------------------------------------------------------------------------------------


def run_attention(case: Case) -> list[Comparison]:
    """The sampling of a GPU and that of a CPU, or the discrete one: output and gradients."""
    ways: dict[str, Callable[..., Tensor]] = {"maps": sample_maps, "rows": sample_rows}
    if "discrete" in case.name:
        ways = {"nearest": sample_nearest}
    points, results = case["num_points"].tolist(), []
    sizes = [(int(h), int(w)) for h, w in case["spatial_shapes"].tolist()]
    for how, attention in ways.items():
        names = ("value", "sampling_locations", "attention_weights")
        value, locations, weights = leaves = [case[n].double().requires_grad_() for n in names]
        output = attention(value, sizes, locations.split(points, dim=-2), weights.split(points, dim=-1))
        output.backward(case["grad_output"].double())
        results.append(compare(f"{how} output", output, case["f64/output"], EXACT))
        for name, leaf in zip(names, leaves, strict=True):
            if f"f64/grad/{name}" in case:
                assert leaf.grad is not None
                results.append(compare(f"{how} grad {name}", leaf.grad, case[f"f64/grad/{name}"], EXACT))
    return results


# -- structure ------------------------------------------------------------------------------------


def run_structure(facts: Mapping[str, Any], network: RtDetrV2, rules: Schedule) -> list[Comparison]:
    """A full-size network and its optimizer groups; see `compare_structure`. Computed constants are left out."""
    groups = [
        (g.get("lr", 1e-4), g.get("weight_decay", 1e-4), our_name(n))
        for g in facts["param_groups"]
        for n in g["names"]
    ]
    return compare_structure(without_constants(facts, from_published), network, rules, our_name, groups)


CASES = FamilyCases(
    folder="rtdetrv2",
    kinds={
        "criterion": ("matching and losses", run_criterion),
        "forward": ("network, forward", run_forward),
        "train_steps": ("training steps", run_train_steps),
        "schedule_ema": ("schedule", run_schedule),
        "denoising": ("denoising queries", partial(run_denoising, empty_group=True)),
        "msda": ("deformable attention", run_attention),
        "postprocess_bbox": ("post-processing", run_postprocess),
        "preprocess_val": ("preprocessing", run_preprocess),
    },
    recipes={
        "rtdetrv2_r18vd_120e_coco": "rt_detrv2/r18_coco_120e",
        "rtdetrv2_r34vd_120e_coco": "rt_detrv2/r34_coco_120e",
        "rtdetrv2_r50vd_m_7x_coco": "rt_detrv2/r50m_coco_84e",
        "rtdetrv2_r50vd_6x_coco": "rt_detrv2/r50_coco_72e",
        "rtdetrv2_r101vd_6x_coco": "rt_detrv2/r101_coco_72e",
        "rtdetrv2_r18vd_dsp_3x_coco": "rt_detrv2/r18_dsp_coco_36e",
    },
    compare_structure=run_structure,
)
