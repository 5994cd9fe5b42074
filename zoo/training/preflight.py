"""Preflight: seconds of checks before hours of training, and a picture of what the network will see."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from zoo.contract.batch import Batch, Detections, Step
from zoo.contract.boxes import iou_and_giou
from zoo.evaluation.coco_ap import CocoAP
from zoo.pictures.detections import training_gallery
from zoo.storage.durable import written
from zoo.training.module import DetectionModule

GALLERY_IMAGES = 8
DROP_SAMPLE = 64
OVERFIT_IMAGES = 4
OVERFIT_STEPS = 200
OVERFIT_AP50 = 0.8


Precision = Callable[[], AbstractContextManager[None]]  # what the network runs in


class PreflightData(Protocol):
    """What the checks need of a datamodule."""

    def train_dataloader(self) -> Iterable[Batch]:
        """Micro-batches with step facts."""
        ...

    def val_dataloader(self) -> Iterable[Batch]:
        """Batches with annotations."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next training images."""
        ...

    def strongest_epoch(self) -> int:
        """The first epoch that augments most."""
        ...

    def dropped_object_share(self, num_images: int) -> tuple[int, int]:
        """(dropped, total) objects of the first images under the training transform."""
        ...

    def most_objects(self) -> int:
        """Objects of the fullest image."""
        ...


class PreflightError(ValueError):
    """A check failed; the message names the fault and what to do."""


@dataclass
class PreflightReport:
    """What was checked, in words, and the path of the picture."""

    checks: list[str] = field(default_factory=list)
    picture: Path | None = None

    def lines(self) -> list[str]:
        """For the terminal."""
        return [f"preflight: {check}" for check in self.checks]


def run_preflight(
    module: DetectionModule, data: PreflightData, out_dir: Path, *, overfit: bool = False,
    precision: Precision = nullcontext,
) -> PreflightReport:  # fmt: skip
    """Checks head, one step, dropped objects; shows 8 training images in a picture; optionally overfits 4 images.

    Args:
        module: bound to the data (`adopt`), still untrained; its weights stay as they are.
        data: set up for fitting.
        out_dir: receives `training_images.png`.
        overfit: also train a copy on four images until it finds them, and name the fault if it cannot.
        precision: entered around what runs the network, as the training does.

    Raises:
        PreflightError: a check failed.
    """
    report = PreflightReport()
    if module.label_map is None or module.input is None:
        raise ValueError("preflight needs a module that knows its data: call module.adopt first")
    batches = training_images(data, GALLERY_IMAGES)
    report.picture = out_dir / "training_images.png"
    out_dir.mkdir(parents=True, exist_ok=True)
    with written(report.picture):
        training_gallery(batches[0], module.label_map, module.input).save(report.picture)
    epoch = data.strongest_epoch()
    when = f" in epoch {epoch + 1}" if epoch else ""
    report.checks.append(
        f"{len(batches[0])} training images as the network sees them{when}: {report.picture}"
    )
    report.checks.append(check_one_step(module, batches[0], precision))
    report.checks.append(check_queries(module, batches[0], data.most_objects()))
    report.checks.append(check_dropped(*data.dropped_object_share(DROP_SAMPLE)))
    if overfit:
        report.checks.append(
            check_overfit(module, annotated_images(data, OVERFIT_IMAGES), precision=precision)
        )
    return report


def training_images(data: PreflightData, number: int) -> list[Batch]:
    """The first micro-batch of the epoch that augments most, cut to `number` images and its own step facts."""
    data.set_epoch(data.strongest_epoch())
    batch = next(iter(data.train_dataloader()))
    data.set_epoch(0)
    return [alone(batch.part(0, number))]


def alone(batch: Batch, index: int = 0) -> Batch:
    """The batch as a whole optimizer step, the one of number `index`."""
    counts = torch.tensor(batch.targets.counts, dtype=torch.int64)
    size = (batch.images.shape[-2], batch.images.shape[-1])
    return replace(batch, step=Step(counts, size, index))


def check_one_step(module: DetectionModule, batch: Batch, precision: Precision = nullcontext) -> str:
    """A forward and backward pass: finite losses, and a gradient for everything that trains.

    Raises:
        PreflightError: naming the loss, or the parameters.
    """
    trial = trial_copy(module)
    with precision():
        losses = trial.losses(batch.to(module.device))
    broken = [name for name, value in losses.items() if not value.isfinite().all()]
    if broken:
        raise PreflightError(
            f"losses {broken} are not finite in the first step; check the boxes and the weights"
        )
    total = torch.stack([value.sum() for value in losses.values()]).sum()
    total.backward()
    parameters = [(n, p) for n, p in trial.network.named_parameters() if p.requires_grad]
    idle = [n for n, p in parameters if p.grad is None]
    if idle:
        raise PreflightError(f"{len(idle)} parameters train but get no gradient: {', '.join(idle[:5])}")
    return (
        f"first step: loss {float(total.detach()):.2f}, all {len(parameters)} trained tensors get a gradient"
    )


