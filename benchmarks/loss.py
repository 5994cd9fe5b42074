"""Does the matching loss cost less than transformers' on equal inputs?

Forward and backward of the whole criterion, process CPU time, both in one process in turns:
    python benchmarks/loss.py [--rounds 15] [--threads 1] [--families detr rt_detr] [--tiny] [--json]
Values and gradients are compared first; a difference ends the run. D-FINE's whole losses are not equal: there what both
have is compared, and the times are of ours, which is the official one and has more, and of theirs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import DeformableDetrConfig, DetrConfig, DFineConfig, RTDetrConfig, RTDetrV2Config
from transformers.loss import loss_d_fine, loss_rt_detr
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss, DFineLoss
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss, RTDetrLoss

from zoo.architectures.detr import detr_criterion
from zoo.contract.batch import OutputSet, Predictions, Step, Targets
from zoo.layers.denoising import positive_pairs
from zoo.layers.distribution import CORNERS, REFERENCE
from zoo.layers.refining_decoder import split_queries
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossTerm, LossWeights, SetCriterion
from zoo.training.distribution_losses import DistillationTerm, LocalisationTerm
from zoo.training.losses import LabelLoss, MatchabilityAware, SigmoidFocal, Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost, union_of_matchings

Gradients = dict[str, Tensor]
Run = Callable[[], tuple[Tensor, Gradients]]
TO_HOST = {"cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"}


@dataclass
class Contest:
    """Two implementations of one loss on the same numbers; each call returns total and gradients."""

    family: str
    size: str
    ours: Run
    theirs: Run
    on_host: list[Tensor]  # inputs that stay on the host by contract
    compared: tuple[Run, Run] | None = None  # what both have, ours first, if the whole losses are not equal


class CountTransfers(TorchFunctionMode):
    """Counts device-to-host transfers that a run would make if predictions and targets were on a GPU.

    Runs on the CPU, so it follows what is on the host by contract: what a transfer returned, `host`,
    tensors made without a device, and whatever is computed from those alone.
    """

    def __init__(self, host: list[Tensor]) -> None:
        super().__init__()
        self.count = 0
        self.host = {id(t): t for t in host}  # holding the tensors keeps their ids their own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        on_host = all(id(t) in self.host for t in tensors)
        self.count += name in TO_HOST and not on_host
        result = func(*args, **kwargs)
        sent = name == "to" and any(isinstance(a, torch.device) for a in args)
        made_on_device = not tensors and kwargs.get("device") is not None
        if name == "cpu" or (on_host and not sent and not made_on_device):
            self.host.update({id(t): t for t in tree_leaves(result) if isinstance(t, Tensor)})
        return result


class Numbers:
    """Random predictions and objects of one seed; images have `most` objects at most, or `objects` each."""

    def __init__(self, batch: int, classes: int, most: int, objects: int | None = None) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.classes = classes
        self.counts = [most, *torch.randint(1, most, (batch - 1,), generator=self.generator).tolist()]
        if objects is not None:
            self.counts = [objects] * batch
        self.leaves: dict[str, Tensor] = {}
        self.labels = torch.randint(classes, (sum(self.counts),), generator=self.generator)
        self.objects = self._random_boxes(sum(self.counts))

    def logits(self, name: str, *shape: int) -> Tensor:
        """A leaf around -3, as of a trained network."""
        self.leaves[name] = (torch.randn(*shape, generator=self.generator) - 3).requires_grad_()
        return self.leaves[name]

    def boxes(self, name: str, *shape: int) -> Tensor:
        """A leaf of boxes inside the image."""
        self.leaves[name] = self._random_boxes(*shape).requires_grad_()
        return self.leaves[name]

    def _random_boxes(self, *shape: int) -> Tensor:
        values = torch.rand(*shape, 4, generator=self.generator)
        return torch.cat([0.2 + 0.6 * values[..., :2], 0.02 + 0.3 * values[..., 2:]], -1)

    @property
    def targets(self) -> Targets:
        """As our criterion takes them."""
        return Targets(self.labels, self.objects, tuple(self.counts))

    @property
    def dicts(self) -> list[dict[str, Tensor]]:
        """As transformers takes them."""
        parts = zip(self.labels.split(self.counts), self.objects.split(self.counts), strict=True)
        return [{"class_labels": labels, "boxes": boxes} for labels, boxes in parts]

    def backward(self, total: Tensor) -> tuple[Tensor, Gradients]:
        """The total and its gradients."""
        gradients = torch.autograd.grad(total, list(self.leaves.values()), materialize_grads=True)
        return total.detach(), dict(zip(self.leaves, gradients, strict=True))


def decoder_contest(
    family: str,
    batch: int,
    queries: int,
    width: int,
    layers: int,
    criterion: SetCriterion,
    theirs: Any,
    config: Any,
    objects: int | None = None,
) -> Contest:
    """A contest over the decoder's layers alone; `width` of the logits, labels are below `config.num_labels`."""
    numbers = Numbers(batch, config.num_labels, most=14, objects=objects)
    logits = numbers.logits("logits", layers, batch, queries, width)
    boxes = numbers.boxes("boxes", layers, batch, queries)
    targets, dicts = numbers.targets, numbers.dicts
    step = Step(torch.tensor(numbers.counts), (640, 640), 0)

    def ours() -> tuple[Tensor, Gradients]:
        losses = criterion([OutputSet("decoder", Predictions(logits, boxes))], targets, step)
        return numbers.backward(torch.stack([v.sum() for v in losses.values()]).sum())

    def transformers_loss() -> tuple[Tensor, Gradients]:
        total, _, _ = theirs(logits[-1], dicts, logits.device, boxes[-1], config, logits, boxes)
        return numbers.backward(total)

    size = f"batch {batch}, {queries} queries, {width} logits, {layers} layers, {sum(numbers.counts)} objects"
    return Contest(family, size, ours, transformers_loss, [step.counts])


