"""RT-DETR against lyuwenyu/RT-DETR@068dfde, rtdetr_pytorch: one function for each kind of case."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zoo.architectures.rt_detr import DecoderConfig, RtDetr, from_published
from zoo.contract.batch import Batch, OutputSet, Pairs, Predictions, Targets
from zoo.contract.boxes import cxcywh_to_xyxy
from zoo.contract.preprocess import InputContract
from zoo.layers.backbone import BackboneConfig
from zoo.layers.denoising import DenoisingQueries, attention_block, contrastive_denoising, positive_pairs
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossTerm, SetCriterion
from zoo.training.ema import EmaConfig, ModelEma
from zoo.training.losses import LabelLoss, SigmoidFocal, Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.schedule import Schedule
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
from zoo.verification.criterion import (
    EXACT,
    SINGLE,
    OfficialLosses,
    compare_criterion,
    compare_stored,
    compare_train_steps,
    whole_step,
)
from zoo.verification.detections import compare_top_k
from zoo.verification.network import compare_layers
from zoo.verification.structure import compare_structure

FOLDER = "rtdetr"
SHARED: dict[str, tuple[str, ...]] = {}  # cases of other families whose code this one copied
# official structure -> the recipe that builds it
STRUCTURES = {
    f"rtdetr_{official}_6x_coco": f"rt_detr/{ours}_coco_72e"
    for official, ours in {
        "r18vd": "r18",
        "r34vd": "r34",
        "r50vd_m": "r50m",
        "r50vd": "r50",
        "r101vd": "r101",
    }.items()
}
COSTS = MatchCosts(label=2, l1=5, giou=2)
WEIGHTS = {"label": 1.0, "l1": 5.0, "giou": 2.0}
EMA = EmaConfig(decay=0.9999, warmup_steps=2000)
INPUT = InputContract(resize="stretch", size=(640, 640), backend="pil")


class BinaryCrossEntropy:
    """Plain binary cross entropy on hard 0/1 targets: a label loss that no recipe takes."""

    def __call__(self, logits: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """See `LabelLoss`; `quality` is not used."""
        target = torch.zeros_like(logits)
        target.view(-1)[matched] = 1
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).sum(1)


def criterion(label_loss: str = "vfl") -> SetCriterion:
    """The official criterion with one of its label losses."""
    losses: dict[str, LabelLoss] = {
        "vfl": Varifocal(alpha=0.75, gamma=2.0),
        "focal": SigmoidFocal(alpha=0.75, gamma=2.0),
        "bce": BinaryCrossEntropy(),
    }
    terms: list[LossTerm] = [
        LabelTerm(WEIGHTS["label"], losses[label_loss]),
        L1Term(WEIGHTS["l1"]),
        GiouTerm(WEIGHTS["giou"]),
    ]
    return SetCriterion(HungarianMatcher(COSTS, focal_cost), terms)


def place_of_official(name: str, num_aux: int) -> tuple[str, int]:
    """`final`, `aux_1`, `dn_0` to (our set, layer); the last aux is the encoder's selection in v1."""
    if name == "final":
        return "decoder", num_aux - 1
    kind, index = name.split("_")
    if kind == "dn":
        return "denoising", int(index)
    return ("encoder", 0) if int(index) == num_aux - 1 else ("decoder", int(index))


def suffix_of_official(output_set: str, layer: int, num_layers: int) -> str:
    """The end of a loss's name; the encoder's selection counts as the last layer."""
    if output_set == "denoising":
        return f"_dn_{layer}"
    return "" if (output_set, layer) == ("decoder", num_layers - 1) else f"_aux_{layer}"


def official_losses(label_loss: str = "vfl") -> OfficialLosses:
    """Names, with one of the label losses."""
    terms = {"label": f"loss_{label_loss}", "l1": "loss_bbox", "giou": "loss_giou"}
    return OfficialLosses(terms, WEIGHTS, place_of_official, suffix_of_official, errors=False)


# -- criterion ------------------------------------------------------------------------------------


def run_criterion(case: Case) -> list[Comparison]:
    """The criterion of a case's label loss; denoising has its stored pairs."""
    label = (re.findall(r"'(\w+)'", case.facts["config"].get("losses", "")) or ["vfl"])[0]
    # the official BCE subtracts in place from a float32 one-hot, so its float64 run is rounded to float32
    exact = SINGLE if label == "bce" else EXACT
    return compare_criterion(
        case, criterion(label), official_losses(label), partial(_output_set, case), exact
    )


