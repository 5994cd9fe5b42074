"""The operations of a recipe, one after the other, around its own `train_transform`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from datamodules.augmentations import own
from datamodules.augmentations.block import TRAIN_TRANSFORM, Entry, parse
from datamodules.augmentations.libraries import AugmentationError, carried_out, check
from datamodules.transforms.geometry import Resize
from datamodules.transforms.plan import Operation, Plan, size_after
from datamodules.transforms.presets import Draw, TrainTransform, Transformed
from datamodules.transforms.targets import ImageTargets, large, unit_boxes
from zoo.contract.preprocess import image_to_tensor
from zoo.contract.seeds import derived_seed

# is told the entry, and how many objects it got and has left
Watch = Callable[[Entry, int, int], None]


@dataclass(frozen=True)
class Augmentations:
    """A recipe's list; its pickle is small, and the libraries' objects are made where they are used.

    Attributes:
        entries: in their order; one of them is `train_transform`.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, block: object) -> Augmentations:
        """The list of a recipe, every operation made once to see that it can be.

        Raises:
            ValueError: naming the entry and what is wrong with it.
        """
        entries = parse(block)
        for entry in entries:
            if entry.library:
                check(entry)
        return cls(entries)

    def __call__(
        self,
        transform: TrainTransform,
        image: Image.Image | Tensor,
        targets: ImageTargets,
        seed: int,
        mosaic: bool = False,
        watch: Watch | None = None,
    ) -> Transformed:
        """What the network gets; depends on the arguments alone.

        Args:
            transform: of the epoch.
            image: RGB, PIL's or [3, h, w] uint8.
            targets: boxes in its pixels.
            seed: of the image in its epoch.
            mosaic: whether the image is one.
            watch: sees every operation.

        Raises:
            AugmentationError: an operation fails, or does what no training can use.
        """
        pixels, targets = self.pixels(transform, image, targets, seed, mosaic, watch)
        boxes = unit_boxes(targets, (pixels.shape[1], pixels.shape[2]))
        return Transformed(pixels, targets.labels, boxes, targets.masks)

    def pixels(
        self,
        transform: TrainTransform,
        image: Image.Image | Tensor,
        targets: ImageTargets,
        seed: int,
        mosaic: bool = False,
        watch: Watch | None = None,
    ) -> tuple[Tensor, ImageTargets]:
        """As `__call__`, with boxes in pixels of the result."""
        now = image_to_tensor(image) if isinstance(image, Image.Image) else image
        resized = False
        for number, entry in enumerate(self.entries):
            size, before = (now.shape[1], now.shape[2]), len(targets.labels)
            if entry.library:
                now, targets = carried_out(entry, now, targets, derived_seed(seed, number))
            else:
                # the preset draws what it draws without a list
                own_seed = seed if entry.name == TRAIN_TRANSFORM else derived_seed(seed, number)
                operations, done = _drawn(entry, transform, size, targets, own_seed, mosaic)
                now, targets = _carried_out(transform, operations, now, targets)
                resized = resized or done
                if done:
                    size = (now.shape[1], now.shape[2])
            if resized and (now.shape[1], now.shape[2]) != size:
                raise AugmentationError(
                    f"{entry} changes the size of the image from {size[0]}x{size[1]} to {now.shape[1]}x{now.shape[2]} "
                    f"(height x width) after train_transform {transform.name!r} has resized it; put it before "
                    f"{TRAIN_TRANSFORM!r} in the list"
                )
            if watch is not None:
                watch(entry, before, len(targets.labels))
        if not resized:
            size = (now.shape[1], now.shape[2])
            now, targets = _carried_out(
                transform, [Resize(size, transform.input.resized_size(*size))], now, targets
            )
        return now, large(targets, transform.smallest)


def _drawn(
    entry: Entry, transform: TrainTransform, size: tuple[int, int], targets: ImageTargets, seed: int, mosaic: bool
) -> tuple[list[Operation], bool]:  # fmt: skip
    """Our operations, and whether the contract's resize is among them."""
    if entry.name == TRAIN_TRANSFORM:
        return transform.operations(size, targets.boxes_xyxy, seed, mosaic)
    given = Draw(transform.input, seed, size, targets.boxes_xyxy, transform.smallest)
    return own.draw(entry.name, given), False


def _carried_out(
    transform: TrainTransform, operations: list[Operation], image: Tensor, targets: ImageTargets
) -> tuple[Tensor, ImageTargets]:
    """By the backend of the contract."""
    plan = Plan(tuple(operations), size_after(operations, (image.shape[1], image.shape[2])))
    given = Image.fromarray(image.permute(1, 2, 0).numpy()) if transform.input.backend == "pil" else image
    return plan.pixels(given), plan.targets(targets)
