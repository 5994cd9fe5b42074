"""Deformable DETR against fundamentalvision/Deformable-DETR@11169a6: one function for each kind of case."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.architectures.deformable_detr import DeformableDetr, TransformerConfig, from_published, our_name
from zoo.contract.batch import Batch, Outputs, OutputSet, Predictions, Step, Targets
from zoo.layers.backbone import ResNet, freeze_batch_norm
from zoo.layers.deformable_attention import sample_maps, sample_rows
from zoo.layers.position import sine_2d
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, Matches, SetCriterion
from zoo.training.losses import SigmoidFocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.schedule import ParamRule, Schedule
from zoo.verification.cases import (
    Case,
    Comparison,
    Runner,
    compare,
    compare_exact,
    compare_summary,
    find_runner,
    with_weights,
)
from zoo.verification.detections import compare_top_k
from zoo.verification.structure import compare_structure

FOLDER = "deformable"
# official structure -> the recipe that builds it
STRUCTURES = {
    "deformable_r50_single_scale": "deformable_detr/r50_single_scale_coco_50e",
    "deformable_r50_single_scale_dc5": "deformable_detr/r50_single_scale_dc5_coco_50e",
    "deformable_r50_multi_scale": "deformable_detr/r50_coco_50e",
    "deformable_r50_refine": "deformable_detr/r50_refine_coco_50e",
    "deformable_r50_two_stage": "deformable_detr/r50_two_stage_coco_50e",
}
WEIGHTS = {"label": 2.0, "l1": 5.0, "giou": 2.0}
OFFICIAL_TERM = {"label": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
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
# float64 differences come from summation order alone
EXACT, SINGLE, SINGLE_GRADIENT = 1e-10, 1e-5, 1e-4


def criterion() -> SetCriterion:
    """The official criterion."""
    return SetCriterion(
        HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost),
        [
            LabelTerm(WEIGHTS["label"], SigmoidFocal(alpha=0.25, gamma=2.0)),
            L1Term(WEIGHTS["l1"]),
            GiouTerm(WEIGHTS["giou"]),
        ],
    )


def whole_step(targets: Targets) -> Step:
    """Facts of a step that is one batch on one device."""
    return Step(torch.tensor(targets.counts, dtype=torch.int64), (0, 0), 0)


def place_of_official(name: str, num_layers: int) -> tuple[str, int]:
    """`final`, `aux_1`, `enc` to (our set, layer)."""
    if name == "enc":
        return "encoder", 0
    return "decoder", num_layers - 1 if name == "final" else int(name.removeprefix("aux_"))


def official_losses(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours, weighted, under the official names."""
    named = {}
    for key, values in losses.items():
        output_set, kind = key.split("/")
        for layer, value in enumerate(values):
            suffix = "" if layer == len(values) - 1 else f"_{layer}"
            named[OFFICIAL_TERM[kind] + ("_enc" if output_set == "encoder" else suffix)] = value
    return named


def unweighted_and_logged(losses: Mapping[str, Tensor], matches: Matches) -> dict[str, Tensor]:
    """Official entries before their weight, with the two that are only logged, in float32 as there."""
    weight = {OFFICIAL_TERM[kind]: value for kind, value in WEIGHTS.items()}
    entries = {n: v / weight["_".join(n.split("_")[:2])] for n, v in official_losses(losses).items()}
    for matched in matches.sets:
        logits = matched.outputs.predictions.logits.detach()
        counts = torch.tensor(matches.targets.counts, dtype=torch.float32)
        for layer in range(len(logits)):
            suffix = "" if layer == len(logits) - 1 else f"_{layer}"
            suffix = "_enc" if matched.outputs.name == "encoder" else suffix
            # the official code takes the last real class for "no object"
            taken = (logits[layer].argmax(-1) != logits.shape[-1] - 1).sum(1).float()
            entries[f"cardinality_error{suffix}"] = (taken - counts).abs().mean()
    final = matches["decoder"]
    rows = final.rows.view(final.num_layers, -1)[-1]
    labels = final.labels(matches.targets).view(final.num_layers, -1)[-1]
    best = final.outputs.predictions.logits.detach().flatten(0, 2)[rows].argmax(-1)
    right = (best == labels).float().sum() * (100.0 / max(len(labels), 1))
    entries["class_error"] = 100 - right
    return entries


