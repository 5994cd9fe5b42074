"""Why an AP is 0: looks at detections, annotations, losses and weights after a validation that found next to nothing.

Every cause needs evidence that a network which has only not learned yet does not give: boxes that lie on the objects
after all, in another format, of another image, under another label; nothing that trains; a loss that rises.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.contract.boxes import iou_and_giou
from zoo.evaluation.coco_evaluator import Collected
from zoo.training.freezing import trained_parts
from zoo.training.module import DetectionModule
from zoo.training.position import ends_step
from zoo.training.preflight import DROP_SAMPLE, WRONG_FORMATS, as_cxcywh, as_xyxy, frozen_heads

NEAR_ZERO = 0.01  # AP below which there is something to explain
LOW = 0.3  # AP below which a mistake is named, if there is one: the second best label gives exchanged classes some AP
LIES_ON = 0.5  # mean IoU of objects with the best detections of their image: they were found
BETTER = 0.2  # by so much another reading of the boxes must be better than theirs
MOST_IMAGES = 64
SHARE, PAIRS = 0.6, 10  # of pairs that have to agree on a label, and how many pairs there must be
DROPPED = 0.9  # share of objects
FLAT, RISES = 0.02, 1.2  # relative change of the loss, and by what factor
ENOUGH_STEPS = 50  # a loss that stands still for so long is no beginning


class Data(Protocol):
    """What is asked of a datamodule."""

    def dropped_object_share(self, num_images: int) -> tuple[int, int]:
        """See `datamodules.base`."""
        ...


@dataclass(frozen=True)
class Case:
    """What a diagnosis looks at.

    Attributes:
        module: as it was validated.
        found: all detections and annotations of the validation.
        losses: of steps, in their order.
        steps: optimizer steps so far.
        data: of the training.
        rate: highest learning rate of the schedule.
    """

    module: DetectionModule
    found: Collected
    losses: Sequence[float]
    steps: int
    data: Data
    rate: float

    @cached_property
    def pictures(self) -> list[_Picture]:
        """Images with objects and detections, the first `MOST_IMAGES`."""
        return _images(self.found)

    @cached_property
    def overlap(self) -> float:
        """See `_overlap`, of the boxes as they are."""
        return _overlap(self.pictures)


def diagnose(case: Case) -> str:
    """The first cause for which there is evidence, and what to do; else that it is too early."""
    return mistake(case) or frozen_as_drawn(case) or new_head(case) or loss(case)


def mistake(case: Case) -> str | None:
    """The first cause that no more steps would mend."""
    causes = (frozen_head, dropped_objects, no_detections, other_images, box_format, labels)
    return next((told for told in (cause(case) for cause in causes) if told is not None), None)


def frozen_head(case: Case) -> str | None:
    """Class tensors that do not train."""
    frozen = frozen_heads(case.module)
    if not frozen:
        return None
    return f"the class head does not train ({frozen[0]}): remove the rule of model.schedule.rules that freezes it"


def dropped_objects(case: Case) -> str | None:
    """Transforms that leave next to no objects to learn from."""
    dropped, total = case.data.dropped_object_share(DROP_SAMPLE)
    if not total or dropped < DROPPED * total:
        return None
    return (
        f"the training transform drops {dropped} of {total} objects: boxes far smaller than a pixel after the resize, "
        "or in another unit than pixels; look at training_images.png"
    )


def no_detections(case: Case) -> str | None:
    """Nothing reaches the evaluator."""
    if len(case.found.detections) or not len(case.found.annotations):
        return None
    return (
        "not one detection reaches the evaluator: all scores lie below a threshold; AP needs low scores too"
    )


def other_images(case: Case) -> str | None:
    """Detections that lie on the objects of another image."""
    pictures = case.pictures
    if len(pictures) < 3 or case.overlap >= LIES_ON:
        return None
    iou = _iou(torch.cat([p.boxes for p in pictures]), torch.cat([p.objects for p in pictures]))
    objects = [len(p.objects) for p in pictures]
    partners = []
    for row, mine in enumerate(iou.split([len(p.boxes) for p in pictures])):
        scores = torch.stack([best.mean() for best in mine.max(0).values.split(objects)])
        best = int(scores.argmax())
        if scores[best] >= LIES_ON and best != row:
            partners.append(best)
    if len(set(partners)) < SHARE * len(pictures):
        return None
    return (
        f"the detections of {len(partners)} of {len(pictures)} images lie on the objects of another image: the ids of "
        "images are mixed up between detections and annotations"
    )


def box_format(case: Case) -> str | None:
    """Boxes that would be right if one side were read in another way."""
    if not case.pictures or case.overlap >= LIES_ON:
        return None

    def right(**read: Read) -> bool:
        return _overlap(case.pictures, **read) >= max(LIES_ON, case.overlap + BETTER)

    for what, read in WRONG_FORMATS.items():
        if right(objects=_of_objects(read)):
            return f"boxes would be right if the annotations were {what}: the box format is mistaken"
    if right(objects=_shares_in_pixels):
        return "boxes would be right if the annotations were pixels: they are shares of the image"
    for what, read_boxes in WRONG_DETECTIONS.items():
        if right(boxes=read_boxes):
            return f"boxes would be right if the detections were not {what}: the box format is mistaken"
    return None


def labels(case: Case) -> str | None:
    """Boxes that are right under labels that are another's."""
    pairs = [pair for picture in case.pictures for pair in picture.pairs()]
    if len(pairs) < PAIRS:
        return None
    meant = _dominant(pairs)
    wrong = {truth: found for truth, found in meant.items() if truth != found}
    if len(wrong) < 2 or len(set(meant.values())) < len(meant):
        return None  # one label for everything is that of a beginning
    shift, count = Counter(found - truth for truth, found in pairs).most_common(1)[0]
    by_class = sum(found - truth == shift for truth, found in wrong.items())
    if shift and count >= SHARE * len(pairs) and by_class >= 0.8 * len(wrong):
        return (
            f"boxes are right but labels are off by {shift:+d} for {count / len(pairs):.0%} of the objects: weights, "
            "training and evaluation use different label maps (an id counted from 1 as from 0?)"
        )
    names = case.module.label_map.name_of_head if case.module.label_map is not None else {}
    shown = [f"{names.get(a, a)} is found as {names.get(b, b)}" for a, b in sorted(wrong.items())[:3]]
    return (
        f"boxes are right but classes are permuted ({', '.join(shown)}): weights and data name their classes in "
        "another order; start with --init_from.head by_class_name"
    )


