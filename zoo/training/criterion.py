"""Set criterion: named output sets -> matched pairs -> weighted losses, all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from zoo.contract.batch import HUNGARIAN, OutputSet, Pairs, Predictions, Step, Targets
from zoo.contract.boxes import cxcywh_to_ordered_xyxy, cxcywh_to_xyxy, iou_and_giou
from zoo.layers.precision import autocast_to
from zoo.training.ignored import logits_to_learn
from zoo.training.losses import LabelLoss, focal_and_dice
from zoo.training.matcher import HungarianMatcher, Unite


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the loss terms, the same for every set and layer."""

    label: float
    l1: float
    giou: float


@dataclass(frozen=True, kw_only=True)
class MaskLossWeights:
    """Weights of the two losses of masks, of the last layer alone."""

    focal: float
    dice: float


@dataclass(frozen=True)
class MatchedSet:
    """An output set with its pairs, layer-major, the same number in every layer."""

    outputs: OutputSet
    rows: Tensor  # [L*P] into the predictions flattened to [L*B*Q]
    objects: Tensor  # [L*P] into the flat targets
    normalizer: float | Tensor  # boxes or united pairs of the whole step x the set's divisor

    @property
    def num_layers(self) -> int:
        """L."""
        return self.outputs.predictions.logits.shape[0]

    @property
    def last_layer(self) -> Pairs:
        """The pairs of the last layer."""
        images, queries = self.outputs.predictions.logits.shape[1:3]
        first = len(self.rows) // self.num_layers * (self.num_layers - 1)
        rows = self.rows[first:]
        image = torch.div(rows, queries, rounding_mode="floor") % images
        return Pairs(image, rows % queries, self.objects[first:])

    def labels(self, targets: Targets) -> Tensor:
        """[L*P] class of each pair's object, as this set sees it."""
        labels = targets.labels[self.objects]
        return torch.zeros_like(labels) if self.outputs.class_agnostic else labels

    def matched_logits(self, targets: Targets) -> Tensor:
        """[L*P] index of (row, class) in the flattened logits."""
        return self.rows * self.outputs.predictions.logits.shape[-1] + self.labels(targets)


class Matches:
    """Everything a loss term may look at: all sets, all pairs, boxes and overlaps computed once.

    `of_boxes` has the pairs whose boxes are compared: others than these where matchings are united.
    """

    def __init__(
        self, sets: Sequence[MatchedSet], targets: Targets, step: Step, of_boxes: Matches | None = None
    ) -> None:
        self.sets, self.targets, self.step = tuple(sets), targets, step
        self.of_boxes = of_boxes or self

    def __getitem__(self, name: str) -> MatchedSet:
        """The set called `name`.

        Raises:
            KeyError: no such set; lists those there are.
        """
        for matched in self.sets:
            if matched.outputs.name == name:
                return matched
        raise KeyError(
            f"no output set {name!r} in this batch; there are {[s.outputs.name for s in self.sets]}"
        )

    @cached_property
    def predicted_boxes(self) -> Tensor:
        """[P of all sets, 4] cxcywh, in the order of `sets`."""
        return torch.cat([s.outputs.predictions.boxes.flatten(0, 2)[s.rows] for s in self.sets])

    @cached_property
    def object_boxes(self) -> Tensor:
        """[P of all sets, 4] cxcywh."""
        boxes = self.targets.boxes.to(self.predicted_boxes.dtype)
        return boxes[torch.cat([s.objects for s in self.sets])]

    @cached_property
    def overlaps(self) -> tuple[Tensor, Tensor]:
        """(IoU, GIoU) of every pair, [P of all sets] each."""
        return iou_and_giou(cxcywh_to_ordered_xyxy(self.predicted_boxes), cxcywh_to_xyxy(self.object_boxes))

    @cached_property
    def mask_losses(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{set: (focal [P], dice [P])} of the last layer's pairs, for each set that predicts masks.

        Only the matched queries' masks are computed. Their target is the object's mask in the padded image,
        so padding counts as background, as in the official code.

        Raises:
            ValueError: the targets have no masks.
        """
        losses = {}
        for matched in self.sets:
            masks = matched.outputs.predictions.masks
            if masks is None:
                continue
            if self.targets.masks is None:
                raise ValueError(
                    f"output set {matched.outputs.name!r} predicts masks, but the batch has none: use data with "
                    "segmentations of every object, or a model without masks"
                )
            pairs = matched.last_layer
            logits = masks(pairs.image, pairs.query)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses[matched.outputs.name] = focal_and_dice(logits, self.targets.masks[pairs.target])
        return losses

    def split(self, per_pair: Tensor) -> list[Tensor]:
        """[P of all sets] to one [L*P] a set."""
        return list(per_pair.split([len(s.rows) for s in self.sets]))

    def sum_per_layer(self, per_pair: Tensor) -> dict[str, Tensor]:
        """[P of all sets] to {set: [L]}, divided by each set's normaliser."""
        parts = zip(self.sets, self.split(per_pair), strict=True)
        return {s.outputs.name: part.view(s.num_layers, -1).sum(1) / s.normalizer for s, part in parts}


class LossTerm(Protocol):
    """One kind of loss over some or all output sets. A family adds its own in its own file."""

    name: str
    weight: float

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set name: [L]}, unweighted, already divided by the set's normaliser."""
        ...