def _output_set(case: Case, name: str, predictions: Predictions) -> OutputSet:
    if name != "denoising":
        return OutputSet(name, predictions)
    groups = int(case["dn/num_group"])
    return OutputSet(name, predictions, _positive_pairs(case, "dn/", case.targets(), groups), divisor=groups)


def _positive_pairs(case: Case, prefix: str, targets: Targets, groups: int) -> Pairs:
    """The stored positive positions as pairs: k-th of each group with object k."""
    counts = case[f"{prefix}positive_idx_count"].tolist()
    starts = np.concatenate([[0], np.cumsum(targets.counts)])
    target = [torch.arange(starts[i], starts[i + 1]).repeat(groups) for i in range(len(counts))]
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Pairs(image, case[f"{prefix}positive_idx"], torch.cat(target))


# -- network --------------------------------------------------------------------------------------


def build(case: Case, freeze_stem: bool) -> RtDetr:
    """The case's network with its weights, float64, loaded strictly through `from_published`."""
    config = case.facts["config"]
    depth = config.get("depth") or int(case.name.split("_r")[1][:2])
    dim, heads, ffn, points = config["hidden_dim"], config["nhead"], config["dim_feedforward"], 3
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
        eval_layers=config.get("eval_idx", config["decoder_layers"] - 1) + 1,
        num_heads=heads,
        num_points=points,
        ffn_dim=ffn,
        num_denoising=config["num_denoising"],
        label_noise=0.5,
        box_noise=1.0,
        learned_queries=config.get("learnt_init_query", False),
    )
    weights = {f"backbone.{k}": v for k, v in case.shared_weights(f"weights_presnet{depth}").items()}
    return with_weights(
        lambda: RtDetr(config["num_classes"], backbone, encoder, decoder),
        from_published(weights | case.weights()),
    )


def our_name(key: str) -> str:
    """Our name of an official state-dict key."""
    return next(iter(from_published({key: torch.empty(0)})))


def stored_denoising(case: Case, prefix: str, targets: Targets) -> DenoisingQueries | None:
    """The denoising part that the official run used."""
    if f"{prefix}labels" not in case:
        return None
    groups = int(case[f"{prefix}num_group"])
    return DenoisingQueries(
        labels=case[f"{prefix}labels"].long(),
        boxes_unactivated=case[f"{prefix}bbox_unact"],
        blocked=case.bits(f"{prefix}attn_mask"),
        pairs=_positive_pairs(case, prefix, targets, groups),
        groups=groups,
    )


