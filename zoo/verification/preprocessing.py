"""Resized images against official ones."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from zoo.contract.batch import collate
from zoo.contract.preprocess import InputContract, ResizeBackend
from zoo.verification.cases import Case, Comparison, compare, compare_exact
from zoo.verification.network import one_image


def stored_image(case: Case, prefix: str = "") -> Image.Image:
    """An image of the case, stored as pixels or as a PNG file."""
    if f"{prefix}input_uint8" in case:
        return Image.fromarray(np.asarray(case.arrays[f"{prefix}input_uint8"]))
    return Image.open(io.BytesIO(case.arrays[f"{prefix}input_png"].tobytes())).convert("RGB")


def compare_pixels(
    case: Case, prefix: str, contract: InputContract, size: list[int], rows: Tensor, columns: Tensor
) -> list[Comparison]:
    """The size exactly; sampled pixels within 1e-5 (PIL backend) and one grey level (fast backend).

    Args:
        case: with the image and its official `sample_pixels`.
        prefix: of the image's arrays.
        contract: the family's; pixels are normalised by it.
        size: official (h, w).
        rows: vertical positions of the sampled pixels.
        columns: horizontal ones.
    """
    image, official, results = stored_image(case, prefix), case[f"{prefix}sample_pixels"], []
    # of normalised pixels, relative to the largest value; and a little more, for rounding
    level = 1.001 / 255 / min(contract.std, default=1.0) / float(official.abs().max())
    tolerances: dict[ResizeBackend, float] = {"pil": 1e-5, "fast": level}
    for backend, tolerance in tolerances.items():
        pixels = contract.with_backend(backend).resize_image(image)
        sampled = contract.normalize(collate([one_image(pixels)])).images[0][:, rows][:, :, columns]
        results += [
            compare_exact(f"{prefix}size {backend}", list(pixels.shape[-2:]), size),
            compare(f"{prefix}pixels {backend}", sampled, official, tolerance),
        ]
    return results
