"""RT-DETRv2 against lyuwenyu/RT-DETR@068dfde, rtdetrv2_pytorch: one function for each kind of case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.architectures.rt_detrv2 import DecoderConfig, RtDetrV2, from_published
from zoo.contract.batch import OutputSet, Pairs, Predictions, Targets
from zoo.layers.backbone import BackboneConfig
from zoo.layers.deformable_attention import sample_maps, sample_nearest, sample_rows
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.training.criterion import L1Term, LossTerm, Matches, SetCriterion
from zoo.training.ema import ModelEma
from zoo.training.losses import LabelLoss, Varifocal
from zoo.training.schedule import Schedule
from zoo.verification.cases import Case, Comparison, FamilyCases, compare, compare_listed, with_weights
from zoo.verification.criterion import (
    EXACT,
    OfficialLosses,
    compare_criterion,
    compare_stored,
    compare_train_steps,
)
from zoo.verification.denoising import run_denoising, stored_denoising, stored_pairs
from zoo.verification.network import compare_layers, in_both_precisions, name_by
from zoo.verification.rt_detr import EMA, criterion, run_postprocess, run_preprocess
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
    depth = config.get("depth") or int(case.name.split("_r")[1][:2])
    dim, heads, ffn = config["hidden_dim"], config["nhead"], config["dim_feedforward"]
    backbone = BackboneConfig(
        name=f"resnet{depth}d", weights="random", freeze_stem=freeze_stem, frozen_norm=depth >= 50
    )
    encoder = EncoderConfig(
        dim=dim, num_heads=heads, ffn_dim=ffn, expansion=config["expansion"], num_blocks=3
    )
    decoder = DecoderConfig(
        dim=dim,
        num_queries=config["num_queries"],
        num_layers=config["decoder_layers"],
        eval_layers=config.get("eval_idx", -1) % config["decoder_layers"] + 1,
        num_heads=heads,
        num_points=points_of(case),
        ffn_dim=ffn,
        num_denoising=config["num_denoising"],
        label_noise=0.5,
        box_noise=1.0,
        learned_queries=config.get("learn_query_content", False),
        sampling=SAMPLING[config.get("cross_attn_method", "default")],
        selection=SELECTION[config.get("query_select_method", "default")],
    )
    weights = {f"backbone.{k}": v for k, v in case.shared_weights(f"weights_presnet{depth}").items()}
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
            results += compare_listed(case, "f64/inter/backbone", features, 1e-9)
            results += compare_listed(case, "f64/inter/encoder", maps, 1e-9)
            norms = "f64/bn_after_forward"
            if f"{norms}/names" in case:
                results += compare_stored(case, norms, dict(network.named_buffers()), our_name, 1e-9)
    return results


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps of the warm-up: losses, gradients, norm, parameters, BatchNorm buffers, EMA."""
    stem = "backbone.conv1.conv1_1.conv.weight"
    network = build(case, freeze_stem=stem not in case.strings("step1/grad/names")).train()
    ema, parameters = ModelEma(network, EMA), dict(network.named_parameters())
    groups = [
        {
            "params": [parameters[our_name(n)] for n in group["names"]],
            # the rates in param_groups are those after the last step
            "lr": float(rate) / SCHEDULE.factor(0, STEPS, STEPS),
            "weight_decay": group.get("weight_decay", 1e-4),
        }
        for group, rate in zip(case.facts["param_groups"], case["lr_per_step"][0], strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    scheduler = SCHEDULE.scheduler(optimizer, STEPS, STEPS)

    def outputs(prefix: str) -> tuple[Sequence[OutputSet], Targets]:
        maps = network.encoder(network.backbone(case.images(f"{prefix}images")))
        return network.decoder(maps, stored_denoising(case, prefix)).supervised, case.targets(prefix)

    def after_step(network: nn.Module) -> None:
        ema.update(network)
        scheduler.step()

    results = compare_train_steps(
        case, network, optimizer, outputs, criterion(), official_losses(), our_name,
        weighted=True, after_step=after_step,
    )  # fmt: skip
    constants = constants_of(case)
    names = {n: n if n in constants else our_name(n) for n in case.strings("after_step5/ema/names")}
    averaged = {**ema.network.state_dict(), **constants}
    return results + compare_stored(case, "after_step5/ema", averaged, names.__getitem__)


def constants_of(case: Case) -> dict[str, Tensor]:
    """Buffers of the official network that ours computes: 1 / points of every layer, rounded to float32."""
    scale = torch.cat([torch.full((n,), 1 / n) for n in points_of(case)]).double()
    layers = range(case.facts["config"]["decoder_layers"])
    return {f"decoder.decoder.layers.{i}.cross_attn.num_points_scale": scale for i in layers}


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
    kept = [tensor for tensor in facts["state_dict"] if from_published({tensor[0]: torch.empty(0)})]
    return compare_structure({**facts, "state_dict": kept}, network, rules, our_name, groups)


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
