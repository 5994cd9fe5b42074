"""A detector and the file made of it, run on the same images."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.contract.batch import Batch, Predictions
from zoo.detector import Detector
from zoo.exporting.differences import (
    SCORED,
    DetectionDifference,
    RawDifference,
    detection_difference,
    masks_lost,
    raw_difference,
)
from zoo.exporting.graph import DetectionGraph, recorded
from zoo.exporting.limits import Limits
from zoo.exporting.segments import SegmentDifference, segment_difference
from zoo.registry.hugging_face.comparison import pixels_apart
from zoo.registry.weights import weights_digest
from zoo.runtimes.facts import RAW, ExportedFacts
from zoo.runtimes.module import ExportedNetwork, Session, inputs_of
from zoo.runtimes.transformers import TransformersSession

TIMED_RUNS = 5


@dataclass
class Comparison:
    """What the images have shown."""

    images: int = 0
    raw: list[RawDifference] = field(default_factory=list)  # of the images that are not tied
    tied: int = 0  # images, see `Limits.tied`
    detections: list[DetectionDifference] = field(default_factory=list)
    masks: float = 0.0  # largest difference of a mask's logit
    masks_lost: list[float] | None = None  # of each batch, where there are masks, see `masks_lost`
    pixels: float | None = (
        None  # largest difference of a pixel in grey levels, where the file brings its own resize
    )
    other_sizes: int = 0  # images to which that gives another size, see `pixels_apart`
    segments: list[SegmentDifference] = field(default_factory=list)  # of a model that predicts them
    worst: Batch | None = None  # the images with the largest difference of logits
    straight: Batch | None = None  # an image whose queries come in the same order in both

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the certificate."""
        alone = [words for found in self.detections for words in found.alone]
        return {
            "raw": {
                "logits": _largest(found.logits for found in self.raw),
                "boxes": _largest(found.boxes for found in self.raw),
                "images": self.images,
                "images_with_queries_in_another_order": sum(found.order for found in self.raw),
                "images_with_other_queries": self.tied,
            },
            "masks": self.masks,
            "masks_lost": None if self.masks_lost is None else statistics.fmean(self.masks_lost),
            "pixels": self.pixels,
            "images_of_another_size": self.other_sizes,
            "segments": SegmentDifference(*map(sum, zip(*self.segments, strict=True)))._asdict()
            if self.segments
            else None,
            "detections": {
                "scored_at_least": SCORED,
                "of_source": sum(found.source for found in self.detections),
                "of_file": sum(found.file for found in self.detections),
                "unpaired": len(alone),
                "first_unpaired": alone[:5],
                "score": _largest(found.score for found in self.detections),
                "pixels": _largest(found.pixels for found in self.detections),
            },
        }


def session_of(file: Detector) -> Session:
    """The session of a detector that is an exported file."""
    network = file.module.network
    assert isinstance(network, ExportedNetwork)
    return network.session


def fact_differences(source: Detector, facts: ExportedFacts, contract: Any) -> list[str]:
    """What a file says otherwise than the model that it was made of, one line each.

    Args:
        source: the model.
        facts: of the file.
        contract: that the model was exported with.
    """
    found = []
    digest = weights_digest(source.module.evaluation_network.state_dict())
    if digest != facts.source.weights_sha256:
        found.append(
            f"the file was made of weights {facts.source.weights_sha256[:16]}, {source.name} has {digest[:16]}"
        )
    labels = facts.labels()
    if labels.to_dict() != source.label_map.to_dict():
        first = source.label_map.difference(labels) or "the same names have other source ids or colours"
        found.append(f"label maps differ: {first}")
    mine, theirs = contract.to_dict(), facts.contract().to_dict()
    found += [
        f"input.{key} is {theirs.get(key)} in the file, not {mine.get(key)}"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ]
    block = source.module.model_block()
    if block["class_path"] != facts.model.class_path or block["init_args"] != facts.model.init_args:
        found.append("the file tells of a network with other arguments")
    return found


