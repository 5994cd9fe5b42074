"""Operations of torchvision and albumentations on an image [3, h, w] uint8 and its targets, at a seed.

Both draw from global or own generators; here they start at the seed of the image and leave no trace, so that what comes
out depends on the image and the seed alone, in whichever process.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from datamodules.augmentations.allowed import ALBUMENTATIONS
from datamodules.augmentations.block import Entry
from datamodules.augmentations.classes import made, reason
from datamodules.augmentations.seeded import seeded
from datamodules.transforms.targets import ImageTargets, solid

Result = tuple[Tensor, ImageTargets]
_Operation = Callable[[Tensor, ImageTargets, int], Result]


class AugmentationError(ValueError):
    """An operation does what no training can use; the message is one line."""


def carried_out(entry: Entry, image: Tensor, targets: ImageTargets, seed: int) -> Result:
    """The image and its targets after the operation.

    Boxes are clipped to the image. Objects are dropped whose box has no area left, and those whose mask it has emptied.

    Raises:
        AugmentationError: the operation fails on this image, or gives something else than 8-bit pixels of as many
            channels and a box for each object.
    """
    size = f"{image.shape[1]}x{image.shape[2]} (height x width)"
    try:
        with seeded(seed), _one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out, found = _operation(entry)(image, targets, seed)
    except AugmentationError:
        raise
    except Exception as error:  # whatever a library raises at an image that it cannot take
        raise AugmentationError(f"{entry} fails on an image of {size}: {reason(error)}") from error
    _refuse(entry, image, out, found)
    return out, _remaining(found, targets, (out.shape[1], out.shape[2]))


def check(entry: Entry) -> None:
    """Raises ValueError, in one line, if the installed library cannot make the operation."""
    _operation(entry)


@lru_cache(maxsize=256)
def _operation(entry: Entry) -> _Operation:
    operation = made(entry)
    return (
        _albumentations(entry, operation)
        if entry.library == ALBUMENTATIONS
        else _torchvision(entry, operation)
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker: sums of floats may depend on the number of threads."""
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


def _torchvision(entry: Entry, operation: Any) -> _Operation:
    options = dict(entry.arguments).get("sampler_options")
    if entry.name == "RandomIoUCrop" and options is not None and not any(float(o) >= 1 for o in options):
        # it draws until a window is good enough, for ever where none is
        raise ValueError(
            f"{entry}: sampler_options need a value of 1, which leaves the image whole, or it may never end"
        )
    needs_boxes = "RandomIoUCrop" in _names(entry)

    def carry_out(image: Tensor, targets: ImageTargets, seed: int) -> Result:
        if needs_boxes and not len(targets.labels):
            return image, targets  # no window is good enough for an image without objects
        given: dict[str, Any] = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(
                targets.boxes_xyxy, format="XYXY", canvas_size=image.shape[-2:]
            ),
        }
        if targets.masks is not None:
            given["masks"] = tv_tensors.Mask(targets.masks)
        out = operation(given)
        masks = None if targets.masks is None else out["masks"].as_subclass(Tensor).bool()
        boxes = out["boxes"].as_subclass(Tensor).reshape(-1, 4)
        return out["image"].as_subclass(Tensor), ImageTargets(targets.labels, boxes, masks)

    return carry_out


def _names(entry: Entry) -> list[str]:
    inner = (
        v for _, value in entry.arguments if isinstance(value, tuple) for v in value if isinstance(v, Entry)
    )
    return [entry.name, *(name for child in inner for name in _names(child))]


def _is_of_pixels(operation: Any) -> bool:
    import albumentations

    inner = getattr(operation, "transforms", None)
    return (
        all(map(_is_of_pixels, inner)) if inner else isinstance(operation, albumentations.ImageOnlyTransform)
    )


def _albumentations(entry: Entry, operation: Any) -> _Operation:
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # its threads do not survive the fork of a worker, and workers share the cores
    of_pixels = _is_of_pixels(operation)
    boxed = albumentations.BboxParams(
        "pascal_voc", label_fields=["numbers"], clip=True, filter_invalid_bboxes=True
    )
    compose = albumentations.Compose([operation], bbox_params=None if of_pixels else boxed)

    def carry_out(image: Tensor, targets: ImageTargets, seed: int) -> Result:
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        if of_pixels:
            return _planes(entry, compose(image=pixels)["image"]), targets
        given = {
            "image": pixels,
            "bboxes": targets.boxes_xyxy.numpy(),
            "numbers": np.arange(len(targets.labels)),
        }
        masks = targets.masks
        if masks is not None and len(masks):
            given["masks"] = masks.numpy().astype(np.uint8)
        out = compose(**given)
        rows = torch.as_tensor(np.asarray(out["numbers"]).astype(np.int64).reshape(-1))
        boxes = torch.as_tensor(np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4))
        planes = _planes(entry, out["image"])
        if masks is not None:
            moved = (
                np.stack(list(out["masks"])) if "masks" in out else np.zeros((0, *planes.shape[1:]), np.uint8)
            )
            masks = torch.from_numpy(np.ascontiguousarray(moved)).bool()[rows]
        return planes, ImageTargets(targets.labels[rows], boxes, masks)

    return carry_out


def _planes(entry: Entry, pixels: Any) -> Tensor:
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3:
        raise AugmentationError(f"{entry} gives {type(pixels).__name__}, not the pixels of an image")
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _refuse(entry: Entry, before: Tensor, image: Tensor, targets: ImageTargets) -> None:
    if image.dtype != torch.uint8:
        raise AugmentationError(
            f"{entry} gives pixels of {str(image.dtype).removeprefix('torch.')}, and the network's input is made of "
            "8-bit ones; it is normalised by input.mean and input.std: leave the operation out"
        )
    if image.ndim != 3 or image.shape[0] != before.shape[0] or not image.numel():
        raise AugmentationError(
            f"{entry} makes {tuple(image.shape)} of an image of {tuple(before.shape)} (channels, height, width); the "
            "channels must stay and pixels must be left"
        )
    if len(targets.boxes_xyxy) != len(targets.labels):
        raise AugmentationError(
            f"{entry} gives {len(targets.boxes_xyxy)} boxes for {len(targets.labels)} objects"
        )
    if not bool(torch.isfinite(targets.boxes_xyxy).all()):
        raise AugmentationError(f"{entry} gives boxes that are not finite; change its arguments")
    if targets.masks is not None and targets.masks.shape[1:] != image.shape[1:]:
        raise AugmentationError(f"{entry} does not move the masks with the image; leave it out")


def _remaining(found: ImageTargets, before: ImageTargets, size: tuple[int, int]) -> ImageTargets:
    if found is before:
        return before
    boxes = found.boxes_xyxy.numpy().astype(np.float32)
    np.clip(boxes, 0, np.array([size[1], size[0]] * 2, dtype=np.float32), out=boxes)
    kept = solid(found._replace(boxes_xyxy=torch.from_numpy(boxes)))
    if kept.masks is None:
        return kept
    return kept.only(kept.masks.flatten(1).any(1).numpy())