def detr(batch: int = 4, queries: int = 100, classes: int = 91, layers: int = 6) -> Contest:
    """DETR: softmax with "no object"; as many layers."""
    criterion = detr_criterion(
        MatchCosts(label=1, l1=5, giou=2), LossWeights(label=1, l1=5, giou=2), 0.1, "exact"
    )
    config = DetrConfig(num_labels=classes, auxiliary_loss=True, decoder_layers=layers)
    return decoder_contest(
        "detr", batch, queries, classes + 1, layers, criterion, ForObjectDetectionLoss, config
    )


def deformable_detr(
    batch: int = 4, queries: int = 300, classes: int = 91, layers: int = 6, objects: int | None = None
) -> Contest:
    """Deformable DETR: focal loss. transformers fixes the weight of its class loss at 1, so ours is 1 here."""
    criterion = SetCriterion(
        HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost),
        [LabelTerm(1.0, SigmoidFocal()), L1Term(5.0), GiouTerm(2.0)],
    )
    config = DeformableDetrConfig(
        num_labels=classes, auxiliary_loss=True, decoder_layers=layers, class_cost=2
    )
    return decoder_contest(
        "deformable_detr",
        batch,
        queries,
        classes,
        layers,
        criterion,
        DeformableDetrForObjectDetectionLoss,
        config,
        objects,
    )