def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, features, selected queries; in evaluation or train mode."""
    official = build(case, freeze_stem=False)
    training = "train_mode" in case.name
    # float32 against float64 of the official code itself differs this much with batch statistics
    single = (2e-3, 2e-4) if training else (1e-3, 1e-4)
    results = []
    for precision, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        network = copy.deepcopy(official).to(dtype).train(training)
        results += _forward_in(case, network, precision, dtype, single)
    return results


@torch.no_grad()
def _forward_in(
    case: Case, network: RtDetr, precision: str, dtype: torch.dtype, single: tuple[float, float]
) -> list[Comparison]:
    targets = case.targets() if "targets/count" in case else Targets(torch.empty(0), torch.empty(0, 4), ())
    denoising = stored_denoising(case, "dn/", targets)
    features = network.backbone(case.images("images").to(dtype))
    maps = network.encoder(features)
    outputs = network.decoder(maps, denoising)
    layers = {"": outputs.final}
    for supervised in outputs.supervised:
        count = len(supervised.predictions.logits)
        for layer in range(count):
            suffix = {"decoder": f"aux_{layer}/", "encoder": f"aux_{_decoder_layers(network)}/"}
            layers[suffix.get(supervised.name, f"dn_{layer}/")] = Predictions(
                supervised.predictions.logits[layer], supervised.predictions.boxes[layer]
            )
    if outputs.supervised:  # the last decoder layer is the final prediction, the encoder follows it
        last = _decoder_layers(network)
        layers[f"aux_{last - 1}/"] = layers.pop(f"aux_{last}/")
    results = compare_layers(case, precision, layers, single)
    if precision == "f64":
        for part, tensors in (("backbone", features), ("encoder", maps)):
            names = case.strings(f"f64/inter/{part}/names")
            results += compare_summary(
                case, f"f64/inter/{part}", dict(zip(names, tensors, strict=True)), 1e-9
            )
        if "f64/bn_after_forward/names" in case:
            results += compare_stored(
                case, "f64/bn_after_forward", dict(network.named_buffers()), our_name, 1e-9
            )
    return results


def _decoder_layers(network: RtDetr) -> int:
    return network.decoder.config.num_layers


# -- training -------------------------------------------------------------------------------------


def run_train_steps(case: Case) -> list[Comparison]:
    """Five optimizer steps: losses, gradients, norm, parameters, BatchNorm buffers, EMA."""
    stem = "backbone.conv1.conv1_1.conv.weight"
    network = build(case, freeze_stem=stem not in case.strings("step1/grad/names")).train()
    ema = ModelEma(network, EMA)

    def outputs(prefix: str) -> tuple[Sequence[OutputSet], Targets]:
        targets = case.targets(prefix)
        denoising = stored_denoising(case, f"{prefix}dn/", targets)
        maps = network.encoder(network.backbone(case.images(f"{prefix}images")))
        return network.decoder(maps, denoising).supervised, targets

    results = compare_train_steps(
        case,
        network,
        torch.optim.AdamW(_official_groups(case, network), lr=1e-4, weight_decay=1e-4),
        outputs,
        criterion(),
        official_losses(),
        our_name,
        weighted=True,
        after_step=ema.update,
    )
    return results + compare_stored(case, "after_step5/ema", ema.network.state_dict(), our_name)


def _official_groups(case: Case, network: RtDetr) -> list[dict]:
    parameters = dict(network.named_parameters())
    return [
        {
            "params": [parameters[our_name(n)] for n in group["names"]],
            **{k: v for k, v in group.items() if k in ("lr", "weight_decay")},
        }
        for group in case.facts["param_groups"]
    ]


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rates of all groups and epochs, EMA decay and an example."""
    decays = torch.tensor([EMA.decay_at(n) for n in range(5001)], dtype=torch.float64)
    results = [compare("EMA decay", decays, case["ema_decay_at_update"], 1e-12)]
    weights = case["ema_example/weights"]
    holder = torch.nn.Linear(2, 2, bias=False).double()
    holder.weight.data.copy_(weights[0])
    ema = ModelEma(holder, EMA)
    averages = []
    for value in weights[1:]:
        holder.weight.data.copy_(value)
        ema.update(holder)
        averages.append(ema.network.state_dict()["weight"].clone())
    results.append(compare("EMA example", torch.stack(averages), case["ema_example/ema_after_update"], 1e-12))
    base = {"r18": [1e-5, 1e-5, 1e-4, 1e-4], "r50": [1e-5, 1e-4, 1e-4, 1e-4], "r101": [1e-6, 1e-4]}
    schedule = Schedule(
        lr=1e-4, weight_decay=1e-4, rules=[], warmup_steps=0, drop_epochs=[1000], global_batch_size=16
    )
    for name, rates in base.items():
        factors = [schedule.factor(epoch * 7392, 7392, 72 * 7392) for epoch in range(72)]
        ours = torch.tensor([[rate * f for rate in rates] for f in factors], dtype=torch.float64)
        results.append(compare(f"lr {name}", ours, case[f"lr_epoch/{name}"], 1e-12))
    return results


# -- denoising, input, output ---------------------------------------------------------------------


