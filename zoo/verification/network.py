"""Batches of stored images, and a network's outputs on them against the official ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.contract.batch import Batch, Outputs, OutputSet, Sample, Targets, collate
from zoo.verification.cases import Case, Comparison, compare, compare_exact
from zoo.verification.criterion import detr_place, whole_step

N = TypeVar("N", bound=nn.Module)


def name_by(from_published: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Callable[[str], str]:
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
