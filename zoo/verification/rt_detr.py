"""RT-DETR against lyuwenyu/RT-DETR@068dfde, rtdetr_pytorch: one function for each kind of case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.architectures.rt_detr import DecoderConfig, RtDetr, from_published
from zoo.contract.batch import OutputSet, Predictions
from zoo.contract.preprocess import InputContract
from zoo.layers.backbone import BackboneConfig
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, SetCriterion
from zoo.training.ema import EmaConfig, ModelEma
from zoo.training.losses import LabelLoss, SigmoidFocal, Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.schedule import Schedule
from zoo.verification.cases import Case, Comparison, FamilyCases, with_weights
from zoo.verification.criterion import (
    EXACT,
    SINGLE,
    OfficialLosses,
    compare_criterion,
    compare_stored,
    compare_train_steps,
)
from zoo.verification.denoising import (
    run_denoising,
    stored_denoising,
    stored_pairs,
    supervised_with_stored_denoising,
)
from zoo.verification.detections import compare_detections
from zoo.verification.network import compare_layers, compare_maps, in_both_precisions, name_by, stored_groups
from zoo.verification.preprocessing import compare_pixels
from zoo.verification.schedule import compare_ema, compare_rates
from zoo.verification.structure import compare_structure

EMA = EmaConfig(decay=0.9999, warmup_steps=2000)
INPUT = InputContract(resize="stretch", size=(640, 640), backend="pil")
our_name = name_by(from_published)


class BinaryCrossEntropy:
    """Binary cross entropy with targets 0 and 1: an official label loss that no recipe uses."""

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """See `LabelLoss`; `quality` has no influence."""
        target = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        target.view(-1)[matched] = 1
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def criterion(label_loss: str = "vfl") -> SetCriterion:
    """The official criterion with one of its label losses."""
    losses: dict[str, LabelLoss] = {
        "vfl": Varifocal(alpha=0.75, gamma=2.0),
        "focal": SigmoidFocal(alpha=0.75, gamma=2.0),
        "bce": BinaryCrossEntropy(),
    }
    return SetCriterion(
        HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost),
        [LabelTerm(1.0, losses[label_loss]), L1Term(5.0), GiouTerm(2.0)],
    )


def place_of_official(name: str, num_aux: int) -> tuple[str, int]:
    """`final`, `aux_1`, `dn_0` to (our set, layer); the last `aux` holds the queries that the encoder selected."""
    if name == "final":
        return "decoder", num_aux - 1
    kind, index = name.split("_")
    if kind == "dn":
        return "denoising", int(index)
    return ("encoder", 0) if int(index) == num_aux - 1 else ("decoder", int(index))


def suffix_of_official(output_set: str, layer: int, num_layers: int) -> str:
    """What the official name of a loss ends in; the encoder's queries are an `aux` after those of the decoder."""
    if output_set == "denoising":
        return f"_dn_{layer}"
    return "" if (output_set, layer) == ("decoder", num_layers - 1) else f"_aux_{layer}"


def official_losses(label_loss: str = "vfl") -> OfficialLosses:
    """Official names, with one of the label losses."""
    terms = {"label": f"loss_{label_loss}", "l1": "loss_bbox", "giou": "loss_giou"}
    return OfficialLosses(terms, place_of_official, suffix_of_official, errors=False)


# -- criterion ------------------------------------------------------------------------------------


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion with the case's label loss; denoising queries have their stored pairs."""
    label = (re.findall(r"'(\w+)'", case.facts["config"].get("losses", "")) or ["vfl"])[0]
    # the official BCE subtracts in place from a float32 one-hot, so its float64 run is rounded to float32
    exact = SINGLE if label == "bce" else EXACT
    return compare_criterion(
        case, criterion(label), official_losses(label), partial(_output_set, case), exact
    )


def _output_set(case: Case, name: str, predictions: Predictions) -> OutputSet:
    if name != "denoising":
        return OutputSet(name, predictions)
    return OutputSet(name, predictions, stored_pairs(case), divisor=int(case["dn/num_group"]))


# -- network --------------------------------------------------------------------------------------


def backbone_and_encoder(
    case: Case, freeze_stem: bool
) -> tuple[BackboneConfig, EncoderConfig, dict[str, Tensor]]:
    """Those of the case, and the official weights of its backbone."""
    config = case.facts["config"]
    depth = config.get("depth") or int(case.name.split("_r")[1][:2])
    backbone = BackboneConfig(
        name=f"resnet{depth}d", weights="random", freeze_stem=freeze_stem, frozen_norm=depth >= 50
    )
    encoder = EncoderConfig(
        dim=config["hidden_dim"],
        num_heads=config["nhead"],
        ffn_dim=config["dim_feedforward"],
        expansion=config["expansion"],
        num_blocks=3,
    )
    weights = {f"backbone.{k}": v for k, v in case.shared_weights(f"weights_presnet{depth}").items()}
    return backbone, encoder, weights


def stem_is_frozen(case: Case) -> bool:
    """Whether the official steps left it without a gradient."""
    return "backbone.conv1.conv1_1.conv.weight" not in case.strings("step1/grad/names")