def run_denoising(case: Case) -> list[Comparison]:
    """Layout, mask and positives exactly; boxes and labels without noise; ranges with noise."""
    config, targets = case.facts["config"], case.targets()
    batch = Batch(
        images=torch.empty(len(targets.counts), 3, 0, 0),
        padding=torch.empty(len(targets.counts), 0, 0, dtype=torch.bool),
        targets=targets,
        image_ids=tuple(range(len(targets.counts))),
        original_sizes=((1, 1),) * len(targets.counts),
        step=whole_step(targets),
    )

    def queries(label_noise: float, box_noise: float) -> DenoisingQueries | None:
        return contrastive_denoising(
            batch,
            num_classes=config["num_classes"],
            num_queries=config["num_queries"],
            num_denoising=config["num_denoising"],
            label_noise=label_noise,
            box_noise=box_noise,
        )

    clean = queries(0.0, 1e-30)
    if "returns_none" in case:
        return [compare_exact("no denoising part", clean is None, bool(case["returns_none"]))]
    assert clean is not None
    width = max(targets.counts)
    results = [
        compare_exact("groups", clean.groups, int(case["num_group"])),
        compare_exact("mask", clean.blocked, case.bits("attn_mask")),
        compare_exact(
            "mask builder",
            attention_block(clean.groups, width, config["num_queries"], clean.labels.device),
            case.bits("attn_mask"),
        ),
        compare_exact("positives", clean.pairs.query, case["positive_idx"]),
        compare_exact("labels", clean.labels, case["clean/labels"].long()),
        compare("boxes", clean.boxes_unactivated, case["clean/bbox"], 1e-5),
    ]
    pairs = positive_pairs(targets.counts, clean.groups, width, clean.labels.device)
    results.append(compare_exact("pairs", pairs.query, case["positive_idx"]))
    noisy = queries(1.0, 1.0)
    assert noisy is not None
    return [*results, *_noise_ranges(case, clean, noisy, width, config["num_classes"])]


def _noise_ranges(
    case: Case, clean: DenoisingQueries, noisy: DenoisingQueries, width: int, num_classes: int
) -> list[Comparison]:
    """Padding keeps its label; corners of positives move by less than half a size, negatives by up to one."""
    real = case["clean/labels"].long() != num_classes
    before = clean.boxes_unactivated.sigmoid().double()
    noised = noisy.boxes_unactivated.sigmoid().double()
    after = cxcywh_to_xyxy(noised)
    half = before[..., 2:].repeat(1, 1, 2) / 2
    low_corner = cxcywh_to_xyxy(before)
    negative = (torch.arange(real.shape[1]) // width % 2).double()[None, :, None]
    moved = (after - low_corner).abs() / half.clamp(min=1e-9)
    clipped = (after < 1e-4) | (after > 1 - 1e-4)
    slack = 2e-3  # the logit clamps at 1e-5
    # corners of a negative may cross; its negative size is clamped and its corners cannot be told any more
    crossed = (noised[..., 2:] < 1e-4).repeat(1, 1, 2) & (negative > 0)
    in_range = ((moved <= 1 + negative + slack) & ((moved >= negative - slack) | clipped)) | crossed
    return [
        compare_exact("padding keeps its label", bool((noisy.labels[~real] == num_classes).all()), True),
        compare_exact("labels in range", bool((noisy.labels[real] < num_classes).all()), True),
        compare_exact("corner shifts in range", bool(in_range[real].all()), True),
        compare_exact("something moved", bool(moved[real].max() > 0.5), True),
    ]


def run_postprocess(case: Case) -> list[Comparison]:
    """Top 300 of queries x classes: scores, labels, boxes in pixels."""
    sizes = tuple((int(h), int(w)) for w, h in case["orig_target_sizes_wh"].tolist())
    return compare_top_k(case, 300, sizes)


def run_preprocess(case: Case) -> list[Comparison]:
    """The val resize: sizes exact, pixels within 1e-5 (PIL backend) and one grey level (fast one)."""
    results = []
    index = 0
    while f"im{index}/input_png" in case:
        prefix = f"im{index}/"
        image = Image.open(io.BytesIO(case.arrays[f"{prefix}input_png"].tobytes())).convert("RGB")
        rows = case[f"{prefix}sample_yx"].tolist()
        for backend, tolerance in (("pil", 1e-5), ("fast", 1.001 / 255)):
            pixels = INPUT.with_backend(backend).resize_image(image).float() / 255  # type: ignore[arg-type]
            results.append(
                compare_exact(
                    f"{prefix}size {backend}", list(pixels.shape), case[f"{prefix}out_chw"].tolist()
                )
            )
            sampled = pixels[:, rows][:, :, rows]
            results.append(
                compare(f"{prefix}pixels {backend}", sampled, case[f"{prefix}sample_pixels"], tolerance)
            )
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


RUNNERS: dict[str, Runner] = {
    "criterion": run_criterion,
    "forward": run_forward,
    "train_steps": run_train_steps,
    "schedule_ema": run_schedule,
    "denoising": run_denoising,
    "postprocess_bbox": run_postprocess,
    "preprocess_val": run_preprocess,
}


runner_of = partial(find_runner, RUNNERS)
