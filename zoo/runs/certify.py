"""Runs a model and the file that was made of it on the same images, for the certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.contract.batch import Batch
from zoo.detector import Detector
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.scores import or_null
from zoo.exporting.certificate import certificate, paired_scores
from zoo.exporting.compare import (
    compare,
    compare_resizes,
    fact_differences,
    first_difference,
    milliseconds,
    session_of,
)
from zoo.exporting.differences import Agreement, masks_lost
from zoo.exporting.limits import LIMITS
from zoo.runs.console import Console, counted
from zoo.runs.evaluate import refuse_other_labels, silent_trainer
from zoo.runs.export_images import ExportImages
from zoo.runs.mask_report import mask_scores
from zoo.runs.subject import Subject
from zoo.runs.timing import processor_name
from zoo.runtimes.module import files_of

Scored = tuple[Evaluation, dict[str, Any]]  # of boxes, and scores of masks


def certified(
    source: Detector, path: Path, images: ExportImages, console: Console, kept: Sequence[str] = (),
    of_source: Callable[[], Scored] | None = None, full: Path | None = None, opened: Detector | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The certificate of a file; names the first block that differs where it failed.

    Args:
        source: that the file was made of.
        path: of the file.
        images: on which both are compared; scored too where they are not made up.
        console: for the user.
        kept: parts of the network in float32 where the rest is not.
        of_source: `evaluated` of the source, for several files of one; None evaluates it here.
        full: the same graph in float32 for the same runtime, whose time is told too.
        opened: the file as a detector; None opens it.
    """
    file = opened or Detector.from_exported(path)
    facts = session_of(file).facts
    limits = LIMITS[facts.precision]
    differences = fact_differences(source, facts, images.contract)
    compared = compare(source, file, images.compared(), limits)
    compare_resizes(compared, source, file, images.pictures())
    assert compared.worst is not None
    timed = {"pytorch": source, file.runtime: file}
    if full is not None:
        timed[f"{file.runtime} fp32"] = Detector.from_exported(full)
    times = milliseconds(list(timed.values()), compared.worst.part(0, 1))
    # what differs already would be evaluated as another model
    scores = None
    if images.data is not None and not differences:
        console.say(f"evaluate    {source.name} and the file")
        mine = of_source() if of_source is not None else evaluated(source, images)
        scores = scores_of(mine, evaluated(file, images))
    document = certificate(
        files_of(path), facts, file.runtime, differences, compared, images.facts, scores, limits,
        dict(zip(timed, times, strict=True)),
        f"{processor_name()}, {counted(torch.get_num_threads(), 'thread')}", kept,
    )  # fmt: skip
    if facts.precision == "fp32" or not document["passed"]:
        for batch in (compared.straight, compared.worst):
            if batch is not None and document["first_difference"] is None:
                document["first_difference"] = first_difference(
                    source, file, images.contract, batch, limits.block
                )
            if document["passed"] and document["first_difference"]:
                document["failures"].append(f"a block inside differs: {document['first_difference']}")
                document["passed"] = False
            if document["passed"]:
                break  # where queries came in another order, blocks differ and nothing is wrong
    return document


def scores_of(source: Scored, file: Scored) -> dict[str, Any]:
    """AP of both on the same images with the interval of the difference; of masks and segments where there are some."""
    (mine, more), (theirs, others) = source, file
    document = paired_scores(mine, theirs)
    for kind, name in (("segm", "AP"), ("panoptic", "PQ")):
        if kind in more:
            values = [found[kind][name] for found in (more, others)]
            apart = None if None in values else or_null(values[1] - values[0])
            document[f"{kind} {name}"] = {"source": values[0], "file": values[1], "difference": apart}
    return document


def evaluated(detector: Detector, images: ExportImages) -> Scored:
    """The evaluation of the images that are scored, and scores of masks; there are data."""
    module = detector.module
    assert images.data is not None
    trainer = silent_trainer("cpu")
    refuse_other_labels(Subject(detector.name, module, images.data, trainer))
    trainer.validate(module, datamodule=images.data, verbose=False)
    return module.val_ap.evaluation(), mask_scores(module, images.data.label_map)


def detections_lost(source: Detector, batches: Sequence[Batch]) -> Callable[[Path], float]:
    """A function of a file: the share of the source's detections that it loses, see `Agreement`, and of its masks.

    Args:
        source: that files are made of.
        batches: of uint8 images, as the data path gives them.
    """
    of_source = [source.module.predictions(batch) for batch in batches]

    @torch.no_grad()
    def lost(path: Path) -> float:
        file, agreement, masks = Detector.from_exported(path), Agreement(), 0.0
        for batch, mine in zip(batches, of_source, strict=True):
            theirs = file.module.predictions(batch)
            found = (
                one.module.postprocess(raw, batch.original_sizes)
                for one, raw in ((source, mine), (file, theirs))
            )
            for pair in zip(*found, strict=True):
                agreement.add(*pair)
            masks += masks_lost(mine, theirs) / len(batches)
        return agreement.lost + masks

    return lost
