"""Batches of stored images, and the outputs of every layer against official ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zoo.contract.batch import Batch, Outputs, Predictions, Sample, collate
from zoo.verification.cases import Case, Comparison, compare
from zoo.verification.criterion import whole_step


def one_image(pixels: Tensor, image_id: int = 0) -> Sample:
    """[3, h, w] without objects."""
    height, width = pixels.shape[-2:]
    return Sample(pixels, torch.empty(0, dtype=torch.int64), torch.empty(0, 4), image_id, (height, width))


def padded_batch(case: Case, dtype: torch.dtype, prefix: str = "") -> Batch:
    """The case's images, zero-padded to the largest height and width, and targets if there are."""
    samples: list[Sample] = []
    while (name := f"{prefix}image/{len(samples)}") in case:
        samples.append(one_image(case.images(name).to(dtype), len(samples)))
    batch = collate(samples)
    targets = case.targets(prefix) if f"{prefix}targets/count" in case else batch.targets
    return replace(batch, targets=targets, step=whole_step(targets))


def official_layers(outputs: Outputs) -> dict[str, Predictions]:
    """{key prefix: predictions} of the last layer, the others, and the proposals."""
    layers = {"": outputs.final}
    for supervised in outputs.supervised:
        logits, boxes = supervised.predictions.logits, supervised.predictions.boxes
        if supervised.name == "encoder":
            layers["enc_outputs/"] = Predictions(logits[0], boxes[0])
        else:
            others = range(len(logits) - 1)
            layers |= {f"aux_{i}/": Predictions(logits[i], boxes[i]) for i in others}
    return layers


def compare_layers(
    case: Case,
    precision: str,
    layers: Mapping[str, Predictions],
    single: tuple[float, float] = (1e-3, 1e-4),
) -> list[Comparison]:
    """Logits and boxes, with the tolerances of both in float32."""
    logits, boxes = single if precision == "f32" else (1e-9, 1e-9)
    results = []
    for name, predictions in layers.items():
        key = f"{precision}/{name}pred"
        results.append(compare(f"{key}_logits", predictions.logits, case[f"{key}_logits"], logits))
        results.append(compare(f"{key}_boxes", predictions.boxes, case[f"{key}_boxes"], boxes))
    return results
