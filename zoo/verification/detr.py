"""DETR against facebookresearch/detr@29901c5: one function for each kind of case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zoo.architectures.detr import Detr, detr_criterion, from_published
from zoo.contract.batch import Batch
from zoo.contract.pixels import LONGEST_SIDE
from zoo.contract.preprocess import InputContract
from zoo.layers.backbone import BackboneConfig
from zoo.layers.memory_format import to_tokens
from zoo.layers.transformer import TransformerConfig
from zoo.prediction.postprocess import BestClassSoftmax
from zoo.training.criterion import LossWeights, MaskLossWeights, SetCriterion
from zoo.training.matcher import MatchCosts
from zoo.training.schedule import ParamRule, Schedule
from zoo.verification.cases import (
    Case,
    Comparison,
    FamilyCases,
    compare,
    compare_exact,
    compare_listed,
    compare_summary,
    with_weights,
)
from zoo.verification.criterion import OfficialLosses, compare_criterion, compare_train_steps
from zoo.verification.detections import compare_detections
from zoo.verification.masks import run_instances, run_mask_losses, run_panoptic, sizes
from zoo.verification.network import (
    compare_layers,
    in_both_precisions,
    name_by,
    padded_batch,
    supervised_on,
)
from zoo.verification.preprocessing import compare_pixels, stored_image
from zoo.verification.schedule import compare_rates
from zoo.verification.structure import compare_structure

LOSSES = OfficialLosses(
    {
        "label": "loss_ce",
        "l1": "loss_bbox",
        "giou": "loss_giou",
        "mask_focal": "loss_mask",
        "dice": "loss_dice",
    }
)
RULES = [
    ParamRule(match=r"^backbone\.(conv1|bn1|layer1)\.", freeze=True),
    ParamRule(match=r"^backbone\.", lr=1e-5),
]
INPUT = InputContract(
    resize="shortest",
    size=(800, 1333),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    backend="pil",
)
our_name = name_by(from_published)


def criterion(masks: bool) -> SetCriterion:
    """The official criterion; a case is one batch on one device, where both normalisers are the same."""
    return detr_criterion(
        MatchCosts(label=1, l1=5, giou=2),
        LossWeights(label=1, l1=5, giou=2),
        no_object_weight=0.1,
        normalizer="exact",
        mask_losses=MaskLossWeights(focal=1, dice=1) if masks else None,
    )


def schedule(drop_epoch: int) -> Schedule:
    """The official groups and rates."""
    return Schedule(
        lr=1e-4,
        weight_decay=1e-4,
        rules=RULES,
        warmup_steps=0,
        drop_epochs=[drop_epoch],
        global_batch_size=64,
    )


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion; with masks where the case has some."""
    return compare_criterion(case, criterion("in/final/masks" in case), LOSSES)


# -- network --------------------------------------------------------------------------------------


def build(case: Case) -> Detr:
    """The case's network with its weights, float64, dropout 0, loaded strictly through `from_published`."""
    config = case.facts["config"]
    name = config.get("backbone", "resnet50")
    backbone = BackboneConfig(
        name=name,
        weights="random",
        freeze_stem=True,
        frozen_norm=True,
        dilate_last=config.get("dilation", False),
    )
    transformer = TransformerConfig(
        dim=config["hidden_dim"],
        num_heads=config["nheads"],
        ffn_dim=config["dim_feedforward"],
        encoder_layers=config["enc_layers"],
        decoder_layers=config["dec_layers"],
        num_queries=config["num_queries"],
        dropout=0.0,
        pre_norm=config.get("pre_norm", False),
        position=config.get("position_embedding", "sine"),
    )
    # with masks, the detector is a part of the official model
    prefix = "detr." if config.get("masks", False) else ""
    resnet = case.shared_weights(f"weights_{name}")
    weights = {f"{prefix}backbone.0.body.{key}": value for key, value in resnet.items()}
    return with_weights(
        lambda: Detr(config["num_classes"], backbone, transformer, masks=config.get("masks", False)),
        from_published(weights | case.weights()),
    )


