"""A family's criterion against official numbers, alone on stored outputs and over training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zoo.contract.batch import OutputSet, Predictions, Step, Targets
from zoo.training.criterion import Matches, SetCriterion
from zoo.verification.cases import Case, Comparison, compare, compare_exact, compare_summary
from zoo.verification.masks import StoredMasks

# float64 differences come from summation order alone
EXACT, SINGLE, SINGLE_GRADIENT = 1e-10, 1e-5, 1e-4


def whole_step(targets: Targets) -> Step:
    """Facts of a step that is one batch on one device."""
    return Step(torch.tensor(targets.counts, dtype=torch.int64), (0, 0), 0)


def detr_place(name: str, num_aux: int) -> tuple[str, int]:
    """(our set, layer) of `final`, `aux_1` or `enc`, of `num_aux` layers that are called `aux`."""
    if name == "enc":
        return "encoder", 0
    return "decoder", num_aux if name == "final" else int(name.removeprefix("aux_"))


def detr_suffix(output_set: str, layer: int, num_layers: int) -> str:
    """What the official name of a loss ends in: nothing, `_1` or `_enc`."""
    if output_set == "encoder":
        return "_enc"
    return "" if layer == num_layers - 1 else f"_{layer}"


@dataclass(frozen=True)
class OfficialLosses:
    """How an official repository names what its criterion takes and gives, and how it weighs it.

    Attributes:
        terms: {our loss term: official name}.
        weights: {our loss term: weight}.
        place: name of official outputs, number of those called `aux`: our set and the layer in it.
        suffix: our set, layer, number of decoder layers: the end of a loss's official name.
        errors: `class_error` and `cardinality_error` are logged beside the losses.
    """

    terms: Mapping[str, str]
    weights: Mapping[str, float]
    place: Callable[[str, int], tuple[str, int]] = detr_place
    suffix: Callable[[str, int, int], str] = detr_suffix
    errors: bool = True

    def named(self, losses: Mapping[str, Tensor], *, weighted: bool) -> dict[str, Tensor]:
        """Our losses under the official names, after or before their weight."""
        num_layers, named = len(losses["decoder/label"]), {}
        for key, values in losses.items():
            output_set, term = key.split("/")
            weight = 1.0 if weighted else self.weights[term]
            # a term of fewer layers is one of the last layers
            for layer, value in enumerate(values, num_layers - len(values)):
                named[self.terms[term] + self.suffix(output_set, layer, num_layers)] = value / weight
        return named

    def logged(self, matches: Matches) -> dict[str, Tensor]:
        """What is computed for the log alone, in float32 as there."""
        if not self.errors:
            return {}
        entries = {"class_error": class_error(matches)}
        for matched in matches.sets:
            logits = matched.outputs.predictions.logits.detach()
            for layer in range(len(logits)):
                suffix = self.suffix(matched.outputs.name, layer, len(logits))
                entries[f"cardinality_error{suffix}"] = cardinality_error(
                    logits[layer], matches.targets.counts
                )
        return entries


def cardinality_error(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean difference of detected and present objects, detected meaning: another class than the last one."""
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    return (found - torch.tensor(counts)).abs().float().mean()


def class_error(matches: Matches) -> Tensor:
    """Percent of the matched queries of the last layer whose best logit is not their object's."""
    matched = matches["decoder"]
    logits = matched.outputs.predictions.logits.detach()
    rows = matched.rows.view(len(logits), -1)[-1]
    labels = matched.labels(matches.targets).view(len(logits), -1)[-1]
    # of equal logits, which stored ones can have, topk may name another than argmax; the official code has topk
    right = (logits.flatten(0, 2)[rows].topk(1).indices[:, 0] == labels).float()
    return 100 - right.sum() * (100.0 / max(1, len(right)))


