"""The networks of D-FINE and DEIMv2 against official numbers: outputs, training steps, full size."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.layers.denoising_network import DenoisingNetwork
from zoo.layers.distribution import CORNERS, weighting_function
from zoo.layers.distribution_decoder import DistributionDecoder, supervised_distributions
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import SetCriterion
from zoo.training.ema import EmaConfig, ModelEma
from zoo.training.schedule import Schedule
from zoo.verification.cases import Case, Comparison, compare, compare_exact, compare_listed
from zoo.verification.criterion import compare_train_steps
from zoo.verification.denoising import stored_denoising, supervised_with_stored_denoising
from zoo.verification.network import (
    FromPublished,
    compare_average,
    compare_maps,
    in_both_precisions,
    name_by,
    point_scales,
    stored_groups,
    without_constants,
)
from zoo.verification.proof import build_recipe
from zoo.verification.refined_losses import RefinedLosses, place_of_official
from zoo.verification.structure import compare_structure

EMA = EmaConfig(decay=0.9999, warmup_steps=1000)


def decoder_arguments(official: Mapping[str, Any]) -> dict[str, Any]:
    """What `DistributionConfig` and the configurations derived from it are given for the official arguments."""
    return {
        "dim": official["hidden_dim"],
        "num_queries": official["num_queries"],
        "num_layers": official["num_layers"],
        "eval_layers": official["eval_idx"] % official["num_layers"] + 1,
        "num_heads": official["nhead"],
        "num_points": official["num_points"],
        "ffn_dim": official["dim_feedforward"],
        "num_denoising": official["num_denoising"],
        "label_noise": official["label_noise_ratio"],
        "box_noise": official["box_noise_scale"],
        "reg_scale": official["reg_scale"],
        "bins": official["reg_max"] + 1,
    }


@torch.no_grad()
def compare_refined_forward(
    case: Case, network: DenoisingNetwork, from_published: FromPublished
) -> list[Comparison]:
    """Every layer, the first boxes and the reference; maps and queries; in evaluation or train mode."""
    training = "train" in case.name
    results = []
    for precision, dtype, copied in in_both_precisions(network.train(training)):
        decoder = copied.decoder
        assert isinstance(decoder, DistributionDecoder)
        features = copied.backbone(case.images("images").to(dtype))
        maps = copied.encoder(features)
        denoising = stored_denoising(case)
        refinement, selection = decoder.predict(maps, denoising)
        sets = supervised_distributions(refinement, selection.encoder, denoising).supervised
        ours = {
            (s.name, layer): (s.predictions, layer)
            for s in sets
            for layer in range(len(s.predictions.logits))
        }
        num_aux = len(refinement.layers) - 1
        within = {"logits": 1e-2, "boxes": 1e-3, "corners": 1e-2} if precision == "f32" else {}
        seen = set()
        for key in case.arrays:
            parts = key.split("/")
            if parts[0] != precision or len(parts) != 3 or parts[1] in ("ref", "deploy", "inter"):
                continue
            if parts[2] not in ("logits", "boxes", "corners"):
                continue
            place = place_of_official(parts[1], num_aux)
            predictions, layer = ours[place]
            seen.add(place)
            values = {"logits": predictions.logits, "boxes": predictions.boxes, **predictions.extras}
            results.append(compare(key, values[parts[2]][layer], case[key], within.get(parts[2], 1e-9)))
        if training:
            results.append(compare_exact(f"{precision} layers", seen, set(ours)))
        if not training:
            final = decoder(maps, None).final
            results += [
                compare(
                    f"{precision} evaluation {name}",
                    value,
                    case[f"{precision}/final/{name}"],
                    within.get(name, 1e-9),
                )
                for name, value in (("logits", final.logits), ("boxes", final.boxes))
            ]
        noised = 0 if denoising is None else denoising.labels.shape[1]
        reference = {"match": refinement.reference[:, noised:], "dn": refinement.reference[:, :noised]}
        results += [
            compare(key, part, case[key], 1e-9 if precision == "f64" else 1e-3)
            for name, part in reference.items()
            if (key := f"{precision}/ref/{name}") in case
        ]
        if precision == "f64":
            results += compare_maps(case, copied, features, maps, name_by(from_published))
            queries = selection.reference
            official = case["f64/inter/ref_points_unact"][:, noised:]
            results.append(compare("queries", queries, official, 1e-9))
    return results


def compare_refined_steps(
    case: Case,
    network: DenoisingNetwork,
    criterion: SetCriterion,
    official: RefinedLosses,
    from_published: FromPublished,
) -> list[Comparison]:
    """Five optimizer steps: losses, gradients, norm, learning rate, parameters, buffers, EMA."""
    network.train()
    our_name, ema = name_by(from_published), ModelEma(network, EMA)
    base = case.facts["optimizer_yaml"]
    optimizer = torch.optim.AdamW(
        stored_groups(case, network, our_name), lr=base["lr"], weight_decay=base["weight_decay"]
    )
    rates = case["lr_per_step"]
    step = 0

    def set_rates() -> None:
        for group, rate in zip(optimizer.param_groups, rates[min(step, len(rates) - 1)], strict=True):
            group["lr"] = float(rate)

    def after_step(trained: nn.Module) -> None:
        nonlocal step
        step += 1
        ema.update(trained)
        set_rates()

    set_rates()
    results = compare_train_steps(
        case, network, optimizer, supervised_with_stored_denoising(case, network), criterion, official,
        our_name, weighted=True, after_step=after_step,
    )  # fmt: skip
    decoder = network.decoder
    assert isinstance(decoder, DistributionDecoder)
    constants = point_scales(decoder.config.num_points, decoder.config.num_layers)
    return results + compare_average(case, ema.network, our_name, constants)


# -- full size ------------------------------------------------------------------------------------


def compare_refined_structure(
    facts: Mapping[str, Any], network: nn.Module, rules: Schedule, from_published: FromPublished
) -> list[Comparison]:
    """A full-size network and its optimizer groups; see `compare_structure`. Computed constants are left out."""
    our_name = name_by(from_published)
    groups = [(g["lr"], g["weight_decay"], our_name(n)) for g in facts["param_groups"] for n in g["names"]]
    return compare_structure(without_constants(facts, from_published), network, rules, our_name, groups)


@torch.no_grad()
def compare_formula(
    case: Case, recipes: Mapping[str, str], from_published: FromPublished
) -> list[Comparison]:
    """A full-size network whose weights are a formula of name and index, float64, on one image.

    Args:
        case: `formula_<size>`.
        recipes: {size: recipe}.
        from_published: the family's.
    """
    size = case.name.removeprefix("formula_")
    network: Any = build_recipe(recipes[size]).network
    facts = json.loads((case.root / case.folder / f"structure_{size}.json").read_text())
    network = network.double().eval()
    tensors = network.state_dict()
    our_name, tied = name_by(from_published), {key for key, _ in facts["tied_keys"]}
    for name, *_ in facts["state_dict"]:
        if name in tied or not from_published({name: torch.empty(0)}):
            continue
        tensor = tensors[our_name(name)]
        if tensor.is_floating_point() and name not in ("decoder.up", "decoder.reg_scale"):
            tensor.copy_(formula(name, tuple(tensor.shape)))
    # the official run filled this constant under the second of its names
    decoder: Any = network.decoder
    up, config = formula("decoder.decoder.up", (1,)).item(), decoder.config
    decoder.weighting = lambda: weighting_function(config.bins, config.reg_scale, up)
    height, width = case.facts["config"]["input_hw"]
    images = (values("image", 3 * height * width).view(1, 3, height, width) + 1) / 2
    features = network.backbone(images)
    maps = network.encoder(features)
    refinement, selection = network.decoder.predict(maps, None)
    # two tokens with almost equal scores may be selected the other way round: what belongs to a token is compared
    chosen = selected_tokens(selection.encoder.logits[0], network, maps)
    official, ours = case["selected_token"].argsort(), chosen.argsort()
    place = torch.empty_like(ours)
    place[official] = ours  # where the official query i is
    last = refinement.layers[-1]
    asked = place[case["query_index"]]
    found = TopKSigmoid(300)(last, [(height, width)])[0]
    return [
        *compare_listed(case, "backbone", features, 1e-6),
        *compare_listed(case, "encoder", maps, 1e-6),
        compare_exact("selected tokens", set(chosen.tolist()), set(case["selected_token"].tolist())),
        compare("logits", last.logits[0][asked], case["logits"], 1e-6),
        compare("boxes", last.boxes[0][place], case["boxes"], 1e-6),
        compare("corners", last.extras[CORNERS][0][asked[:4]], case["corners"], 1e-6),
        compare("first boxes", refinement.reference[0][place], case["ref_boxes"], 1e-6),
        compare("scores", found.scores, case["top300/scores"], 1e-6),
    ]


def selected_tokens(logits: Tensor, network: Any, maps: Sequence[Tensor]) -> Tensor:
    """Which tokens became queries: those with the highest logit of any class, in order."""
    seen: list[Tensor] = []
    hook = network.decoder.enc_score_head.register_forward_hook(
        lambda module, given, output: seen.append(output)
    )
    network.decoder.predict(maps, None)
    hook.remove()
    return seen[0][0].max(-1).values.topk(len(logits)).indices


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """What the official run filled the tensor of this name with: values in (-1, 1), scaled by what it is."""
    t = values(name, int(np.prod(shape, dtype=np.int64))).view(shape)
    last = name.rpartition(".")[2]
    if last == "running_mean":
        return t / 8
    if last == "running_var":
        return 1 + t / 2
    if len(shape) > 1:
        gain = 1.0
        if name.startswith("backbone.") and not any(
            p in name for p in ("dinov3", "conv1.conv", "downsample")
        ):
            gain = 2.0
        if "sampling_offsets" in name:
            gain = 0.05
        return t * 2.0 ** np.floor(0.5 * np.log2(3 * gain / np.prod(shape[1:])) + 0.5)
    if last in ("weight", "scale"):
        return 1 + t / 4
    if last == "gamma":
        return 0.5 + t / 4
    if "sampling_offsets" in name:
        return 2 * t
    return t / 2 - 3 if "score_head" in name else t / 8


def values(name: str, count: int) -> Tensor:
    """`count` numbers in (-1, 1) from a name, float64."""
    u = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(
        zlib.crc32(name.encode())
    )
    u = u.astype(np.uint32)
    u ^= u >> np.uint32(15)
    u *= np.uint32(2246822519)
    u ^= u >> np.uint32(13)
    return torch.from_numpy((2.0 * (u >> np.uint32(16)) - 65535) / 65536)