@torch.no_grad()
def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, in training (all layers) and evaluation (the last one); masks."""
    results = []
    for precision, dtype, network in in_both_precisions(build(case)):
        batch = padded_batch(case, dtype)
        final, trained = network.eval()(batch).final, network.train()(batch)
        results += compare_layers(case, precision, replace(trained, final=final))
        if f"{precision}/pred_masks" in case:
            tolerance = 1e-9 if precision == "f64" else 1e-3
            results.append(compare("masks", final.masks_of_all(), case[f"{precision}/pred_masks"], tolerance))
        if precision == "f64":
            results += _compare_inside(case, network.eval(), batch)
    return results


def _compare_inside(case: Case, network: Detr, batch: Batch) -> list[Comparison]:
    """Feature map, padding at its size, position encoding, projection, encoder memory, decoder outputs."""
    stages = network.backbone(batch.images)
    features = stages[-1]
    height, width = features.shape[-2:]
    padding = network.padding_of(batch.padding, (height, width))
    # the official encoding is computed in float32
    position = network.position(padding, torch.float32)
    tokens = to_tokens(network.input_proj(features))
    transformer = network.transformer.train()
    visible = ~padding.flatten(1)[:, None, None]
    memory = transformer.encoder(tokens, position.double(), visible)
    decoded = transformer.decoder(network.query_embed.weight, memory + position, memory, visible)

    def as_map(values: Tensor) -> Tensor:
        return values.expand(len(batch), -1, -1).transpose(1, 2).unflatten(2, (height, width))

    stored = len(case.strings("f64/inter/features/names"))  # the last stage, or all four with masks
    return [
        *compare_listed(case, "f64/inter/features", stages[-stored:], 1e-9),
        *_compare_attention(case, network, decoded[-1], memory, padding),
        compare_exact("padding at feature size", padding, case["inter/mask"]),
        compare("position", as_map(position), case["inter/pos"], 1e-6),
        compare("projection", as_map(tokens), case["f64/inter/input_proj"], 1e-9),
        compare("memory", as_map(memory), case["f64/inter/memory"], 1e-9),
        compare("decoder outputs", decoded, case["f64/inter/hs"], 1e-9),
    ]


def _compare_attention(
    case: Case, network: Detr, queries: Tensor, memory: Tensor, padding: Tensor
) -> list[Comparison]:
    """Attention maps of all queries, where there is a mask branch."""
    if network.bbox_attention is None:
        return []
    maps = network.bbox_attention(queries, memory, padding.flatten(1)).unflatten(-1, padding.shape[1:])
    return compare_summary(case, "f64/inter/bbox_attention", {"bbox_attention": maps}, 1e-9)


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps; their groups and frozen parameters come from our rules."""
    network = build(case).train()
    groups = schedule(drop_epoch=1000).groups(network.named_parameters())
    official_groups = [
        ({our_name(n) for n in case.facts["param_groups"][group]}, lr)
        for group, lr in (("1", 1e-5), ("0", 1e-4))
    ]
    ours = [(set(g["param_names"]), g["lr"]) for g in groups]
    return [
        compare_exact("groups", ours, official_groups),
        *compare_train_steps(
            case,
            network,
            torch.optim.AdamW(groups, fused=True),
            supervised_on(case, network),
            criterion(case.facts["config"].get("masks", False)),
            LOSSES,
            our_name,
        ),
    ]


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rate of every epoch and group."""
    results = []
    for name in sorted(k.removesuffix("/lr") for k in case.arrays if k.endswith("/lr")):
        official, drop = case[f"{name}/lr"], int(case[f"{name}/epochs_lrdrop"][1])
        rates = [1e-4, 1e-5][: official.shape[1]]
        results.append(compare_rates(f"lr {name}", schedule(drop), rates, official, steps=1000))
    return results


# -- input, output --------------------------------------------------------------------------------


def contract(shortest: int, longest: int) -> InputContract:
    """The resize rule with these sides; -1 is no limit, as no image that is read is longer than `LONGEST_SIDE`."""
    return InputContract(resize="shortest", size=(shortest, longest if longest > 0 else LONGEST_SIDE))


def run_sizes(case: Case) -> list[Comparison]:
    """The resize rule, on the whole table."""
    ours = []
    for width, height, shortest, longest, *_ in case["resize_rule"].tolist():
        h, w = contract(shortest, longest).resized_size(height, width)
        ours.append((w, h))
    val = (int(case["val_scale"]), int(case["max_size"]))
    return [
        compare_exact("resize rule", torch.tensor(ours), case["resize_rule"][:, 4:]),
        compare_exact("evaluation size", INPUT.size, val),
    ]


def run_pieces(case: Case) -> list[Comparison]:
    """Resized images: the PIL backend exactly, the fast one within one grey level."""
    image, results = stored_image(case), []
    index = 0
    while f"resize{index}/size_max" in case:
        rule = contract(*case[f"resize{index}/size_max"].tolist())
        official = case[f"resize{index}/image"].permute(2, 0, 1)
        exact = rule.with_backend("pil").resize_image(image)
        fast = rule.with_backend("fast").resize_image(image)
        level = 1.0 / float(official.max())
        results += [
            compare_exact(f"resize{index} image pil", exact, official),
            compare_exact(f"resize{index} size", fast.shape, official.shape),
            compare(f"resize{index} image fast", fast.float(), official.float(), level),
        ]
        index += 1
    return results


def run_preprocess(case: Case) -> list[Comparison]:
    """The val transform: the size of every image, and the pixels of those that are stored."""
    results, index = [], 0
    while (prefix := f"im{index}/") + "input_wh" in case:
        index += 1
        width, height = case[f"{prefix}input_wh"].tolist()
        size = case[f"{prefix}out_hw"].tolist()
        results.append(compare_exact(f"{prefix}size", list(INPUT.resized_size(height, width)), size))
        if f"{prefix}sample_pixels" in case:
            rows, columns = case[f"{prefix}sample_y"], case[f"{prefix}sample_x"]
            results += compare_pixels(case, prefix, INPUT, size, rows, columns)
    return results


def run_postprocess(case: Case) -> list[Comparison]:
    """The best class of every query and its box in pixels."""
    return compare_detections(case, BestClassSoftmax(), sizes(case, "target_sizes_hw"))


# -- structure ------------------------------------------------------------------------------------


def run_structure(facts: Mapping, network: Detr, rules: Schedule) -> list[Comparison]:
    """A full-size network and its two rates; see `compare_structure`."""
    frozen = facts["param_names_requires_grad_false"]
    trained = [n for n, _, _, what in facts["state_dict"] if what == "parameter" and n not in frozen]
    groups = [(1e-5 if "backbone" in n else 1e-4, 1e-4, our_name(n)) for n in trained]
    return compare_structure(facts, network, rules, our_name, groups)


CASES = FamilyCases(
    folder="detr",
    kinds={
        "criterion": ("matching and losses", run_criterion),
        "forward": ("network, forward", run_forward),
        "train_steps": ("training steps", run_train_steps),
        "lr_schedule": ("schedule", run_schedule),
        "preprocess_sizes": ("preprocessing", run_sizes),
        "preprocess_pieces": ("preprocessing", run_pieces),
        "preprocess_val": ("preprocessing", run_preprocess),
        "postprocess_bbox": ("post-processing", run_postprocess),
        "postprocess_segm": ("post-processing", run_instances),
        "postprocess_panoptic": ("post-processing", run_panoptic),
        "mask_losses": ("mask losses", run_mask_losses),
    },
    recipes={
        "detr_resnet50": "detr/r50_coco_500e",
        "detr_resnet50_dc5": "detr/r50_dc5_coco_500e",
        "detr_resnet101": "detr/r101_coco_500e",
        "detr_resnet101_dc5": "detr/r101_dc5_coco_500e",
    },
    compare_structure=run_structure,
)