def compare_criterion(
    case: Case,
    criterion: SetCriterion,
    official: OfficialLosses,
    make_set: Callable[[str, Predictions], OutputSet] = OutputSet,
    exact: float = EXACT,
) -> list[Comparison]:
    """Matched pairs, every loss before and after its weight, total, gradient of every input.

    Args:
        case: outputs under `in/`, targets, and the official numbers of one or both precisions.
        criterion: the family's.
        official: names and weights.
        make_set: an output set from its name and predictions.
        exact: tolerance in float64.
    """
    results = []
    for precision, dtype, value, slope in (
        ("f32", torch.float32, SINGLE, SINGLE_GRADIENT),
        ("f64", torch.float64, exact, exact),
    ):
        if f"{precision}/total" not in case:
            continue
        inputs, targets = stored_outputs(case, dtype), case.targets()
        places = {name: official.place(name, sum(n.startswith("aux") for n in inputs)) for name in inputs}
        sets = [make_set(name, stacked) for name, stacked in _stacked(inputs, places).items()]
        losses, matches = _losses_and_matches(criterion, sets, targets)
        total = _total(losses)
        total.backward()
        results.append(compare(f"{precision} total", total, case[f"{precision}/total"], value))
        for kind, stored, ours, logged in (
            ("loss_weighted", "values", official.named(losses, weighted=True), {}),
            ("loss", "unweighted", official.named(losses, weighted=False), official.logged(matches)),
        ):
            key = f"{precision}/{kind}"
            results += _compare_losses(case, key, f"{key}/{stored}", ours, logged, value)
        for name, predictions in inputs.items():
            results += _compare_gradients(case, f"{precision}/grad/{name}", predictions, slope)
            results += _compare_pairs(case, f"{precision}/match/{name}", matches, *places[name])
    return results


def stored_outputs(case: Case, dtype: torch.dtype) -> dict[str, Predictions]:
    """{official name: outputs of one layer}, all of them leaves."""

    def leaf(name: str) -> Tensor:
        return case[f"in/{name}"].to(dtype).requires_grad_()

    names = sorted({k.split("/")[1] for k in case.arrays if k.startswith("in/")})
    return {
        n: Predictions(
            leaf(f"{n}/logits"),
            leaf(f"{n}/boxes"),
            masks=StoredMasks(leaf(f"{n}/masks")) if f"in/{n}/masks" in case else None,
        )
        for n in names
    }


def _stacked(
    inputs: Mapping[str, Predictions], places: Mapping[str, tuple[str, int]]
) -> dict[str, Predictions]:
    """{our set: all its layers}."""
    layers: dict[str, list[Predictions]] = {}
    for name in sorted(inputs, key=lambda n: places[n][1]):
        layers.setdefault(places[name][0], []).append(inputs[name])
    return {
        name: Predictions(
            torch.stack([p.logits for p in members]),
            torch.stack([p.boxes for p in members]),
            masks=members[-1].masks,
        )
        for name, members in layers.items()
    }


def _losses_and_matches(
    criterion: SetCriterion, sets: Sequence[OutputSet], targets: Targets
) -> tuple[dict[str, Tensor], Matches]:
    step = whole_step(targets)
    losses = criterion(sets, targets, step)
    with torch.no_grad():
        return losses, criterion.match(sets, targets, step)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([v.sum() for v in losses.values()]).sum()


def _compare_losses(
    case: Case,
    key: str,
    stored: str,
    ours: Mapping[str, Tensor],
    logged: Mapping[str, Tensor],
    tolerance: float,
) -> list[Comparison]:
    """Loss entries, and apart from them the logged ones: a class error of 100 would set the scale of all."""
    what, names = key.replace("/", " "), case.strings(f"{key}/names")
    results = [compare_exact(f"{what} entries", set(names), ours.keys() | logged.keys())]
    official = dict(zip(names, case[stored], strict=True))
    for part, entries, within in (
        (what, ours, tolerance),
        (f"{what}, logged only", logged, max(tolerance, 1e-6)),  # float32
    ):
        shared = [n for n in names if n in entries]
        if shared:
            values = torch.stack([entries[n].double() for n in shared])
            results.append(compare(part, values, torch.stack([official[n] for n in shared]), within))
    return results


