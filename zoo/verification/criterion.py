"""A family's criterion against official numbers: on stored outputs, and over training steps."""

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
    """(our set, layer) of `final`, `aux_1`, `enc` or `enc_outputs`, where `num_aux` layers are called `aux`."""
    if name.startswith("enc"):
        return "encoder", 0
    return "decoder", num_aux if name == "final" else int(name.removeprefix("aux_"))


def detr_suffix(output_set: str, layer: int, num_layers: int) -> str:
    """What the official name of a loss ends in: nothing, `_1` or `_enc`."""
    if output_set == "encoder":
        return "_enc"
    return "" if layer == num_layers - 1 else f"_{layer}"


@dataclass(frozen=True)
class OfficialLosses:
    """How an official repository names what its criterion takes and returns.

    Attributes:
        terms: {our loss term: official name}.
        place: (name of official outputs, number of those called `aux`) to (our set, layer in it).
        suffix: (our set, layer, number of decoder layers) to the end of a loss's official name.
        errors: `class_error` and `cardinality_error` are logged beside the losses.
    """

    terms: Mapping[str, str]
    place: Callable[[str, int], tuple[str, int]] = detr_place
    suffix: Callable[[str, int, int], str] = detr_suffix
    errors: bool = True

    def named(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Our weighted losses under the official names; divided by the weights of their terms, if given."""
        num_layers, named = len(losses["decoder/label"]), {}
        for key, values in losses.items():
            output_set, term = key.split("/")
            # a term that has fewer layers than the decoder has the last ones
            for layer, value in enumerate(values, num_layers - len(values)):
                name = self.terms[term] + self.suffix(output_set, layer, num_layers)
                named[name] = value / weights[term] if weights else value
        return named

    def logged(self, matches: Matches) -> dict[str, Tensor]:
        """Numbers that the official code computes for its log only, in float32 as there."""
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
    """Mean difference of the numbers of detected and of present objects.

    A query counts as detected if its best class is not the last one.
    """
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    return (found - torch.tensor(counts)).abs().float().mean()


def class_error(matches: Matches) -> Tensor:
    """Percent of the matched queries of the last layer whose best class is not that of their object."""
    matched = matches["decoder"]
    logits = matched.outputs.predictions.logits.detach()
    rows = matched.rows.view(len(logits), -1)[-1]
    labels = matched.labels(matches.targets).view(len(logits), -1)[-1]
    # stored logits can be equal, and then topk may return another index than argmax; the official code uses topk
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
        official: names of outputs and losses.
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
        losses, matches = losses_and_matches(criterion, sets, targets)
        total = total_of(losses)
        total.backward()
        results.append(compare(f"{precision} total", total, case[f"{precision}/total"], value))
        unweighted = official.named(losses, _weights(criterion))
        for kind, stored, ours, logged in (
            ("loss_weighted", "values", official.named(losses), {}),
            ("loss", "unweighted", unweighted, official.logged(matches)),
        ):
            key = f"{precision}/{kind}"
            results += compare_losses(case, key, f"{key}/{stored}", ours, logged, value)
        for name, predictions in inputs.items():
            results += _compare_gradients(case, f"{precision}/grad/{name}", predictions, slope)
            results += compare_pairs(case, f"{precision}/match/{name}", matches, *places[name])
    return results


def stored_outputs(case: Case, dtype: torch.dtype) -> dict[str, Predictions]:
    """{official name: outputs of one layer}; every tensor is a leaf that receives a gradient."""

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
    """{our set: its layers, stacked}."""
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


def losses_and_matches(
    criterion: SetCriterion, sets: Sequence[OutputSet], targets: Targets
) -> tuple[dict[str, Tensor], Matches]:
    """Of a step that is one batch."""
    step = whole_step(targets)
    losses = criterion(sets, targets, step)
    with torch.no_grad():
        return losses, criterion.match(sets, targets, step)


def _weights(criterion: SetCriterion) -> dict[str, float]:
    return {term.name: term.weight for term in criterion.terms}


def total_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of all losses."""
    return torch.stack([v.sum() for v in losses.values()]).sum()


def compare_losses(
    case: Case,
    key: str,
    stored: str,
    ours: Mapping[str, Tensor],
    logged: Mapping[str, Tensor],
    tolerance: float,
) -> list[Comparison]:
    """The losses, and separately what is only logged: beside a class error of 100 no loss would matter."""
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


def compare_pairs(case: Case, key: str, matches: Matches, output_set: str, layer: int) -> list[Comparison]:
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
        outputs: for the prefix of a batch's arrays, the outputs to supervise and their targets.
        criterion: the family's.
        official: names of outputs and losses.
        our_name: for an official state-dict key.
        weighted: whether the stored losses are weighted.
        after_step: called with the network after each step.
    """
    results = []
    for number, batch in enumerate(case["batch_schedule"].tolist(), 1):
        sets, targets = outputs(f"batch{batch}/")
        losses, matches = losses_and_matches(criterion, sets, targets)
        total = total_of(losses)
        optimizer.zero_grad()
        total.backward()
        step, tolerance = f"step{number}", 1e-9 if number == 1 else 1e-7
        ours = official.named(losses, None if weighted else _weights(criterion))
        results += compare_losses(
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
    """Every tensor of ours against the official one; a name that only one side has is a difference."""
    official = {our_name(n): n for n in case.strings(f"{key}/names")}
    return compare_summary(case, key, {official.get(n, n): v for n, v in ours.items()}, 1e-8)


def compare_stored(
    case: Case,
    key: str,
    ours: Mapping[str, Tensor],
    our_name: Callable[[str], str],
    tolerance: float = 1e-8,
) -> list[Comparison]:
    """The stored tensors against ours of the same name; ours may be more."""
    stored = case.strings(f"{key}/names")
    return compare_summary(case, key, {n: ours[our_name(n)] for n in stored}, tolerance)
