"""Batches of stored images, and a network's outputs on them against the official ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.contract.batch import Batch, Outputs, OutputSet, Sample, Targets, collate
from zoo.verification.cases import Case, Comparison, compare, compare_exact, compare_listed
from zoo.verification.criterion import compare_stored, detr_place, whole_step

N = TypeVar("N", bound=nn.Module)
OurName = Callable[[str], str]
FromPublished = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def name_by(from_published: FromPublished) -> OurName:
    """Our name of an official state-dict key, from the function that converts a whole state dict."""
    return lambda key: next(iter(from_published({key: torch.empty(0)})))


def one_image(pixels: Tensor, image_id: int = 0) -> Sample:
    """[3, h, w] without objects."""
    height, width = pixels.shape[-2:]
    return Sample(pixels, torch.empty(0, dtype=torch.int64), torch.empty(0, 4), image_id, (height, width))


def padded_batch(case: Case, dtype: torch.dtype, prefix: str = "") -> Batch:
    """The case's images, zero-padded to the largest height and width, and their targets if it has some."""
    samples: list[Sample] = []
    while (name := f"{prefix}image/{len(samples)}") in case:
        samples.append(one_image(case.images(name).to(dtype), len(samples)))
    batch = collate(samples)
    targets = case.targets(prefix) if f"{prefix}targets/count" in case else batch.targets
    return replace(batch, targets=targets, step=whole_step(targets))


def supervised_on(case: Case, network: nn.Module) -> Callable[[str], tuple[Sequence[OutputSet], Targets]]:
    """For the prefix of a batch's arrays: what the network supervises on its images, and its targets."""

    def outputs(prefix: str) -> tuple[Sequence[OutputSet], Targets]:
        batch = padded_batch(case, torch.float64, prefix)
        return network(batch).supervised, batch.targets

    return outputs


def in_both_precisions(network: N) -> Iterator[tuple[str, torch.dtype, N]]:
    """(`f64` or `f32`, its type, a copy of the network in it)."""
    for precision, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        yield precision, dtype, copy.deepcopy(network).to(dtype)


def compare_layers(
    case: Case,
    precision: str,
    outputs: Outputs,
    place: Callable[[str, int], tuple[str, int]] = detr_place,
    single: tuple[float, float] = (1e-3, 1e-4),
    double: float = 1e-9,
) -> list[Comparison]:
    """Logits and boxes of the final prediction and of every supervised layer.

    Args:
        case: with `<precision>/pred_logits` of the final prediction and `<precision>/aux_0/pred_logits`, ...
        precision: `f64` or `f32`.
        outputs: ours.
        place: see `OfficialLosses`.
        single: tolerances of logits and boxes in float32.
        double: tolerance of both in float64.
    """
    start, end = f"{precision}/", "pred_logits"
    names = [k[len(start) : -len(end)] for k in case.arrays if k.startswith(start) and k.endswith(end)]
    ours = {s.name: s.predictions for s in outputs.supervised}
    num_aux = sum(name.startswith("aux") for name in names)
    results = []
    count = sum(len(p.logits) for p in ours.values())
    if count and count != len(names):
        results.append(compare_exact(f"{precision} number of layers", count, len(names)))
    for name in names:
        logits, boxes = outputs.final.logits, outputs.final.boxes
        if name:
            output_set, layer = place(name.removesuffix("/"), num_aux)
            logits, boxes = ours[output_set].logits[layer], ours[output_set].boxes[layer]
        for kind, values, within in (("logits", logits, single[0]), ("boxes", boxes, single[1])):
            key = f"{start}{name}pred_{kind}"
            results.append(compare(key, values, case[key], within if precision == "f32" else double))
    return results


def compare_maps(
    case: Case, network: nn.Module, features: Sequence[Tensor], maps: Sequence[Tensor], our_name: OurName
) -> list[Comparison]:
    """Maps of backbone and encoder in float64; the buffers of BatchNorm after them where they are stored."""
    results = compare_listed(case, "f64/inter/backbone", features, 1e-9)
    results += compare_listed(case, "f64/inter/encoder", maps, 1e-9)
    if (norms := "f64/bn_after_forward") + "/names" in case:
        results += compare_stored(case, norms, dict(network.named_buffers()), our_name, 1e-9)
    return results


# -- training -------------------------------------------------------------------------------------


def stored_groups(case: Case, network: nn.Module, our_name: OurName) -> list[dict[str, Any]]:
    """The official optimizer groups of our parameters, with the rates that they have of their own."""
    parameters = dict(network.named_parameters())
    return [
        {
            "params": [parameters[our_name(n)] for n in group["names"]],
            **{k: group[k] for k in ("lr", "weight_decay") if k in group},
        }
        for group in case.facts["param_groups"]
    ]


def point_scales(num_points: Sequence[int], num_layers: int) -> dict[str, Tensor]:
    """Buffers of the official decoder that ours computes: 1 / points of every layer, rounded to float32."""
    scale = torch.cat([torch.full((n,), 1 / n, dtype=torch.float32) for n in num_points]).double()
    layers = range(num_layers)
    return {f"decoder.decoder.layers.{i}.cross_attn.num_points_scale": scale for i in layers}


def compare_average(
    case: Case, average: nn.Module, our_name: OurName, constants: Mapping[str, Tensor]
) -> list[Comparison]:
    """The averaged network after five steps, and the `constants` of the official one under its names."""
    names = {n: n if n in constants else our_name(n) for n in case.strings("after_step5/ema/names")}
    return compare_stored(case, "after_step5/ema", {**average.state_dict(), **constants}, names.__getitem__)


def without_constants(facts: Mapping[str, Any], from_published: FromPublished) -> dict[str, Any]:
    """The facts of a full-size network, less the tensors that ours computes."""
    kept = [tensor for tensor in facts["state_dict"] if from_published({tensor[0]: torch.empty(0)})]
    return {**facts, "state_dict": kept}