# -- criterion ------------------------------------------------------------------------------------


def run_criterion(case: Case) -> list[Comparison]:
    """Matched pairs, every loss before and after its weight, total, gradient of every input."""
    results = []
    for precision, dtype, value, gradient in (
        ("f64", torch.float64, EXACT, EXACT),
        ("f32", torch.float32, SINGLE, SINGLE_GRADIENT),
    ):
        if f"{precision}/total" in case:
            results += _criterion_in(case, precision, dtype, value, gradient)
    return results


def _criterion_in(
    case: Case, precision: str, dtype: torch.dtype, tolerance: float, gradient_tolerance: float
) -> list[Comparison]:
    names = sorted({k.split("/")[1] for k in case.arrays if k.startswith("in/")})
    num_layers = sum(n != "enc" for n in names)
    inputs = {
        n: Predictions(
            case[f"in/{n}/logits"].to(dtype).requires_grad_(),
            case[f"in/{n}/boxes"].to(dtype).requires_grad_(),
        )
        for n in names
    }
    targets = case.targets()
    order = [*(f"aux_{i}" for i in range(num_layers - 1)), "final"]
    decoder = Predictions(
        torch.stack([inputs[n].logits for n in order]), torch.stack([inputs[n].boxes for n in order])
    )
    sets = [OutputSet("decoder", decoder)]
    if "enc" in inputs:
        encoder = Predictions(inputs["enc"].logits[None], inputs["enc"].boxes[None])
        sets.append(OutputSet("encoder", encoder, class_agnostic=True))
    step = whole_step(targets)
    losses = criterion()(sets, targets, step)
    total = torch.stack([v.sum() for v in losses.values()]).sum()
    total.backward()
    matches = criterion().match(sets, targets, step)
    results = [compare(f"{precision} total", total, case[f"{precision}/total"], tolerance)]
    for kind, values, ours in (
        ("loss_weighted", "values", official_losses(losses)),
        ("loss", "unweighted", unweighted_and_logged(losses, matches)),
    ):
        wanted = case.strings(f"{precision}/{kind}/names")
        results.append(compare_exact(f"{precision} {kind} entries", set(ours), set(wanted)))
        named = torch.stack([ours[n].double() for n in wanted])
        results.append(compare(f"{precision} {kind}", named, case[f"{precision}/{kind}/{values}"], tolerance))
    for n, predictions in inputs.items():
        for kind in ("logits", "boxes"):
            tensor = getattr(predictions, kind)
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            key = f"{precision}/grad/{n}/{kind}"
            results.append(compare(key, gradient, case[key], gradient_tolerance))
    pairs = [_compare_pairs(case, precision, matches, n, num_layers) for n in names]
    return results + pairs


def _compare_pairs(case: Case, precision: str, matches: Matches, name: str, num_layers: int) -> Comparison:
    key = f"{precision}/match/{name}"
    output_set, layer = place_of_official(name, num_layers)
    matched = matches[output_set]
    _, images, queries = matched.outputs.predictions.logits.shape[:3]
    rows = matched.rows.view(matched.num_layers, -1)[layer]
    objects = matched.objects.view(matched.num_layers, -1)[layer]
    starts = torch.tensor([0, *np.cumsum(matches.targets.counts).tolist()])
    image, query = rows // queries % images, rows % queries
    ours = set(zip(image.tolist(), query.tolist(), (objects - starts[image]).tolist(), strict=True))
    of_image = torch.arange(images).repeat_interleave(case[f"{key}/count"]).tolist()
    official = zip(of_image, case[f"{key}/pred"].tolist(), case[f"{key}/target"].tolist(), strict=True)
    return compare_exact(key, ours, set(official))


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