def _compare_gradients(case: Case, key: str, leaves: Predictions, tolerance: float) -> list[Comparison]:
    tensors = {"logits": leaves.logits, "boxes": leaves.boxes}
    if isinstance(leaves.masks, StoredMasks):
        tensors["masks"] = leaves.masks.logits
    return [
        compare(
            f"{key}/{kind}",
            torch.zeros_like(tensor) if tensor.grad is None else tensor.grad,
            case[f"{key}/{kind}"],
            tolerance,
        )
        for kind, tensor in tensors.items()
        if f"{key}/{kind}" in case
    ]


def _compare_pairs(case: Case, key: str, matches: Matches, output_set: str, layer: int) -> list[Comparison]:
    """(image, query, object of the image) of a layer, in any order."""
    if f"{key}/count" not in case:
        return []
    matched = matches[output_set]
    _, images, queries = matched.outputs.predictions.logits.shape[:3]
    rows = matched.rows.view(matched.num_layers, -1)[layer]
    objects = matched.objects.view(matched.num_layers, -1)[layer]
    image = rows // queries % images
    first = torch.tensor([0, *np.cumsum(matches.targets.counts).tolist()])[image]
    of_image = torch.arange(images).repeat_interleave(case[f"{key}/count"])
    ours = torch.stack([image, rows % queries, objects - first], dim=1).tolist()
    official = torch.stack([of_image, case[f"{key}/pred"], case[f"{key}/target"]], dim=1).tolist()
    return [compare_exact(key, set(map(tuple, ours)), set(map(tuple, official)))]


def compare_train_steps(
    case: Case,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    outputs: Callable[[str], tuple[Sequence[OutputSet], Targets]],
    criterion: SetCriterion,
    official: OfficialLosses,
    our_name: Callable[[str], str],
    *,
    weighted: bool = False,
    after_step: Callable[[nn.Module], None] = lambda network: None,
) -> list[Comparison]:
    """Every optimizer step: losses, total, norm; gradients of the first; parameters and buffers where stored.

    Args:
        case: batches, their order, and the official numbers.
        network: in training mode, with the case's weights.
        optimizer: of the network.
        outputs: prefix of a batch to the outputs to supervise and their targets.
        criterion: the family's.
        official: names and weights.
        our_name: of an official state-dict key.
        weighted: the stored losses are.
        after_step: called with the network after each step.
    """
    results = []
    for number, batch in enumerate(case["batch_schedule"].tolist(), 1):
        sets, targets = outputs(f"batch{batch}/")
        losses, matches = _losses_and_matches(criterion, sets, targets)
        total = _total(losses)
        optimizer.zero_grad()
        total.backward()
        step, tolerance = f"step{number}", 1e-9 if number == 1 else 1e-7
        ours = official.named(losses, weighted=weighted)
        results += _compare_losses(
            case, f"{step}/loss", f"{step}/loss/values", ours, official.logged(matches), tolerance
        )
        results.append(compare(f"{step} total", total, case["total_loss"][number - 1], tolerance))
        if number == 1:
            gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
            results += compare_named(case, "step1/grad", gradients, our_name)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        results.append(compare(f"{step} norm", norm, case["grad_norm_before_clip"][number - 1], 1e-7))
        optimizer.step()
        after_step(network)
        if f"after_{step}/param/names" in case:
            trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
            results += compare_named(case, f"after_{step}/param", trained, our_name)
        if f"after_{step}/buffers/names" in case:
            results += compare_stored(case, f"after_{step}/buffers", network.state_dict(), our_name)
    return results


def compare_named(
    case: Case, key: str, ours: Mapping[str, Tensor], our_name: Callable[[str], str]
) -> list[Comparison]:
    """Every tensor of ours against the official one; an official name that we lack is a difference."""
    official = {our_name(n): n for n in case.strings(f"{key}/names")}
    return compare_summary(case, key, {official.get(n, n): v for n, v in ours.items()}, 1e-8)


def compare_stored(
    case: Case,
    key: str,
    ours: Mapping[str, Tensor],
    our_name: Callable[[str], str],
    tolerance: float = 1e-8,
) -> list[Comparison]:
    """The tensors that were stored, of more of ours."""
    stored = case.strings(f"{key}/names")
    return compare_summary(case, key, {n: ours[our_name(n)] for n in stored}, tolerance)