def build(case: Case, freeze_stem: bool) -> RtDetr:
    """The case's network with its weights, float64, loaded strictly through `from_published`."""
    config = case.facts["config"]
    backbone, encoder, weights = backbone_and_encoder(case, freeze_stem)
    decoder = DecoderConfig(
        dim=encoder.dim,
        num_queries=config["num_queries"],
        num_layers=config["decoder_layers"],
        eval_layers=config.get("eval_idx", config["decoder_layers"] - 1) + 1,
        num_heads=encoder.num_heads,
        num_points=3,
        ffn_dim=encoder.ffn_dim,
        num_denoising=config["num_denoising"],
        label_noise=0.5,
        box_noise=1.0,
        learned_queries=config.get("learnt_init_query", False),
    )
    return with_weights(
        lambda: RtDetr(config["num_classes"], backbone, encoder, decoder),
        from_published(weights | case.weights()),
    )


@torch.no_grad()
def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, maps of backbone and encoder; in evaluation or train mode."""
    training = "train_mode" in case.name
    # with batch statistics the official code itself differs this much between float32 and float64
    single = (2e-3, 2e-4) if training else (1e-3, 1e-4)
    results = []
    for precision, dtype, network in in_both_precisions(build(case, freeze_stem=False).train(training)):
        features = network.backbone(case.images("images").to(dtype))
        maps = network.encoder(features)
        outputs = network.decoder(maps, stored_denoising(case))
        results += compare_layers(case, precision, outputs, place_of_official, single)
        if precision == "f64":
            results += compare_maps(case, network, features, maps, our_name)
    return results


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps: losses, gradients, norm, parameters, BatchNorm buffers, EMA."""
    network = build(case, freeze_stem=stem_is_frozen(case)).train()
    ema = ModelEma(network, EMA)

    results = compare_train_steps(
        case,
        network,
        torch.optim.AdamW(stored_groups(case, network, our_name), lr=1e-4, weight_decay=1e-4),
        supervised_with_stored_denoising(case, network),
        criterion(),
        official_losses(),
        our_name,
        weighted=True,
        after_step=ema.update,
    )
    return results + compare_stored(case, "after_step5/ema", ema.network.state_dict(), our_name)


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rates of all groups and epochs, EMA decay and an example."""
    schedule = Schedule(
        lr=1e-4, weight_decay=1e-4, rules=[], warmup_steps=0, drop_epochs=[1000], global_batch_size=16
    )
    groups = {"r18": [1e-5, 1e-5, 1e-4, 1e-4], "r50": [1e-5, 1e-4, 1e-4, 1e-4], "r101": [1e-6, 1e-4]}
    return [
        *compare_ema(case, EMA),
        *(
            compare_rates(f"lr {name}", schedule, rates, case[f"lr_epoch/{name}"], steps=7392)
            for name, rates in groups.items()
        ),
    ]


# -- input, output --------------------------------------------------------------------------------


def run_postprocess(case: Case) -> list[Comparison]:
    """Top 300 of queries x classes: scores, labels, boxes in pixels."""
    sizes = [(int(h), int(w)) for w, h in case["orig_target_sizes_wh"].tolist()]
    return compare_detections(case, TopKSigmoid(300), sizes)


def run_preprocess(case: Case) -> list[Comparison]:
    """The val resize."""
    results, index = [], 0
    while (prefix := f"im{index}/") + "input_png" in case:
        size, positions = case[f"{prefix}out_chw"].tolist()[1:], case[f"{prefix}sample_yx"]
        results += compare_pixels(case, prefix, INPUT, size, positions, positions)
        index += 1
    return results


# -- structure ------------------------------------------------------------------------------------


def run_structure(facts: Mapping, network: RtDetr, rules: Schedule) -> list[Comparison]:
    """A full-size network and its optimizer groups; see `compare_structure`."""
    groups = [
        (g.get("lr", 1e-4), g.get("weight_decay", 1e-4), our_name(n))
        for g in facts["param_groups"]
        for n in g["names"]
    ]
    return compare_structure(facts, network, rules, our_name, groups)


CASES = FamilyCases(
    folder="rtdetr",
    kinds={
        "criterion": ("matching and losses", run_criterion),
        "forward": ("network, forward", run_forward),
        "train_steps": ("training steps", run_train_steps),
        "schedule_ema": ("schedule", run_schedule),
        "denoising": ("denoising queries", run_denoising),
        "postprocess_bbox": ("post-processing", run_postprocess),
        "preprocess_val": ("preprocessing", run_preprocess),
    },
    recipes={
        "rtdetr_r18vd_6x_coco": "rt_detr/r18_coco_72e",
        "rtdetr_r34vd_6x_coco": "rt_detr/r34_coco_72e",
        "rtdetr_r50vd_m_6x_coco": "rt_detr/r50m_coco_72e",
        "rtdetr_r50vd_6x_coco": "rt_detr/r50_coco_72e",
        "rtdetr_r101vd_6x_coco": "rt_detr/r101_coco_72e",
    },
    compare_structure=run_structure,
)