def batch_of(case: Case, dtype: torch.dtype, prefix: str = "") -> Batch:
    """The case's images, zero-padded to the largest height and width, and targets if there are."""
    images: list[Tensor] = []
    while f"{prefix}image/{len(images)}" in case:
        images.append(case.images(f"{prefix}image/{len(images)}").to(dtype))
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    grow = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
    nothing = Targets(torch.empty(0, dtype=torch.int64), torch.empty(0, 4), (0,) * len(images))
    targets = case.targets(prefix) if f"{prefix}targets/count" in case else nothing
    return Batch(
        images=torch.stack([F.pad(i, g) for i, g in zip(images, grow, strict=True)]),
        padding=torch.stack(
            [F.pad(torch.zeros_like(i[0]), g, value=1.0) > 0 for i, g in zip(images, grow, strict=True)]
        ),
        targets=targets,
        image_ids=tuple(range(len(images))),
        original_sizes=tuple((i.shape[1], i.shape[2]) for i in images),
        step=whole_step(targets),
    )


def official_layers(outputs: Outputs) -> dict[str, Predictions]:
    """{key prefix: predictions} of the last layer, the others, and the proposals."""
    layers = {"": outputs.final}
    for supervised in outputs.supervised:
        logits, boxes = supervised.predictions.logits, supervised.predictions.boxes
        if supervised.name == "encoder":
            layers["enc_outputs/"] = Predictions(logits[0], boxes[0])
        else:
            others = range(len(logits) - 1)
            layers |= {f"aux_{i}/": Predictions(logits[i], boxes[i]) for i in others}
    return layers