@torch.no_grad()
def compare(source: Detector, file: Detector, batches: Iterable[Batch], limits: Limits) -> Comparison:
    """Runs both on batches of uint8 images, as the data path gives them."""
    found, session = Comparison(), session_of(file)
    raw = session.inner(RAW)
    largest = -1.0
    for batch in batches:
        mine = source.module.predictions(batch)
        inputs = inputs_of(session.facts, batch)
        inside = raw(inputs)
        logits = mine.logits.float().numpy(), inside["logits"].astype(np.float32)
        boxes = mine.boxes.float().numpy(), inside["pred_boxes"].astype(np.float32)
        theirs = file.module.predictions(batch)
        pairs = zip(
            source.module.postprocess(mine, batch.original_sizes),
            file.module.postprocess(theirs, batch.original_sizes),
            strict=True,
        )
        rows = [
            raw_difference((logits[0][n], logits[1][n]), (boxes[0][n], boxes[1][n]), limits.logits)
            for n in range(len(batch))
        ]
        if mine.masks is not None and theirs.masks is not None:
            found.masks = max(found.masks, mask_difference(mine, theirs))
            found.masks_lost = [*(found.masks_lost or []), masks_lost(mine, theirs)]
        if source.module.panoptic is not None and theirs.masks is not None:
            found.segments.append(segment_difference(source.module, mine, theirs, batch))
        differences = [detection_difference(*pair) for pair in pairs]
        ties = [tied(*both, limits) for both in zip(rows, differences, strict=True)]
        found.raw += [row for row, tie in zip(rows, ties, strict=True) if not tie]
        found.tied += sum(ties)
        found.detections += differences
        found.images += len(batch)
        for n, row in enumerate(rows):
            if found.straight is None and not row.order:
                found.straight = batch.part(n, n + 1)
        if max(row.logits for row in rows) > largest:
            largest, found.worst = max(row.logits for row in rows), batch
    return found


def compare_resizes(
    found: Comparison, source: Detector, file: Detector, pictures: Iterable[Image.Image]
) -> None:
    """Notes how the file's own resize and normalisation differ from ours, if it brings one."""
    session = session_of(file)
    if not isinstance(session, TransformersSession):
        return
    found.pixels = 0.0
    for picture in pictures:
        apart = pixels_apart(picture, source.input, session.prepared(picture))
        found.other_sizes += apart is None
        found.pixels = max(found.pixels, apart or 0.0)


def tied(raw: RawDifference, detections: DetectionDifference, limits: Limits) -> bool:
    """Whether the queries of an image differ and its detections, of which there are some, do not."""
    differs = raw.logits > limits.logits or raw.boxes > limits.boxes
    same = detections.source > 0 and not detections.alone and detections.score <= limits.score
    return differs and same


def mask_difference(source: Predictions, file: Predictions) -> float:
    """Largest difference of a mask's logit over all queries; both have masks."""
    apart = (source.masks_of_all() - file.masks_of_all()).abs().max()
    return math.inf if apart.isnan() else float(apart)


def first_difference(
    source: Detector, file: Detector, contract: Any, batch: Batch, share: float
) -> str | None:
    """The first block whose output differs by more than a share of its largest value; None if none does.

    Blocks are compared by the names that the exporter gave their values in the file.
    """
    session = session_of(file)
    graph = DetectionGraph(source.module, contract).eval()
    padding = batch.padding if "padding" in session.facts.inputs else None
    with torch.no_grad(), recorded(graph) as blocks:
        graph(batch.images, torch.tensor(batch.original_sizes), padding)
    there = set(session.inner_names())
    names = [name for name in blocks if name in there]
    computed = session.inner(names)(inputs_of(session.facts, batch)) if names else {}
    for name in names:
        if name not in computed:
            continue
        mine, theirs = blocks[name].numpy(), computed[name].astype(np.float32)
        if mine.size != theirs.size and isinstance(session, TransformersSession):
            continue  # which runs it on other queries
        if mine.size != theirs.size:
            return f"{name.removeprefix('block.')}: {list(mine.shape)} became {list(theirs.shape)}"
        theirs = theirs.reshape(mine.shape)  # some have sides of one more
        apart, scale = np.abs(mine - theirs), float(np.abs(mine).max(initial=0.0))
        largest = float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
        if largest > share * max(scale, 1e-3):
            return (
                f"{name.removeprefix('block.')}: differs by {largest:.3g}, its largest value is {scale:.3g}"
            )
    return None


def milliseconds(detectors: Sequence[Detector], batch: Batch) -> list[float]:
    """Median time of each on one image, from levels to detections, in turns after a run that warms up."""
    times: list[list[float]] = [[] for _ in detectors]
    for run in range(TIMED_RUNS + 1):
        for detector, kept in zip(detectors, times, strict=True):
            begun = time.perf_counter()
            detector.module.detect(batch)
            if run:
                kept.append(1000 * (time.perf_counter() - begun))
    return [statistics.median(kept) for kept in times]


def _largest(values: Iterable[float]) -> float:
    return max(values, default=0.0)
