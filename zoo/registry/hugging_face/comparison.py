"""A network of transformers and ours on the same images: how far their pixels, logits, boxes and masks are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zoo.contract.batch import Batch, unlabelled
from zoo.contract.preprocess import InputContract
from zoo.training.module import DetectionModule

LIMIT = 1e-4  # of the largest logit, of the image's side, of the largest mask logit
LARGEST_SHADE = 0.01  # grey levels by which the pixels of the same resize may differ


@dataclass(frozen=True)
class Difference:
    """Largest differences over all images.

    Attributes:
        pixels: in grey levels.
        logits, masks: as shares of the largest of all of them; masks are None of a network without.
        boxes: in sides of the image.
    """

    pixels: float
    logits: float
    boxes: float
    masks: float | None

    def above(self, limit: float) -> str | None:
        """The first part that differs by more than `limit`, in words; None if all agree."""
        if not self.pixels <= LARGEST_SHADE:
            return f"pixels differ by {self.pixels:.3g} grey levels"
        for name in ("logits", "boxes", "masks"):
            value = getattr(self, name)
            if value is not None and not value <= limit:
                return f"{name} differ by {value:.3g} of their scale"
        return None


@torch.no_grad()
def compare(ours: DetectionModule, theirs: Any, processor: Any, images: Sequence[Image.Image]) -> Difference:
    """Runs both on each image, each from the file's pixels on; networks see the pixels of our input contract.

    Args:
        ours: with label map and input contract, in evaluation mode.
        theirs: a model of transformers for detection or segmentation.
        processor: its image processor.
        images: RGB.
    """
    worst = {"pixels": 0.0, "logits": 0.0, "boxes": 0.0, "masks": 0.0}
    contract = ours.input
    assert contract is not None
    for image in images:
        batch = _normalised(image, contract)
        apart = pixels_apart(image, contract, processor(images=image, return_tensors="pt")["pixel_values"][0])
        worst["pixels"] = max(worst["pixels"], apart or 0.0)
        output = theirs(pixel_values=batch.images, pixel_mask=(~batch.padding).long())
        found = ours.predictions(batch)
        logits, boxes = found.logits[0], found.boxes[0]
        order = _order(
            torch.cat([logits, boxes], -1), torch.cat([output.logits[0], output.pred_boxes[0]], -1)
        )
        scale = float(output.logits.abs().max()) or 1.0
        worst["logits"] = max(worst["logits"], _largest(logits[order] - output.logits[0]) / scale)
        worst["boxes"] = max(worst["boxes"], _largest(boxes[order] - output.pred_boxes[0]))
        if found.masks is not None:
            masks = found.masks_of_all()[0]
            scale = float(output.pred_masks.abs().max()) or 1.0
            worst["masks"] = max(worst["masks"], _largest(masks[order] - output.pred_masks[0]) / scale)
    masks_differ = worst["masks"] if ours.instances is not None else None
    return Difference(worst["pixels"], worst["logits"], worst["boxes"], masks_differ)


def pixels_apart(image: Image.Image, contract: InputContract, seen: Tensor) -> float | None:
    """Largest difference of a pixel in grey levels; None where a long image has another size there.

    Where the longest side sets the scale, transformers' processor does not round the shorter one first, as DETR's
    authors do, and is some pixels off.

    Args:
        image: RGB.
        contract: of ours.
        seen: [3, h, w] what transformers' processor makes of it.
    """
    ours = _normalised(image, contract).images[0]
    if seen.shape == ours.shape:
        levels = 255 * torch.tensor(contract.std or (1.0,)).view(-1, 1, 1)
        return _largest((seen - ours) * levels)
    return None if _is_long(image, contract) else float("inf")


def _normalised(image: Image.Image, contract: InputContract) -> Batch:
    return contract.normalize(unlabelled([contract.resize_image(image)], [(image.height, image.width)]))


def _is_long(image: Image.Image, contract: InputContract) -> bool:
    """Whether the longest side sets the scale."""
    shortest, longest = contract.size
    return contract.resize == "shortest" and max(image.size) * shortest > min(image.size) * longest


def _largest(difference: Tensor) -> float:
    """NaN counts as infinite."""
    value = float(difference.abs().max())
    return value if value == value else float("inf")


def _order(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which of our queries is each of theirs: selected ones whose scores are equal to rounding swap places."""
    same = torch.arange(len(ours))
    if _largest(ours - theirs) <= LIMIT or not bool(
        torch.isfinite(ours).all() & torch.isfinite(theirs).all()
    ):
        return same
    rows, columns = linear_sum_assignment(torch.cdist(theirs, ours, p=1).numpy())
    return torch.from_numpy(np.asarray(columns))[np.argsort(rows)]


def drawn_image(width: int = 160, height: int = 120) -> Image.Image:
    """The same picture everywhere: smooth colours and edges, so that no two places look alike."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    for _ in range(6):
        x, y = int(generator.integers(0, width - 20)), int(generator.integers(0, height - 20))
        pixels[y : y + 20, x : x + 20] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels)


def library() -> Any:
    """transformers, which the extra `export` brings.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"models of transformers need that library ({error}): pip install 'detr-zoo[export]'"
        ) from error
    return transformers


def model_of(
    architecture: str, config: Any, state: Mapping[str, Tensor] | None = None, folder: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """A model of transformers in float32 and evaluation mode, and what its loading tells of missing keys.

    Args:
        architecture: name of its class.
        config: with which it is built, if not from a folder.
        state: its weights under the names of any version.
        folder: of `save_pretrained`, read strictly from disk.
    """
    with quiet():
        kind = getattr(library(), architecture)
        model, told = kind.from_pretrained(
            folder, config=config, state_dict=None if state is None else dict(state), dtype=torch.float32,
            output_loading_info=True, local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    return model.eval(), told


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No tables and bars of transformers: what is wrong is told by what follows."""
    logging = library().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