def denoising_contest(
    family: str,
    batch: int,
    queries: int,
    classes: int,
    layers: int,
    label_loss: LabelLoss,
    config_class: type,
    their_criterion: type[RTDetrLoss] = RTDetrLoss,
) -> Contest:
    """A contest over decoder layers, the encoder's selection, and denoising queries of seven groups."""
    numbers = Numbers(batch, classes, most=14)
    counts, width = numbers.counts, max(numbers.counts)
    groups = 100 // width
    noised = 2 * groups * width
    logits = numbers.logits("logits", layers, batch, noised + queries, classes)
    boxes = numbers.boxes("boxes", layers, batch, noised + queries)
    enc_logits = numbers.logits("encoder logits", batch, queries, classes)
    enc_boxes = numbers.boxes("encoder boxes", batch, queries)
    criterion = SetCriterion(
        HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost),
        [LabelTerm(1.0, label_loss), L1Term(5.0), GiouTerm(2.0)],
    )
    targets, dicts, device = numbers.targets, numbers.dicts, logits.device
    step = Step(torch.tensor(counts), (640, 640), 0)

    def ours() -> tuple[Tensor, Gradients]:
        pairs = positive_pairs(targets.counts, groups, width, device)
        denoising, decoder = split_queries(Predictions(logits, boxes), noised)
        sets = [
            OutputSet("decoder", decoder),
            OutputSet("encoder", Predictions(enc_logits[None], enc_boxes[None])),
            OutputSet("denoising", denoising, pairs, divisor=groups),
        ]
        losses = criterion(sets, targets, step)
        return numbers.backward(torch.stack([v.sum() for v in losses.values()]).sum())

    config = config_class(num_labels=classes, num_queries=queries, auxiliary_loss=True)
    starts = torch.arange(groups)[:, None] * 2 * width
    meta = {
        "dn_positive_idx": [(starts + torch.arange(n)).flatten() for n in counts],
        "dn_num_group": groups,
        "dn_num_split": [noised, queries],
    }

    def theirs() -> tuple[Tensor, Gradients]:
        by_image, boxes_by_image = logits.transpose(0, 1), boxes.transpose(0, 1)
        with mock.patch.object(loss_rt_detr, "RTDetrLoss", their_criterion):
            total, _, _ = RTDetrForObjectDetectionLoss(
                by_image[:, -1], dicts, device, boxes_by_image[:, -1], config,
                outputs_class=by_image, outputs_coord=boxes_by_image,
                enc_topk_logits=enc_logits, enc_topk_bboxes=enc_boxes, denoising_meta_values=meta,
            )  # fmt: skip
        return numbers.backward(total)

    size = f"batch {batch}, {queries} queries, {classes} classes, {layers} layers + encoder, {groups} denoising groups"
    return Contest(family, f"{size} ({noised} queries), {sum(counts)} objects", ours, theirs, [step.counts])


def rt_detr(batch: int = 16, queries: int = 300, classes: int = 80, layers: int = 6) -> Contest:
    """RT-DETR: six layers."""
    return denoising_contest("rt_detr", batch, queries, classes, layers, Varifocal(), RTDetrConfig)


def rt_detrv2(batch: int = 16, queries: int = 300, classes: int = 80, layers: int = 3) -> Contest:
    """RT-DETRv2 has RT-DETR's loss, on both sides; three layers, as S has."""
    return denoising_contest("rt_detrv2", batch, queries, classes, layers, Varifocal(), RTDetrV2Config)


class MatchabilityLoss(RTDetrLoss):  # type: ignore[misc]
    """transformers has DEIM's label loss in its DEIMv2 alone; here it takes the place of RT-DETR's."""

    def __init__(self, config: RTDetrV2Config) -> None:
        super().__init__(config)
        self.gamma, self.mal_alpha = 1.5, None

    def loss_labels_vfl(
        self, outputs: Any, targets: Any, indices: Any, num_boxes: Any, log: bool = True
    ) -> dict[str, Tensor]:
        """Under RT-DETR's name, which has its weight."""
        return {
            "loss_vfl": Deimv2Loss.loss_labels_mal(self, outputs, targets, indices, num_boxes)["loss_mal"]
        }


def deim(batch: int = 16, queries: int = 300, classes: int = 80, layers: int = 6) -> Contest:
    """DEIM-RT-DETRv2: the matchability-aware loss; six layers, as L has."""
    return denoising_contest(
        "deim", batch, queries, classes, layers, MatchabilityAware(), RTDetrV2Config, MatchabilityLoss
    )