def frozen_as_drawn(case: Case) -> str | None:
    """Parts that were drawn at random and do not train."""
    module = case.module
    if not module.from_nothing:
        return None
    backbone = module.init_args.get("backbone")
    loaded = isinstance(backbone, Mapping) and backbone.get("weights", "random") != "random"
    frozen = [n for n in trained_parts(module.network)[1] if not (loaded and n.startswith("backbone"))]
    if not frozen:
        return None
    were, do = ("was", "does") if len(frozen) == 1 else ("were", "do")
    return (
        f"{', '.join(frozen)} {were} drawn at random and {do} not train: the rest learns little from that; leave "
        "--freeze out, or start from weights"
    )


def new_head(case: Case) -> str | None:
    """A class head that was not among the weights, whose boxes are right."""
    if case.module.new_head is None or case.overlap < LIES_ON:
        return None
    return (
        f"boxes are right, and the class head was not loaded ({case.module.new_head}): it learns from nothing; if the "
        "weights know these classes, start with --init_from.head by_class_name, or keep where they are the same"
    )


def loss(case: Case) -> str:
    """What the loss says of learning rate and frozen parts; or that it is too early."""
    finite = [value for value in case.losses if math.isfinite(value)]
    quarter = max(1, len(finite) // 4)
    if len(finite) < 2:
        return f"too early to tell: {case.steps} steps"
    first, last = (float(np.mean(part)) for part in (finite[:quarter], finite[-quarter:]))
    change = f"{first:.4g} -> {last:.4g} in {case.steps} steps"
    batch = case.module.schedule.global_batch_size
    if last > RISES * first:
        return (
            f"the loss rises ({change}): the learning rate {case.rate:.3g} is too high for a batch of {batch}; try "
            f"--lr {case.rate / 10:.1g}"
        )
    if last > (1 - FLAT) * first and case.steps >= ENOUGH_STEPS:
        trained, frozen = trained_parts(case.module.network)
        held = (
            f", and {', '.join(frozen)} do not train"
            if frozen and sum(frozen.values()) > sum(trained.values())
            else ""
        )
        return (
            f"the loss stands still ({change}): the learning rate {case.rate:.3g} is too low for a batch of {batch}"
            f"{held}; try --lr {case.rate * 10:.1g}" + (", or freeze less" if held else "")
        )
    if last > (1 - FLAT) * first:
        return f"too early to tell: loss {change}"
    known = ", and no other cause shows" if case.steps >= ENOUGH_STEPS else ""
    return f"too early: the loss falls ({change}){known}; let it go on"


# -- pictures -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """Objects of an image, no crowds, and its best detections: twice as many boxes, whatever their class."""

    size: Tensor  # [2] width, height
    boxes: Tensor  # [K, 4] xywh
    labels: Tensor  # [K]
    objects: Tensor  # [N, 4] xywh
    truth: Tensor  # [N]

    def pairs(self) -> list[tuple[int, int]]:
        """(label of an object, label of the best detection on it), where there is one."""
        best, which = _iou(self.boxes, self.objects).max(0)
        found = self.labels[which]
        return [(int(t), int(f)) for t, f, b in zip(self.truth, found, best, strict=True) if b >= LIES_ON]


def _images(found: Collected) -> list[_Picture]:
    pictures = []
    scores = found.detections[:, 4]
    for row in range(len(found.images)):
        objects = np.flatnonzero((found.annotation_image == row) & (found.annotation_labels[:, 1] == 0))
        mine = np.flatnonzero(found.detection_image == row)
        if not len(objects) or not len(mine):
            continue
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        _, first = np.unique(
            found.detections[mine, :4], axis=0, return_index=True
        )  # a query may have several
        best = mine[np.sort(first)][: 2 * len(objects)]
        height, width = found.images[row, 1:]
        pictures.append(
            _Picture(
                torch.tensor([width, height], dtype=torch.float64),
                torch.from_numpy(found.detections[best, :4]),
                torch.from_numpy(found.detection_labels[best]),
                torch.from_numpy(found.annotations[objects, :4]),
                torch.from_numpy(found.annotation_labels[objects, 0]),
            )
        )
        if len(pictures) == MOST_IMAGES:
            break
    return pictures


def _iou(boxes: Tensor, objects: Tensor) -> Tensor:
    """[K, N] of boxes xywh."""
    first, second = (torch.cat([b[:, :2], b[:, :2] + b[:, 2:].clamp(min=0)], 1) for b in (boxes, objects))
    return iou_and_giou(first[:, None], second[None])[0].nan_to_num(0.0)


Read = Callable[[_Picture], Tensor]


def _overlap(
    pictures: Sequence[_Picture], boxes: Read = lambda p: p.boxes, objects: Read = lambda p: p.objects
) -> float:
    """Mean over all objects of the IoU with the best detection of their image."""
    best = [_iou(boxes(p), objects(p)).max(0).values for p in pictures]
    return float(torch.cat(best).mean()) if best else 0.0


def _dominant(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """{label of objects: label under which most of them are found}, of those for which there is one."""
    meant = {}
    for truth in {truth for truth, _ in pairs}:
        found = Counter(f for t, f in pairs if t == truth)
        label, count = found.most_common(1)[0]
        total = sum(found.values())
        if count >= max(
            SHARE * total, total / 2 + math.sqrt(total)
        ):  # two labels at random: two deviations above
            meant[truth] = label
    return meant


def _of_objects(read: Callable[[Tensor], Tensor]) -> Read:
    return lambda picture: read(picture.objects)


def _shares_in_pixels(picture: _Picture) -> Tensor:
    """Objects whose numbers are all below 1, in pixels; others as they are."""
    shares = bool((picture.objects <= 1).all())
    return picture.objects * picture.size.repeat(2) if shares else picture.objects


WRONG_DETECTIONS: Mapping[str, Read] = {
    "shares of the image": lambda p: p.boxes * p.size.repeat(2),
    "multiplied by the size of the image once too often": lambda p: p.boxes / p.size.repeat(2),
    "(x0, y0, x1, y1) read as (x, y, w, h)": lambda p: as_xyxy(p.boxes),
    "(centre x, centre y, w, h) read as (x, y, w, h)": lambda p: as_cxcywh(p.boxes),
    "with y and x in each other's place": lambda p: p.boxes[:, [1, 0, 3, 2]],
    "scaled with height and width in each other's place": lambda p: (
        p.boxes / p.size.flip(0).repeat(2) * p.size.repeat(2)
    ),
}


# -- when ---------------------------------------------------------------------------------------------


class ZeroAP(Callback):
    """Says why, after the first, second, fourth ... validation of a training whose AP is 0, or low by mistake.

    Args:
        say: writes one line for the user.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._validations = 0
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """A resumed run has its losses too."""
        return {"validations": self._validations, "losses": [float(value) for value in self._losses]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._validations = state_dict["validations"]
        self._losses = [torch.tensor(value) for value in state_dict["losses"]]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the losses of the first steps and of every tenth, without waiting for them."""
        step = trainer.global_step
        if trainer.is_global_zero and ends_step(trainer, batch_idx) and (step <= 20 or step % 10 == 0):
            value = trainer.callback_metrics.get("train/loss")
            if value is not None and len(self._losses) < 1000:
                self._losses.append(value.detach().clone())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Diagnoses, on rank zero."""
        late = (
            trainer.state.fn == "validate" and self._validations == 0
        )  # of a training that was too short for one
        if trainer.sanity_checking or not (trainer.state.fn == "fit" or late) or not trainer.optimizers:
            return
        self._validations += 1
        ap = float(trainer.callback_metrics.get("val/AP", math.nan))
        if not (ap < LOW and trainer.is_global_zero and bin(self._validations).count("1") == 1):
            return
        assert isinstance(pl_module, DetectionModule)
        rates = [float(group["initial_lr"]) for group in trainer.optimizers[0].param_groups]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found = pl_module.val_ap.evaluation().data
        losses = [float(value) for value in self._losses]
        case = Case(pl_module, found, losses, trainer.global_step, data, max(rates))
        told = diagnose(case) if ap < NEAR_ZERO else mistake(case)
        if told is not None:
            self.say(f"AP is {'0' if ap < NEAR_ZERO else f'{ap:.2f}':<5} {told}")