def queries_advice(key: str, most_objects: int, queries: int, places: int | None = None) -> str:
    """What to do about an image with more objects than queries, whose number is the model's `key`.

    `places` of the feature maps are the most queries that the images can give, None where any number can.
    """
    enough = -(-most_objects // 50) * 50
    if places is not None and most_objects > places:
        more = f"up to {places} with --model.{key} {places}, and " if places > queries else ""
        return (
            f"an image has {most_objects} objects, {queries} queries find at most {queries}, and the feature maps "
            f"have {places} places to take queries from: give the model {more}more places with a larger "
            "--image-size, or cut such images into tiles"
        )
    return (
        f"an image has {most_objects} objects, {queries} queries find at most {queries}: give the model more with "
        f"--model.{key} {enough if places is None else min(enough, places)}, or cut such images into "
        "tiles"
    )


def check_queries(module: DetectionModule, batch: Batch, most_objects: int) -> str:
    """Compares the objects of the fullest image with the queries that could find them."""
    queries = module.num_queries(module.init_args)
    if most_objects > queries:
        limits = module.limits_of(module.init_args)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        places = None if limits.queries is None else limits.places(size)
        return "WARNING: " + queries_advice(module.queries_key, most_objects, queries, places)
    return f"{queries} queries for at most {most_objects} objects an image"


def check_dropped(dropped: int, total: int) -> str:
    """Reports how many objects the training transform drops.

    Raises:
        PreflightError: all of them.
    """
    if total and dropped == total:
        raise PreflightError(
            f"the training transform drops all {total} objects of {DROP_SAMPLE} images: boxes far smaller than a "
            "pixel after the resize, or in another unit than pixels"
        )
    share = dropped / total if total else 0.0
    return (
        f"the training transform leaves out {dropped} of {total} objects ({share:.0%}); random crops do, and a "
        "resize that leaves less than a pixel of them"
    )


def annotated_images(data: PreflightData, number: int) -> Batch:
    """Unaugmented images with objects, from the validation split; of images that are cut, tiles.

    Raises:
        PreflightError: the split has no image with objects.
    """
    for batch in data.val_dataloader():
        if batch.pieces is not None:
            batch = as_images(batch)
        if sum(batch.targets.counts):
            return batch.part(0, number)
    raise PreflightError("no validation image has an object; there is nothing to overfit")


def as_images(batch: Batch) -> Batch:
    """Tiles as images of their own; without the whole image, whose objects may be too small to be learned."""
    assert batch.pieces is not None
    first = batch.pieces[0]
    tiles = batch.part(1, len(batch)) if first.views > 1 and first.tile.size == first.size else batch
    return replace(tiles, image_ids=tuple(range(len(tiles))), pieces=None)


def check_overfit(
    module: DetectionModule, batch: Batch, progress: Callable[[int, float], None] | None = None,
    precision: Precision = nullcontext,
) -> str:  # fmt: skip
    """Trains a copy on a few images until it finds their objects.

    Raises:
        PreflightError: it does not; says which fault the detections show.
    """
    frozen = frozen_heads(module)
    if frozen:
        raise PreflightError(f"the class head does not train ({frozen[0]}): remove the rule that freezes it")
    trial = trial_copy(module)
    trial.ema = None
    optimizer = torch.optim.AdamW([p for p in trial.network.parameters() if p.requires_grad], lr=1e-3)
    batch = batch.to(module.device)
    first = last = math.nan
    score = 0.0
    for index in range(OVERFIT_STEPS):
        trial.network.train()
        with precision():
            losses = trial.losses(alone(batch, index))
        total = torch.stack([value.sum() for value in losses.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trial.network.parameters(), 1.0)
        optimizer.step()
        last = float(total.detach())
        first = last if index == 0 else first
        if (index + 1) % 20 == 0:
            use_batch_statistics_of(trial, batch)
            with precision():
                detections = trial.detect(batch)
            score = ap50(detections, batch)
            if progress is not None:
                progress(index + 1, score)
            if score >= OVERFIT_AP50:
                return f"overfits {len(batch)} images: AP50 {score:.2f} after {index + 1} steps"
    raise PreflightError(
        f"{len(batch)} images cannot be overfitted: AP50 {score:.2f} after {OVERFIT_STEPS} steps, loss {first:.1f} "
        f"-> {last:.1f}. {diagnose(detections, batch, module)}"
    )


def use_batch_statistics_of(module: DetectionModule, batch: Batch) -> None:
    """Sets the running statistics of BatchNorm to those of these images, for they follow slowly."""
    norms = [m for m in module.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    kept = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.network.train()
        module.losses(alone(batch))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def trial_copy(module: DetectionModule) -> DetectionModule:
    """A copy that is trained and then dropped."""
    trial = copy.deepcopy(module)
    trial.network.train()
    return trial


def frozen_heads(module: DetectionModule) -> list[str]:
    """Class tensors that do not train, the schedule's freezing rules applied."""
    # the rules switch off what they freeze: not the network's own parameters, but others over the same memory
    named = [(n, nn.Parameter(p.detach(), p.requires_grad)) for n, p in module.network.named_parameters()]
    module.schedule.groups(named)
    return [n for n, p in named if re.search(module.class_tensors, n) and not p.requires_grad]


def ap50(detections: list[Detections], batch: Batch) -> float:
    """AP50 on these images."""
    metric = CocoAP()
    metric.update(detections, batch)
    value = metric.compute()["AP50"]
    return 0.0 if math.isnan(value) else value


def diagnose(detections: list[Detections], batch: Batch, module: DetectionModule) -> str:
    """Which fault the detections of an overfitted network show against the annotations."""
    pairs = best_overlaps(detections, batch, lambda boxes: boxes)
    if pairs.overlap >= 0.5:
        shift, share = pairs.commonest_shift
        if shift and share > 0.5:
            return (
                f"Boxes are right but labels are off by {shift:+d} for {share:.0%} of the objects: training and "
                "evaluation use different label maps (an id counted from 1 as from 0?)"
            )
        return "Boxes are right but classes are not: do targets and annotations use one label map?"
    for what, wrong in WRONG_FORMATS.items():
        if best_overlaps(detections, batch, wrong).overlap >= 0.5:
            return f"Boxes would be right if the annotations were {what}: the box format is mistaken"
    return "Neither boxes nor classes are learned: is the backbone or the decoder frozen, or the learning rate 0?"


def as_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Boxes that are corners but were read as corner and size."""
    return torch.cat([boxes_xywh[:, :2], boxes_xywh[:, 2:] - boxes_xywh[:, :2]], 1)


def as_cxcywh(boxes_xywh: Tensor) -> Tensor:
    """Boxes whose first two numbers are the centre but were read as a corner."""
    return torch.cat([boxes_xywh[:, :2] - boxes_xywh[:, 2:] / 2, boxes_xywh[:, 2:]], 1)


def _as_centre_in_training(boxes_xywh: Tensor) -> Tensor:
    """Boxes as training sees them if it takes the corner for the centre."""
    return torch.cat([boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2, boxes_xywh[:, 2:]], 1)


WRONG_FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "(x0, y0, x1, y1) read as (x, y, w, h)": as_xyxy,
    "(centre x, centre y, w, h) read as (x, y, w, h)": as_cxcywh,
    "corners that training takes for centres": _as_centre_in_training,
}


@dataclass
class _Overlaps:
    overlap: float  # mean over objects of the best IoU with a confident detection
    shifts: list[int]  # label of that detection minus label of the object

    @property
    def commonest_shift(self) -> tuple[int, float]:
        """(shift, share of objects)."""
        if not self.shifts:
            return 0, 0.0
        shift, count = Counter(self.shifts).most_common(1)[0]
        return shift, count / len(self.shifts)


def best_overlaps(detections: list[Detections], batch: Batch, read: Callable[[Tensor], Tensor]) -> _Overlaps:
    """Compares each annotation, its box read in some way, with its best detection, whatever the class."""
    assert batch.annotations is not None
    overlaps, shifts, first = [], [], 0
    for detected, count in zip(detections, batch.annotations.counts, strict=True):
        boxes = read(batch.annotations.boxes_xywh[first : first + count]).float()
        labels = batch.annotations.labels[first : first + count]
        first += count
        confident = detected.scores > 0.3
        if not count or not confident.any():
            overlaps += [0.0] * count
            continue
        xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        iou, _ = iou_and_giou(xyxy[:, None], detected.boxes_xyxy[confident].cpu()[None])
        best, which = iou.max(1)
        overlaps += best.tolist()
        shifts += (detected.labels[confident].cpu()[which] - labels)[best > 0.5].tolist()
    return _Overlaps(sum(overlaps) / max(1, len(overlaps)), shifts)