@torch.no_grad()
def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, projected maps, masks, positions, memory, first references."""
    results = []
    official = build(case)
    for precision, dtype, logits, boxes in (
        ("f64", torch.float64, 1e-9, 1e-9),
        ("f32", torch.float32, 1e-3, 1e-4),
    ):
        network, batch = copy.deepcopy(official).to(dtype), batch_of(case, dtype)
        layers = official_layers(network.train()(batch))  # dropout is 0 and every norm constant
        final = network.eval()(batch).final
        same = torch.equal(final.logits, layers[""].logits) and torch.equal(final.boxes, layers[""].boxes)
        results.append(compare_exact(f"{precision} evaluation is the last layer", same, True))
        for name, predictions in layers.items():
            key = f"{precision}/{name}pred"
            results.append(compare(f"{key}_logits", predictions.logits, case[f"{key}_logits"], logits))
            results.append(compare(f"{key}_boxes", predictions.boxes, case[f"{key}_boxes"], boxes))
    return results + _intermediates(case, official, batch_of(case, torch.float64))


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
    for key, tensors, tolerance in (
        ("f64/inter/srcs", maps, 1e-9),
        ("inter/pos", sines, 1e-6),  # float32
    ):
        names = case.strings(f"{key}/names")
        results += compare_summary(case, key, dict(zip(names, tensors, strict=True)), tolerance)
    memory = network.transformer.encode(memory, position)
    (name,) = case.strings("f64/inter/memory/names")
    results += compare_summary(case, "f64/inter/memory", {name: memory.tokens}, 1e-9)
    queries = network.propose(memory)[0] if network.config.two_stage else network.learned(memory)
    return [
        *results,
        compare("first references", queries.reference, case["f64/inter/init_reference"], 1e-9),
    ]


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps: losses, gradients, norm, parameters."""
    network = build(case).train()
    shared = not network.config.refine_boxes
    optimizer = SCHEDULE.optimizer(network)
    results = [_compare_groups(case.facts["param_groups"], optimizer.param_groups, shared)]
    loss = criterion()
    for index, number in enumerate(case["batch_schedule"].tolist()):
        batch = batch_of(case, torch.float64, f"batch{number}/")
        sets = network(batch).supervised
        losses = loss(sets, batch.targets, whole_step(batch.targets))
        total = torch.stack([v.sum() for v in losses.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        step, tolerance = f"step{index + 1}", 1e-9 if index == 0 else 1e-7
        with torch.no_grad():
            entries = unweighted_and_logged(
                losses, loss.match(sets, batch.targets, whole_step(batch.targets))
            )
        wanted = case.strings(f"{step}/loss/names")
        results.append(compare_exact(f"{step} loss entries", set(entries), set(wanted)))
        ours = torch.stack([entries[n].double() for n in wanted])
        results.append(compare(f"{step} losses", ours, case[f"{step}/loss/values"], tolerance))
        results.append(compare(f"{step} total", total, case["total_loss"][index], tolerance))
        if index == 0:
            gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
            results += _compare_named(case, "step1/grad", gradients, shared)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        results.append(compare(f"{step} norm", norm, case["grad_norm_before_clip"][index], 1e-7))
        optimizer.step()
        if f"after_{step}/param/names" in case:
            trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
            results += _compare_named(case, f"after_{step}/param", trained, shared)
    return results


def _compare_named(case: Case, key: str, ours: Mapping[str, Tensor], shared: bool) -> list[Comparison]:
    """Every tensor of ours against the official one; an official name that we lack is a difference."""
    official = {our_name(n, shared): n for n in case.strings(f"{key}/names")}
    return compare_summary(case, key, {official.get(n, n): v for n, v in ours.items()}, 1e-8)


def _compare_groups(official: Mapping[str, list[str]], ours: list[dict], shared: bool) -> Comparison:
    rates = {"0": 2e-4, "1": 2e-5, "2": 2e-5}
    wanted = {(rates[group], our_name(n, shared)) for group, names in official.items() for n in names}
    return compare_exact("optimizer groups", {(g["lr"], n) for g in ours for n in g["param_names"]}, wanted)


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rate of every epoch and group."""
    epochs, drop = case["deformable_50_40/epochs_lrdrop"].tolist()
    factors = [SCHEDULE.factor(epoch * 3665, 3665, epochs * 3665) for epoch in range(epochs)]
    backbone, small = (rule.lr or 0.0 for rule in SCHEDULE.rules[1:])
    ours = torch.tensor([[SCHEDULE.lr * f, backbone * f, small * f] for f in factors], dtype=torch.float64)
    return [
        compare("learning rates", ours, case["deformable_50_40/lr"], 1e-12),
        compare_exact("drop", SCHEDULE.drop_epochs, [drop]),
    ]


# -- attention, output ----------------------------------------------------------------------------


def run_attention(case: Case) -> list[Comparison]:
    """Sampling core, the way of a GPU and of a CPU: output and gradients of values, locations, weights."""
    return [*_attention_by(sample_maps, "maps", case), *_attention_by(sample_rows, "rows", case)]


def _attention_by(attention: Callable[..., Tensor], how: str, case: Case) -> list[Comparison]:
    results: list[Comparison] = []
    for precision, dtype, tolerance in (("f64", torch.float64, EXACT), ("f32", torch.float32, SINGLE)):
        names = ("value", "sampling_locations", "attention_weights")
        leaves = {n: case[n].to(dtype).requires_grad_() for n in names}
        sizes = [(int(h), int(w)) for h, w in case["spatial_shapes"].tolist()]
        output = attention(leaves["value"], sizes, leaves["sampling_locations"], leaves["attention_weights"])
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
    sizes = tuple((int(h), int(w)) for h, w in case["target_sizes_hw"].tolist())
    return compare_top_k(case, 100, sizes)


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


RUNNERS: dict[str, Runner] = {
    "criterion": run_criterion,
    "forward": run_forward,
    "train_steps": run_train_steps,
    "lr_schedule": run_schedule,
    "msda_core": run_attention,
    "postprocess_bbox": run_postprocess,
}


runner_of = partial(find_runner, RUNNERS)
