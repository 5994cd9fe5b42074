"""The presets: random operations, then the resize that the input contract asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datamodules.transforms.color import Distort
from datamodules.transforms.draws import (
    draw_detr,
    draw_finetune,
    draw_flip,
    draw_rt_detr,
    draw_rt_detr_clean,
    draw_rt_detr_mosaic,
    draw_shapes,
)
from datamodules.transforms.geometry import Resize, VerticalFlip, shown
from datamodules.transforms.plan import Operation, Plan, size_after
from datamodules.transforms.targets import ImageTargets, large, unit_boxes
from zoo.contract.preprocess import InputContract, image_to_tensor

Photometric = Literal["worker", "device"]
DETR_LONGEST = 1333


class Transformed(NamedTuple):
    """An image as the network gets it, and its objects."""

    image: Tensor  # [3, h, w] uint8
    labels: Tensor  # [n] int64
    boxes: Tensor  # [n, 4] float32 cxcywh in [0, 1]
    masks: Tensor | None = None  # [n, h, w] bool
    photometric: Tensor | None = None  # [12], of the distortion that is left to the device
    ignored: Tensor | None = (
        None  # [r, 4] as `boxes`, neither object nor background; None where there are none
    )


class Draw(NamedTuple):
    """What a preset's draws may depend on."""

    input: InputContract
    seed: int
    size: tuple[int, int]  # (h, w) of the image
    boxes_xyxy: Tensor  # [n, 4]
    smallest: float  # side of an object

    @property
    def random(self) -> Random:
        """The random numbers of the image, from the first at each call."""
        return Random(self.seed)

    @property
    def longest(self) -> int:
        """Longest side that DETR's resize may give."""
        return self.input.size[1] if self.input.resize == "shortest" else DETR_LONGEST


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Random operations, and what sets them apart.

    Attributes:
        draw: the operations of an image.
        draws_side: their last one is the contract's resize, with a drawn side, where that resizes the shortest.
        smallest: a side of an object in pixels; the official DETR code keeps an object of any size.
        distorts: colours, in the published sense: the distortion can be left to the device.
        needs_boxes: its geometry depends on the objects.
        flips_both: it flips top to bottom without being asked.
        draw_mosaic: the operations of a mosaic; None if it takes none.
    """

    draw: Callable[[Draw], list[Operation]]
    draws_side: bool = False
    smallest: float = 1.0
    distorts: bool = False
    needs_boxes: bool = False
    flips_both: bool = False
    draw_mosaic: Callable[[Draw], list[Operation]] | None = None


PRESETS = {
    "rt_detr": Preset(
        draw=lambda d: draw_rt_detr(d.random, d.size, d.boxes_xyxy, d.smallest),
        draw_mosaic=lambda d: draw_rt_detr_mosaic(d.random, d.size, d.smallest),
        distorts=True,
        needs_boxes=True,
    ),
    "rt_detr_clean": Preset(draw=lambda d: draw_rt_detr_clean(d.random, d.size, d.smallest)),
    "flip": Preset(draw=lambda d: draw_flip(d.random, d.size)),
    "finetune": Preset(draw=lambda d: draw_finetune(d.random, d.size)),
    "shapes": Preset(draw=lambda d: draw_shapes(d.seed, d.size), flips_both=True),
    "none": Preset(draw=lambda d: []),
    "detr": Preset(draw=lambda d: draw_detr(d.random, d.size, d.longest), draws_side=True, smallest=0.0),
}


@dataclass(frozen=True)
class TrainTransform:
    """A preset: draws a plan for an image, and carries it out.

    Attributes:
        name: of the preset.
        input: the contract whose resize ends the plan.
        flip_both: also flip top to bottom.
        photometric: where the photometric distortion is done, see `build_transform`.
        min_box_side: in place of the preset's `smallest`.
    """

    name: str
    input: InputContract
    flip_both: bool = False
    photometric: Photometric = "worker"
    min_box_side: float | None = None

    @property
    def preset(self) -> Preset:
        """The preset of this name; only the name is pickled for a worker process."""
        return PRESETS[self.name]

    @property
    def smallest(self) -> float:
        """Objects with a side of fewer pixels are dropped."""
        return self.preset.smallest if self.min_box_side is None else self.min_box_side

    def operations(
        self, size: tuple[int, int], boxes_xyxy: Tensor, seed: int, mosaic: bool = False
    ) -> tuple[list[Operation], bool]:
        """What the preset draws for an image, and whether the contract's resize is among it."""
        draw = self.preset.draw_mosaic if mosaic else self.preset.draw
        assert draw is not None
        operations = draw(Draw(self.input, seed, size, boxes_xyxy, self.smallest))
        if self.flip_both and not self.preset.flips_both and Random(f"{seed}/flip_both").random() < 0.5:
            operations.append(VerticalFlip(size_after(operations, size)[0]))
        return operations, self.preset.draws_side and self.input.resize == "shortest"

    def draw(self, size: tuple[int, int], boxes_xyxy: Tensor, seed: int, mosaic: bool = False) -> Plan:
        """The plan for an image of (h, w) `size` with boxes [n, 4]; depends on its arguments alone, reads no pixel."""
        operations, resized = self.operations(size, boxes_xyxy, seed, mosaic)
        now = size_after(operations, size)
        if not resized:
            end = self.input.resized_size(*now)
            operations.append(Resize(now, end))
            now = end
        if self.photometric == "worker":
            return Plan(tuple(operations), now)
        (distort,) = (operation for operation in operations if isinstance(operation, Distort))
        operations.remove(distort)
        return Plan(tuple(operations), now, distort.distortion.vector(shown(operations, size)))

    def apply(self, image: Image.Image | Tensor, targets: ImageTargets, plan: Plan) -> Transformed:
        """Carries out the plan on an RGB image, PIL's or [3, h, w] uint8, and its targets."""
        if self.input.backend == "pil" and isinstance(image, Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        elif self.input.backend == "fast" and isinstance(image, Image.Image):
            image = image_to_tensor(image)
        kept = self.kept(targets, plan)
        boxes = unit_boxes(kept, plan.size)
        return Transformed(plan.pixels(image), kept.labels, boxes, kept.masks, plan.photometric)

    def kept(self, targets: ImageTargets, plan: Plan) -> ImageTargets:
        """The objects after the plan, boxes in pixels of the result; no image is needed."""
        return large(plan.targets(targets), self.smallest)

    def __call__(self, image: Image.Image | Tensor, targets: ImageTargets, seed: int) -> Transformed:
        """`draw` and `apply`."""
        size = (
            (image.height, image.width)
            if isinstance(image, Image.Image)
            else (image.shape[1], image.shape[2])
        )
        return self.apply(image, targets, self.draw(size, targets.boxes_xyxy, seed))

    def final_size(self, size: tuple[int, int], seed: int) -> tuple[int, int]:
        """(h, w) of what an image of (h, w) `size` becomes, known without reading or decoding it.

        Raises:
            ValueError: if it depends on the boxes: RT-DETR's crop with a contract that keeps the aspect.
        """
        if self.input.resize == "stretch":
            return self.input.size
        if self.preset.needs_boxes:
            raise ValueError(
                f"the final size of train_transform {self.name!r} with resize: {self.input.resize} depends on "
                "the objects, so it is not known beforehand; use resize: stretch, or do not bucket by size"
            )
        return self.draw(size, torch.zeros(0, 4), seed).size


@dataclass(frozen=True, kw_only=True)
class LaterTransform:
    """Another preset for the rest of the training.

    Attributes:
        from_epoch: the first that it is used in, counted from 0.
        name: of the preset.
    """

    from_epoch: int
    name: str


@dataclass(frozen=True)
class TransformSchedule:
    """The transform of each epoch: `first`, then the later ones, each from its epoch on."""

    first: TrainTransform
    later: tuple[tuple[int, TrainTransform], ...] = ()

    def at(self, epoch: int) -> TrainTransform:
        """The transform of an epoch."""
        return next((t for begin, t in reversed(self.later) if epoch >= begin), self.first)

    @property
    def all(self) -> tuple[TrainTransform, ...]:
        """Every transform of the training."""
        return (self.first, *(transform for _, transform in self.later))

    def between(self, first: int, end: int) -> set[TrainTransform]:
        """Those of the epochs from `first` to `end` - 1."""
        return {self.at(e) for e in (first, *(begin for begin, _ in self.later)) if first <= e < end}


def schedule_transforms(first: TrainTransform, later: Sequence[LaterTransform]) -> TransformSchedule:
    """`first` and the presets that follow it, with the same contract; they distort colours where it does.

    Raises:
        ValueError: an unknown preset, or epochs that do not rise.
    """
    epochs = [change.from_epoch for change in later]
    if sorted(set(epochs)) != epochs or min(epochs, default=1) < 1:
        raise ValueError(f"later_transforms begin at epochs {epochs}; these must be above 0 and rise")
    transforms = []
    for change in later:
        distorts = change.name in PRESETS and PRESETS[change.name].distorts
        photometric = first.photometric if distorts else "worker"
        built = build_transform(change.name, first.input, first.flip_both, photometric, first.min_box_side)
        transforms.append((change.from_epoch, built))
    return TransformSchedule(first, tuple(transforms))


def build_transform(
    name: str,
    input: InputContract,
    flip_both: bool = False,
    photometric: Photometric = "worker",
    min_box_side: float | None = None,
) -> TrainTransform:
    """The preset of that name.

    Args:
        name: `rt_detr`, `rt_detr_clean`, `detr`, `flip`, `finetune`, `shapes` or `none`.
        input: the contract whose resize ends every preset but `detr`, which draws the shorter side itself
            where the contract resizes the shortest side.
        flip_both: also flip top to bottom; for images that have no upright, as from a microscope.
        photometric: `worker` distorts colours before the geometry, as published; `device` leaves it to
            `InputContract.normalize`, behind the resize: less work for the workers, and slightly other
            pixels, see `zoo.contract.photometric.distort_batch`.
        min_box_side: pixels; an object with a smaller side is dropped, tested where the preset tests it; None for
            the preset's own, 1 in most.

    Raises:
        ValueError: if there is no such preset, naming those there are; or if nothing is there to leave
            to the device.
    """
    if name not in PRESETS:
        raise ValueError(f"train_transform {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    if photometric == "device" and not PRESETS[name].distorts:
        distorting = ", ".join(other for other, preset in PRESETS.items() if preset.distorts)
        raise ValueError(
            f"photometric: device has nothing to do with train_transform {name!r}, which distorts no colours; "
            f"take photometric: worker, or one of {distorting}"
        )
    if min_box_side is not None and not min_box_side >= 0:
        raise ValueError(f"min_box_side is {min_box_side} pixels; it must be 0 or more")
    return TrainTransform(name, input, flip_both, photometric, min_box_side)