class LabelTerm:
    """Classification of every query: matched ones as their object's class, others as no object."""

    name = "label"

    def __init__(self, weight: float, loss: LabelLoss) -> None:
        self.weight, self.loss = weight, loss

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L]}."""
        qualities = matches.split(matches.overlaps[0].detach())
        losses = {}
        for matched, quality in zip(matches.sets, qualities, strict=True):
            logits = logits_to_learn(matched, matches.targets)
            index = matched.matched_logits(matches.targets)
            losses[matched.outputs.name] = self.loss(logits, index, quality) / matched.normalizer
        return losses


class L1Term:
    """Sum of the four absolute coordinate differences of each pair."""

    name = "l1"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L]}."""
        boxes = matches.of_boxes
        return boxes.sum_per_layer((boxes.predicted_boxes - boxes.object_boxes).abs().sum(1))


class GiouTerm:
    """1 - GIoU of each pair."""

    name = "giou"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L]}."""
        boxes = matches.of_boxes
        return boxes.sum_per_layer(1 - boxes.overlaps[1])


class MaskFocalTerm:
    """Focal loss of each pair's mask, mean over the pixels of the padded image; last layer only."""

    name = "mask_focal"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [1]}."""
        losses = matches.mask_losses
        return {n: losses[n][0].sum()[None] / matches[n].normalizer for n in losses}


class DiceTerm:
    """Dice loss of each pair's mask over the padded image; last layer only."""

    name = "dice"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [1]}."""
        losses = matches.mask_losses
        return {n: losses[n][1].sum()[None] / matches[n].normalizer for n in losses}


class SetCriterion:
    """Pairs all output sets with the objects and adds up the terms.

    Losses are divided by the objects of the whole optimizer step, so that micro-batches of any
    split add up to the gradient of the undivided batch.

    Args:
        matcher: of queries and objects.
        terms: the losses.
        unite: boxes are compared in the union of all matchings, whatever the layer; None: in its own pairs.

    Raises:
        ValueError: a term that takes one set of pairs for all layers, without `unite`.
    """

    def __init__(
        self, matcher: HungarianMatcher, terms: Sequence[LossTerm], unite: Unite | None = None
    ) -> None:
        lost = [term.name for term in terms if unite is None and getattr(term, "needs_union", False)]
        if lost:
            raise ValueError(f"the losses {', '.join(lost)} take the same pairs in all layers; give `unite`")
        self.matcher, self.terms, self.unite = matcher, tuple(terms), unite

    def __call__(self, outputs: Sequence[OutputSet], targets: Targets, step: Step) -> dict[str, Tensor]:
        """{`set/term`: [L]} weighted losses; their sum is the loss of this micro-batch.

        [1] where a term looks at the last layer only.
        """
        # costs, box arithmetic and losses never run in 16 bits, whatever the network ran in
        with autocast_to(None, targets.boxes.device):
            matches = self.match(outputs, targets, step)
            return {
                f"{name}/{term.name}": term.weight * value
                for term in self.terms
                for name, value in term(matches).items()
            }

    def match(self, outputs: Sequence[OutputSet], targets: Targets, step: Step) -> Matches:
        """The pairs of every set, in float32 or better."""
        outputs = [in_full_precision(o) for o in outputs]
        matcher = self.matcher.at(step.epoch)
        found = matcher([o for o in outputs if o.matching == HUNGARIAN], targets, self.unite)
        solved = iter(found)
        sets = []
        for output in outputs:
            matching = output.matching
            rows, objects = (
                spread_over_layers(matching, output) if isinstance(matching, Pairs) else next(solved)
            )
            sets.append(MatchedSet(output, rows, objects, step.num_boxes * output.divisor))
        if self.unite is None:
            return Matches(sets, targets, step)
        return Matches(sets, targets, step, Matches(united(sets, *found[-1], targets, step), targets, step))


def united(
    sets: Sequence[MatchedSet], places: Tensor, objects: Tensor, targets: Targets, step: Step
) -> list[MatchedSet]:
    """The sets with the pairs (image * Q + query, object) [G] in every layer, but for those that brought their own."""
    normalizer = pairs_of_step(len(places), sum(targets.counts), step, places.device)
    result = []
    for matched in sets:
        output = matched.outputs
        if output.matching == HUNGARIAN:
            queries = output.predictions.logits.shape[2]
            image = torch.div(places, queries, rounding_mode="floor")
            rows = spread_over_layers(Pairs(image, places % queries, objects), output)
            matched = MatchedSet(output, *rows, normalizer)
        result.append(matched)
    return result


def pairs_of_step(found: int, objects: int, step: Step, device: torch.device) -> float | Tensor:
    """United pairs of the whole step, at least 1, of those that this micro-batch has for its objects.

    Exact over the ranks that share a micro-batch. What later micro-batches find is not known yet: they count as if
    their objects had as many pairs each.
    """
    total = step.num_boxes
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found * (total / objects) if objects else float(total)
    both = torch.tensor([found, objects], dtype=torch.float32).to(device, non_blocking=True)
    torch.distributed.all_reduce(both)
    return torch.where(both[1] > 0, both[0] * (total / both[1].clamp(min=1)), float(total))


def spread_over_layers(pairs: Pairs, output: OutputSet) -> tuple[Tensor, Tensor]:
    """(rows, objects) [L*P] of pairs that are the same in every layer."""
    layers, images, queries = output.predictions.logits.shape[:3]
    layer = torch.arange(layers, device=pairs.query.device)[:, None]
    rows = (layer * images + pairs.image) * queries + pairs.query
    return rows.flatten(), pairs.target.repeat(layers)


def in_full_precision(output: OutputSet) -> OutputSet:
    """The set with half-precision predictions as float32: costs and losses overflow in half."""
    logits, boxes, extras, masks = output.predictions
    if logits.dtype in (torch.float32, torch.float64) and boxes.dtype == logits.dtype:
        return output
    full = Predictions(logits.float(), boxes.float(), {k: v.float() for k, v in extras.items()}, masks)
    return replace(output, predictions=full)
