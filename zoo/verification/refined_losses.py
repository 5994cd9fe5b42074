"""The criterion of D-FINE and DEIMv2 against official numbers: union of matchings, losses of distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.contract.batch import HUNGARIAN, OutputSet, Predictions
from zoo.layers.distribution import CORNERS, REFERENCE
from zoo.training.criterion import SetCriterion
from zoo.verification.cases import Case, Comparison, compare, compare_summary
from zoo.verification.criterion import (
    EXACT,
    SINGLE,
    SINGLE_GRADIENT,
    OfficialLosses,
    compare_losses,
    compare_pairs,
    losses_and_matches,
    total_of,
)
from zoo.verification.denoising import stored_pairs

SETS = {"pre": "first", "enc_0": "encoder", "dn_pre": "denoising_first"}  # official name -> ours


def place_of_official(name: str, num_aux: int) -> tuple[str, int]:
    """`final`, `aux_1`, `pre`, `enc_0`, `dn_0`, `dn_pre` to (our set, layer)."""
    if name == "final":
        return "decoder", num_aux
    if name in SETS:
        return SETS[name], 0
    kind, index = name.split("_")
    return {"aux": "decoder", "dn": "denoising"}[kind], int(index)


def suffix_of_official(output_set: str, layer: int, num_layers: int) -> str:
    """What the official name of a loss ends in."""
    for official, ours in SETS.items():
        if ours == output_set:
            return f"_{official}"
    if output_set == "denoising":
        return f"_dn_{layer}"
    return "" if layer == num_layers - 1 else f"_aux_{layer}"


@dataclass(frozen=True)
class RefinedLosses(OfficialLosses):
    """See `OfficialLosses`.

    Attributes:
        zeros: losses that are nothing are entries of 0: self-distillation of the last denoising layer, and all
            denoising of a step without objects.
    """

    zeros: bool = True

    def named(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """See `OfficialLosses.named`."""
        num_layers, named = len(losses["decoder/label"]), {}
        nothing = losses["decoder/label"].new_zeros(())
        for key, values in losses.items():
            output_set, term = key.split("/")
            for layer, value in enumerate(values):
                name = self.terms[term] + self.suffix(output_set, layer, num_layers)
                named[name] = value / weights[term] if weights else value
        if self.zeros and "ddf" in {key.split("/")[1] for key in losses}:
            named[f"{self.terms['ddf']}_dn_{num_layers - 1}"] = nothing
        if self.zeros and "denoising/label" not in losses:
            own = {k for k in named if "_dn_" not in k and not k.endswith(("_enc_0", "_pre"))}
            last = {k: k.split("_aux_")[0] + "_dn_" for k in own}
            for name, start in last.items():
                named[start + (name.split("_aux_")[1] if "_aux_" in name else str(num_layers - 1))] = nothing
            named |= {n.replace("_pre", "_dn_pre"): nothing for n in list(named) if n.endswith("_pre")}
        return named


def compare_refined(
    case: Case, make: Callable[..., SetCriterion], official: RefinedLosses
) -> list[Comparison]:
    """Matched pairs, their union, every loss before and after its weight, total, gradient of every input.

    Args:
        case: outputs under `in/`, targets, and the official numbers of both precisions.
        make: the family's criterion; takes the union to use where it is not defined by the algorithm, or None.
        official: names of losses.
    """
    results = []
    for precision, dtype, value, slope in (
        ("f32", torch.float32, SINGLE, SINGLE_GRADIENT),
        ("f64", torch.float64, EXACT, EXACT),
    ):
        inputs = stored_layers(case, dtype)
        num_aux = sum(name.startswith("aux") for name in inputs)
        criterion = make(given_union(case, precision))
        losses, matches = losses_and_matches(criterion, output_sets(case, inputs, dtype), case.targets())
        total = total_of(losses)
        total.backward()
        results.append(compare(f"{precision} total", total, case[f"{precision}/total"], value))
        weights = {term.name: term.weight for term in criterion.terms}
        for kind, ours in (
            ("weighted", official.named(losses)),
            ("unweighted", official.named(losses, weights)),
        ):
            key = f"{precision}/loss"
            results += compare_losses(case, key, f"{key}/{kind}", ours, {}, value)
        for name, leaves in inputs.items():
            results += _gradients(case, precision, name, leaves, slope)
            if (key := f"{precision}/match/{name}/count") in case:
                place = place_of_official(name, num_aux)
                results += compare_pairs(case, key.removesuffix("/count"), matches, *place)
        if criterion.unite is not None and f"{precision}/match/go/count" in case:
            results += compare_pairs(case, f"{precision}/match/go", matches.of_boxes, "decoder", 0)
    return results


def stored_layers(case: Case, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """{official name: {logits, boxes, corners}}, leaves that receive a gradient; layers without queries left out."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key in case.arrays:
        if key.startswith("in/") and not key.startswith("in/ref/") and case.arrays[key].shape[1]:
            _, name, part = key.split("/")
            value = case.sixteenths(key) if part == "corners" else case[key]
            layers.setdefault(name, {})[part] = value.to(dtype).requires_grad_()
    return layers


def output_sets(
    case: Case, inputs: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype
) -> list[OutputSet]:
    """Ours, of the stored layers."""
    num_aux = sum(name.startswith("aux") for name in inputs)
    members: dict[str, list[Mapping[str, Tensor]]] = {}
    for name in sorted(inputs, key=lambda n: place_of_official(n, num_aux)[1]):
        members.setdefault(place_of_official(name, num_aux)[0], []).append(inputs[name])
    sets = []
    for name, layers in members.items():
        stacked = {part: torch.stack([layer[part] for layer in layers]) for part in layers[0]}
        denoising = name.startswith("denoising")
        extras = {}
        if "corners" in stacked:
            reference = case["in/ref/dn" if denoising else "in/ref/match"].to(dtype)
            extras = {
                CORNERS: stacked["corners"], REFERENCE: reference.expand(len(layers), -1, -1, -1)
            }  # fmt: skip
        predictions = Predictions(stacked["logits"], stacked["boxes"], extras)
        sets.append(
            OutputSet(
                name, predictions, stored_pairs(case) if denoising else HUNGARIAN,
                divisor=int(case["dn/num_group"]) if denoising else 1,
            )
        )  # fmt: skip
    return sets


def given_union(
    case: Case, precision: str
) -> Callable[[Sequence[np.ndarray], Sequence[Sequence[int]]], np.ndarray] | None:
    """The stored union of a case whose union depends on how equal counts are sorted; None where it does not."""
    if int(case["go_tie_free"]):
        return None
    key, counts = f"{precision}/match/go", case.targets().counts
    image = torch.arange(len(counts)).repeat_interleave(case[f"{key}/count"])
    first = torch.tensor([0, *np.cumsum(counts).tolist()])
    objects = (case[f"{key}/target"] + first[image]).numpy()

    def union(matched: Sequence[np.ndarray], shapes: Sequence[Sequence[int]]) -> np.ndarray:
        return np.stack([(image * shapes[0][2] + case[f"{key}/pred"]).numpy(), objects])

    return union


def _gradients(
    case: Case, precision: str, name: str, leaves: Mapping[str, Tensor], tolerance: float
) -> list[Comparison]:
    results = []
    for part, leaf in leaves.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        key, summary = f"{precision}/grad/{name}/{part}", f"{precision}/grad_summary/{name}/{part}"
        if key in case:
            results.append(compare(key, gradient, case[key], tolerance))
        elif f"{summary}/names" in case:
            results += compare_summary(case, summary, {part: gradient}, tolerance)
    return results