class UnitedLoss(DFineLoss):  # type: ignore[misc]
    """transformers' loss of D-FINE with the union of all matchings, as the official code has it."""

    def forward(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Finds the union first."""
        self.sets = [outputs, *outputs["auxiliary_outputs"]]
        matched = [self.matcher(found, targets) for found in self.sets]
        self.united = []
        for of_image in zip(*matched, strict=True):
            votes = Counter(
                (int(q), int(o))
                for queries, objects in of_image
                for q, o in zip(queries, objects, strict=True)
            )
            rising = sorted(votes, key=lambda pair: (votes[pair], -pair[1]))
            best = dict(rising)  # of each query the last stays
            self.united.append((torch.tensor(list(best)), torch.tensor(list(best.values()))))
        return super().forward(outputs, targets)

    def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_boxes: float) -> Any:
        """Classes have their own pairs, and so has denoising."""
        if loss != "vfl" and any(outputs is found for found in self.sets):
            indices, num_boxes = self.united, float(sum(len(queries) for queries, _ in self.united))
        return super().get_loss(loss, outputs, targets, indices, num_boxes)


def dfine(batch: int = 16, queries: int = 300, classes: int = 80, layers: int = 6) -> Contest:
    """D-FINE L: six layers with distributions, the first boxes, the encoder, denoising.

    transformers' loss is not the official one: each layer's boxes and distributions are compared in its own pairs, not
    in the union of all; the first boxes and FGL of the last layer are missing; DDF of denoising is weighed by sides of
    denoising. What is compared is ours without the last three, and theirs with the union.
    """
    numbers = Numbers(batch, classes, most=14)
    counts, width = numbers.counts, max(numbers.counts)
    groups = 100 // width
    noised = 2 * groups * width
    shape = (layers, batch, noised + queries)
    logits, boxes = numbers.logits("logits", *shape, classes), numbers.boxes("boxes", *shape)
    first = (
        numbers.logits("first logits", 1, *shape[1:], classes),
        numbers.boxes("first boxes", 1, *shape[1:]),
    )
    encoder = (
        numbers.logits("encoder logits", batch, queries, classes),
        numbers.boxes("encoder boxes", batch, queries),
    )
    corners = numbers.logits("corners", *shape, 4 * 33)
    reference = first[1].detach().expand(layers, -1, -1, -1)
    targets, step = numbers.targets, Step(torch.tensor(counts), (640, 640), 0)
    terms: list[LossTerm] = [LabelTerm(1.0, Varifocal()), L1Term(5.0), GiouTerm(2.0)]
    terms += [LocalisationTerm(0.15, 4.0), DistillationTerm(1.5)]
    matcher = HungarianMatcher(MatchCosts(label=2, l1=5, giou=2), focal_cost)
    criterion = SetCriterion(matcher, terms, union_of_matchings)

    def losses(with_first: bool) -> dict[str, Tensor]:
        pairs = positive_pairs(targets.counts, groups, width, logits.device)
        layers_of = Predictions(logits, boxes, {CORNERS: corners, REFERENCE: reference})
        parts = {"": split_queries(layers_of, noised)}
        if with_first:
            parts["_first"] = split_queries(Predictions(*first), noised)
        sets = [OutputSet(f"decoder{name}", decoder) for name, (_, decoder) in parts.items()]
        sets += [OutputSet(f"denoising{n}", noise, pairs, divisor=groups) for n, (noise, _) in parts.items()]
        sets.append(OutputSet("encoder", Predictions(encoder[0][None], encoder[1][None])))
        return criterion(sets, targets, step)

    def ours() -> tuple[Tensor, Gradients]:
        found = losses(with_first=True)
        return numbers.backward(torch.stack([v.sum() for v in found.values()]).sum())

    def ours_compared() -> tuple[Tensor, Gradients]:
        found = losses(with_first=False)
        del found["denoising/ddf"]
        found["decoder/fgl"] = found["decoder/fgl"][:-1]
        return numbers.backward(torch.stack([v.sum() for v in found.values()]).sum())

    config = DFineConfig(
        num_labels=classes,
        num_queries=queries,
        auxiliary_loss=True,
        decoder_layers=layers,
        reg_scale=4.0,
        up=0.5,
    )
    starts = torch.arange(groups)[:, None] * 2 * width
    meta = {
        "dn_positive_idx": [(starts + torch.arange(n)).flatten() for n in counts],
        "dn_num_group": groups,
        "dn_num_split": [noised, queries],
    }

    def their_losses() -> tuple[Tensor, dict[str, Tensor]]:
        by_image = [t.transpose(0, 1) for t in (logits, boxes, corners, reference)]
        total, found, _ = DFineForObjectDetectionLoss(
            by_image[0][:, -1], numbers.dicts, logits.device, by_image[1][:, -1], config, by_image[0], by_image[1],
            *encoder, meta, by_image[2], by_image[3],
        )  # fmt: skip
        return total, found

    def theirs() -> tuple[Tensor, Gradients]:
        return numbers.backward(their_losses()[0])

    def theirs_compared() -> tuple[Tensor, Gradients]:
        with mock.patch.object(loss_d_fine, "DFineLoss", UnitedLoss):
            found = their_losses()[1]
        return numbers.backward(
            torch.stack([v for n, v in found.items() if not n.startswith("loss_ddf_dn")]).sum()
        )

    size = f"batch {batch}, {queries} queries, {classes} classes, {layers} layers + first + encoder"
    size = f"{size}, {groups} denoising groups ({noised} queries), {sum(counts)} objects"
    return Contest("dfine", size, ours, theirs, [step.counts], (ours_compared, theirs_compared))


FAMILIES: dict[str, Callable[..., Contest]] = {
    "detr": detr,
    "deformable_detr": deformable_detr,
    "rt_detr": rt_detr,
    "rt_detrv2": rt_detrv2,
    "deim": deim,
    "dfine": dfine,
}


def check_equal(contest: Contest) -> tuple[float, float]:
    """(relative difference of the loss, largest difference of a gradient over its largest value)."""
    ours, theirs = contest.compared or (contest.ours, contest.theirs)
    (mine, my_gradients), (other, other_gradients) = ours(), theirs()
    value = float((mine - other).abs() / other.abs())
    gradient = max(
        float((my_gradients[n] - g).abs().max() / g.abs().max())
        for n, g in other_gradients.items()
        if g.any()
    )
    if value > 1e-4 or gradient > 1e-4:
        raise SystemExit(f"{contest.family}: not the same loss: value {value:.1e}, gradient {gradient:.1e}")
    return value, gradient


def timed(run: Callable[[], object]) -> float:
    """Process CPU milliseconds."""
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def transfers(run: Callable[[], object], on_host: list[Tensor]) -> int:
    """Device-to-host transfers of one forward and backward pass."""
    with CountTransfers(on_host) as counter:
        run()
    return counter.count


def measure(contest: Contest, rounds: int) -> dict[str, object]:
    """One row of the table."""
    value, gradient = check_equal(contest)
    mine, other = [], []
    for index in range(rounds):
        pair = [(contest.ours, mine), (contest.theirs, other)]
        for run, times in pair if index % 2 else reversed(pair):
            times.append(timed(run))
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return {
        "family": contest.family,
        "size": contest.size,
        "ours_ms": round(statistics.median(mine), 1),
        "transformers_ms": round(statistics.median(other), 1),
        "ratio_transformers": round(statistics.median(ratios), 1),
        "ratios": [round(ratio, 1) for ratio in ratios],
        "transfers": transfers(contest.ours, contest.on_host),
        "transfers_transformers": transfers(contest.theirs, contest.on_host),
        "loss_difference": value,
        "gradient_difference": gradient,
    }


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args()
    sizes = {"batch": 2, "queries": 20, "classes": 5} if options.tiny else {}
    torch.set_num_threads(options.threads)
    rows = [measure(FAMILIES[family](**sizes), options.rounds) for family in options.families]
    machine = f"{platform.processor() or platform.machine()}, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {machine}")
    for row in rows:
        print(f"\n{row['family']}: {row['size']}, forward + backward, median of {options.rounds}, CPU time")
        print(f"  ours {row['ours_ms']} ms   transformers {row['transformers_ms']} ms   ", end="")
        print(f"{row['ratio_transformers']}x less, {min(row['ratios'])} to {max(row['ratios'])}")
        print(
            f"  device-to-host transfers: ours {row['transfers']}, transformers {row['transfers_transformers']}"
        )
        print(
            f"  loss differs by {row['loss_difference']:.1e}, gradients by {row['gradient_difference']:.1e}"
        )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
