"""The presets: random operations, then the resize that the input contract asks for."""

from __future__ import annotations

from collections.abc import Callable
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
    draw_shapes,
)
from datamodules.transforms.geometry import Resize, VerticalFlip, shown
from datamodules.transforms.plan import Operation, Plan
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


@dataclass(frozen=True)
class _Draw:
    """What a preset's draws may depend on."""

    input: InputContract
    seed: int
    size: tuple[int, int]  # (h, w) of the image
    boxes_xyxy: Tensor  # [n, 4]

    @property
    def random(self) -> Random:
        return Random(self.seed)


@dataclass(frozen=True)
class TrainTransform:
    """A preset: draws a plan for an image, and carries it out.

    Attributes:
        name: of the preset.
        input: the contract whose resize ends the plan.
        flip_both: also flip top to bottom.
        photometric: where the photometric distortion is done, see `build_transform`.
    """

    name: str
    input: InputContract
    flip_both: bool = False
    photometric: Photometric = "worker"

    def draw(self, size: tuple[int, int], boxes_xyxy: Tensor, seed: int) -> Plan:
        """The plan for an image of (h, w) `size` with boxes [n, 4]; depends on its arguments alone, reads no pixel."""
        operations = PRESETS[self.name](_Draw(self.input, seed, size, boxes_xyxy))
        now = size
        for operation in operations:
            now = operation.size_after(now)
        if self.flip_both and self.name != "shapes" and Random(f"{seed}/flip_both").random() < 0.5:
            operations.append(VerticalFlip(now[0]))
        if not self._resizes:
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
        # the official DETR code keeps an object of any size
        kept = large(plan.targets(targets), 0.0 if self.name == "detr" else 1.0)
        boxes = unit_boxes(kept, plan.size)
        return Transformed(plan.pixels(image), kept.labels, boxes, kept.masks, plan.photometric)

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
        if self.name in NEED_BOXES:
            raise ValueError(
                f"the final size of train_transform {self.name!r} with resize: {self.input.resize} depends on "
                "the objects, so it is not known beforehand; use resize: stretch, or do not bucket by size"
            )
        return self.draw(size, torch.zeros(0, 4), seed).size

    @property
    def _resizes(self) -> bool:
        return self.name == "detr" and self.input.resize == "shortest"


def build_transform(
    name: str, input: InputContract, flip_both: bool = False, photometric: Photometric = "worker"
) -> TrainTransform:
    """The preset of that name.

    Args:
        name: `rt_detr`, `detr`, `flip`, `finetune`, `shapes` or `none`.
        input: the contract whose resize ends every preset but `detr`, which draws the shorter side itself
            where the contract resizes the shortest side.
        flip_both: also flip top to bottom; for images that have no upright, as from a microscope.
        photometric: `worker` distorts colours before the geometry, as published; `device` leaves it to
            `InputContract.normalize`, behind the resize: less work for the workers, and slightly other
            pixels, see `zoo.contract.photometric.distort_batch`.

    Raises:
        ValueError: if there is no such preset, naming those there are; or if nothing is there to leave
            to the device.
    """
    if name not in PRESETS:
        raise ValueError(f"train_transform {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    if photometric == "device" and name not in DISTORTS:
        raise ValueError(
            f"photometric: device has nothing to do with train_transform {name!r}, which distorts no colours; "
            f"take photometric: worker, or one of {', '.join(sorted(DISTORTS))}"
        )
    return TrainTransform(name, input, flip_both, photometric)


def _rt_detr(draw: _Draw) -> list[Operation]:
    return draw_rt_detr(draw.random, draw.size, draw.boxes_xyxy)


def _detr(draw: _Draw) -> list[Operation]:
    longest = draw.input.size[1] if draw.input.resize == "shortest" else DETR_LONGEST
    return draw_detr(draw.random, draw.size, longest)


def _flip(draw: _Draw) -> list[Operation]:
    return draw_flip(draw.random, draw.size)


def _finetune(draw: _Draw) -> list[Operation]:
    return draw_finetune(draw.random, draw.size)


def _shapes(draw: _Draw) -> list[Operation]:
    return draw_shapes(draw.seed, draw.size)


def _none(draw: _Draw) -> list[Operation]:
    return []


PRESETS: dict[str, Callable[[_Draw], list[Operation]]] = {
    "rt_detr": _rt_detr,
    "flip": _flip,
    "finetune": _finetune,
    "shapes": _shapes,
    "none": _none,
    "detr": _detr,
}
DISTORTS = frozenset({"rt_detr"})  # presets with a photometric distortion in the published sense
NEED_BOXES = frozenset({"rt_detr"})  # presets whose geometry depends on the boxes
