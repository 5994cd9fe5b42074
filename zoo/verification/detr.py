"""DETR against facebookresearch/detr@29901c5: one function for each kind of case."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.architectures.detr import Detr, detr_criterion, from_published
from zoo.contract.batch import Batch, OutputSet, Predictions, Targets, collate
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
    Runner,
    compare,
    compare_exact,
    compare_summary,
    find_runner,
    with_weights,
)
from zoo.verification.criterion import OfficialLosses, compare_criterion, compare_train_steps
from zoo.verification.masks import run_instances, run_mask_losses, run_panoptic
from zoo.verification.network import compare_layers, official_layers, one_image, padded_batch
from zoo.verification.structure import compare_structure

FOLDER = "detr"
SHARED: dict[str, tuple[str, ...]] = {}  # cases of other families whose code this one copied
# official structure -> the recipe that builds it
STRUCTURES = {
    "detr_resnet50": "detr/r50_coco_500e",
    "detr_resnet50_dc5": "detr/r50_dc5_coco_500e",
    "detr_resnet101": "detr/r101_coco_500e",
    "detr_resnet101_dc5": "detr/r101_dc5_coco_500e",
}
COSTS = MatchCosts(label=1, l1=5, giou=2)
WEIGHTS = LossWeights(label=1, l1=5, giou=2)
NO_OBJECT = 0.1
MASK_WEIGHTS = MaskLossWeights(focal=1, dice=1)
OFFICIAL = OfficialLosses(
    terms={
        "label": "loss_ce",
        "l1": "loss_bbox",
        "giou": "loss_giou",
        "mask_focal": "loss_mask",
        "dice": "loss_dice",
    },
    weights={"label": 1.0, "l1": 5.0, "giou": 2.0, "mask_focal": 1.0, "dice": 1.0},
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
UNLIMITED = LONGEST_SIDE  # no image that is read has a longer one


def criterion(masks: bool) -> SetCriterion:
    """The official criterion; a case is one batch on one device, where both normalisers are one."""
    return detr_criterion(COSTS, WEIGHTS, NO_OBJECT, "exact", MASK_WEIGHTS if masks else None)


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
    return compare_criterion(case, criterion("in/final/masks" in case), OFFICIAL)


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
    prefix = f"{official_prefix(case)}backbone.0.body."
    weights = {f"{prefix}{k}": v for k, v in case.shared_weights(f"weights_{name}").items()}
    return with_weights(
        lambda: Detr(config["num_classes"], backbone, transformer, masks=config.get("masks", False)),
        from_published(weights | case.weights()),
    )


def official_prefix(case: Case) -> str:
    """What stands before the official keys of the detector: it is a part of the model with masks."""
    return "detr." if case.facts["config"].get("masks", False) else ""


def our_name(key: str) -> str:
    """Our name of an official state-dict key."""
    return next(iter(from_published({key: torch.empty(0)})))


@torch.no_grad()
def run_forward(case: Case) -> list[Comparison]:
    """Logits and boxes of every layer, in training (all layers) and evaluation (the last one); masks."""
    results = []
    official = build(case)
    for precision, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        network, batch = copy.deepcopy(official).to(dtype), padded_batch(case, dtype)
        evaluated, trained = network.eval()(batch), network.train()(batch)
        layers = {**official_layers(trained), "": evaluated.final}
        results += compare_layers(case, precision, layers)
        if f"{precision}/pred_masks" in case:
            masks = all_masks(evaluated.final)
            tolerance = 1e-9 if precision == "f64" else 1e-3
            results.append(compare("masks", masks, case[f"{precision}/pred_masks"], tolerance))
        if precision == "f64":
            results += _compare_inside(case, network.eval(), batch)
    return results


def all_masks(predictions: Predictions) -> Tensor:
    """[B, Q, h, w] logits of every query, which the official model always computes."""
    assert predictions.masks is not None
    images, queries = predictions.logits.shape[:2]
    image, query = torch.arange(images).repeat_interleave(queries), torch.arange(queries).repeat(images)
    return predictions.masks(image, query).unflatten(0, (images, queries))


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

    names = case.strings("f64/inter/features/names")  # of the last stage, or of all four for the mask head
    summarised = dict(zip(names, stages[-len(names) :], strict=True))
    return [
        *compare_summary(case, "f64/inter/features", summarised, 1e-9),
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
    """Five optimizer steps: losses, gradients, norm, parameters; groups and frozen parts by our rules."""
    network = build(case).train()
    groups = schedule(drop_epoch=1000).groups(network.named_parameters())
    official_groups = [
        ({our_name(n) for n in case.facts["param_groups"][group]}, lr)
        for group, lr in (("1", 1e-5), ("0", 1e-4))
    ]
    results = [compare_exact("groups", [(set(g["param_names"]), g["lr"]) for g in groups], official_groups)]

    def outputs(prefix: str) -> tuple[Sequence[OutputSet], Targets]:
        batch = padded_batch(case, torch.float64, prefix)
        return network(batch).supervised, batch.targets

    return results + compare_train_steps(
        case,
        network,
        torch.optim.AdamW(groups, fused=True),
        outputs,
        criterion(case.facts["config"].get("masks", False)),
        OFFICIAL,
        our_name,
    )


def run_schedule(case: Case) -> list[Comparison]:
    """Learning rate of every epoch and group."""
    results = []
    for name in sorted(k.removesuffix("/lr") for k in case.arrays if k.endswith("/lr")):
        official = case[f"{name}/lr"]
        epochs, drop = case[f"{name}/epochs_lrdrop"].tolist()
        factors = [schedule(drop).factor(epoch * 1000, 1000, epochs * 1000) for epoch in range(epochs)]
        rates = [1e-4, 1e-5][: official.shape[1]]
        ours = torch.tensor([[rate * f for rate in rates] for f in factors], dtype=torch.float64)
        results.append(compare(f"lr {name}", ours, official, 1e-12))
    return results


# -- input, output --------------------------------------------------------------------------------


def run_sizes(case: Case) -> list[Comparison]:
    """The resize rule, on the whole table."""
    ours = []
    for width, height, shortest, longest, *_ in case["resize_rule"].tolist():
        contract = InputContract(resize="shortest", size=(shortest, longest if longest > 0 else UNLIMITED))
        h, w = contract.resized_size(height, width)
        ours.append((w, h))
    val = (int(case["val_scale"]), int(case["max_size"]))
    return [
        compare_exact("resize rule", torch.tensor(ours), case["resize_rule"][:, 4:]),
        compare_exact("evaluation size", INPUT.size, val),
    ]


def stored_image(case: Case, prefix: str = "") -> Image.Image:
    """An image of the case, stored as pixels or as a PNG file."""
    if f"{prefix}input_uint8" in case:
        return Image.fromarray(np.asarray(case.arrays[f"{prefix}input_uint8"]))
    return Image.open(io.BytesIO(case.arrays[f"{prefix}input_png"].tobytes())).convert("RGB")


def run_pieces(case: Case) -> list[Comparison]:
    """Resized images: the PIL backend exactly, the fast one within one grey level."""
    image, results = stored_image(case), []
    index = 0
    while f"resize{index}/size_max" in case:
        shortest, longest = case[f"resize{index}/size_max"].tolist()
        contract = InputContract(resize="shortest", size=(shortest, longest if longest > 0 else UNLIMITED))
        official = case[f"resize{index}/image"].permute(2, 0, 1)
        exact = contract.with_backend("pil").resize_image(image)
        results.append(compare_exact(f"resize{index} image pil", exact, official))
        fast = contract.with_backend("fast").resize_image(image)
        results.append(compare_exact(f"resize{index} size", fast.shape, official.shape))
        level = 1.0 / float(official.max())
        results.append(compare(f"resize{index} image fast", fast.float(), official.float(), level))
        index += 1
    return results


def run_preprocess(case: Case) -> list[Comparison]:
    """The val transform: sizes exactly, normalised pixels within 1e-5 (PIL) or one grey level (fast)."""
    results, index = [], 0
    while f"im{index}/input_wh" in case:
        prefix = f"im{index}/"
        index += 1
        width, height = case[f"{prefix}input_wh"].tolist()
        size = tuple(case[f"{prefix}out_hw"].tolist())
        results.append(compare_exact(f"{prefix}size", INPUT.resized_size(height, width), size))
        if f"{prefix}sample_pixels" not in case:
            continue  # a large picture, stored without its pixels
        image = stored_image(case, prefix)
        rows, columns = case[f"{prefix}sample_y"], case[f"{prefix}sample_x"]
        official = case[f"{prefix}sample_pixels"]
        for backend in ("pil", "fast"):
            pixels = INPUT.with_backend(backend).resize_image(image)  # type: ignore[arg-type]
            results.append(compare_exact(f"{prefix}size {backend}", tuple(pixels.shape[-2:]), size))
            normalized = INPUT.normalize(collate([one_image(pixels)])).images[0]
            sampled = normalized[:, rows][:, :, columns]
            # relative to the largest value; one grey level is 1/255/.224 after normalisation
            level = 1.001 / 255 / min(INPUT.std) / float(official.abs().max())
            tolerance = 1e-5 if backend == "pil" else level
            results.append(compare(f"{prefix}pixels {backend}", sampled, official, tolerance))
    return results


def run_postprocess(case: Case) -> list[Comparison]:
    """Every query's best class and box in pixels; ours come best first, the official ones in query order."""
    sizes = tuple((int(h), int(w)) for h, w in case["target_sizes_hw"].tolist())
    results = []
    for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        found = BestClassSoftmax()(Predictions(case["logits"].to(dtype), case["boxes"].to(dtype)), sizes)
        scores, order = case[f"{precision}/scores"].sort(dim=1, descending=True, stable=True)
        labels = case[f"{precision}/labels"].gather(1, order)
        boxes = case[f"{precision}/boxes"].gather(1, order[..., None].expand(-1, -1, 4))
        ours = [torch.stack(parts) for parts in zip(*(d[:3] for d in found), strict=True)]
        largest = float(boxes.abs().max())
        results += [
            compare(f"{precision} scores", ours[0], scores, 1e-6),
            compare_exact(f"{precision} labels", ours[1], labels),
            compare(f"{precision} boxes", ours[2], boxes, 1e-3 / largest),
        ]
    return results


# -- structure ------------------------------------------------------------------------------------


def run_structure(facts: Mapping, network: Detr, rules: Schedule) -> list[Comparison]:
    """A full-size network and its two rates; see `compare_structure`."""
    frozen = set(facts["param_names_requires_grad_false"])
    groups = [
        (1e-5 if "backbone" in n else 1e-4, 1e-4, our_name(n))
        for n, _, _, what in facts["state_dict"]
        if what == "parameter" and n not in frozen
    ]
    return compare_structure(facts, network, rules, our_name, groups)


RUNNERS: dict[str, Runner] = {
    "criterion": run_criterion,
    "forward": run_forward,
    "train_steps": run_train_steps,
    "lr_schedule": run_schedule,
    "preprocess_sizes": run_sizes,
    "preprocess_pieces": run_pieces,
    "preprocess_val": run_preprocess,
    "postprocess_bbox": run_postprocess,
    "postprocess_segm": run_instances,
    "postprocess_panoptic": run_panoptic,
    "mask_losses": run_mask_losses,
}

runner_of = partial(find_runner, RUNNERS)
