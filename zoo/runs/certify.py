"""Runs a model and the file that was made of it on the same images, for the certificate."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from PIL import Image

from datamodules.base import DetectionDataModule
from datamodules.loading.pictures import read_image
from zoo.contract.batch import Batch, Sample, collate
from zoo.contract.preprocess import InputContract
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
from zoo.exporting.limits import LIMITS
from zoo.prediction.image_input import read_rgb
from zoo.prediction.masks import sizes_without_padding
from zoo.runs.bench_arguments import made_up_images
from zoo.runs.console import Console
from zoo.runs.evaluate import folder_data, refuse_other_labels
from zoo.runs.mask_report import mask_scores
from zoo.runs.subject import Subject
from zoo.runs.timing import processor_name
from zoo.runtimes.facts import ExportedFacts
from zoo.runtimes.module import files_of, inputs_of

COMPARED = 16  # images, of which raw outputs and detections are compared
AT_ONCE = 2  # of them: batches of one are not enough, large ones of DETR's images take gigabytes
CALIBRATED = 64  # images of which int8 learns ranges

Scored = tuple[Evaluation, dict[str, Any]]  # of boxes, and scores of masks


def certified(
    source: Detector, path: Path, contract: InputContract, data: str | Path | None, console: Console,
    kept: Sequence[str] = (), of_source: Callable[[], Scored] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The certificate of a file; names the first block that differs where it failed.

    Args:
        source: that the file was made of.
        path: of the file.
        contract: of the file's input.
        data: on whose val split both are compared; None: on made-up images, without AP.
        console: for the user.
        kept: parts of the network in float32 where the rest is not.
        of_source: `evaluated` of the source, for several files of one; None evaluates it here.
    """
    file = Detector.from_exported(path)
    facts = session_of(file).facts
    limits = LIMITS[facts.precision]
    if data is None:
        images = {"kind": f"{COMPARED} made up, large spots under noise; AP needs --data", "data": None}
        batches, pictures = made_up_batches(contract), iter(made_up_pictures()[:COMPARED])
    else:
        loaded = folder_data(data, contract, source.module)
        pictures = itertools.islice(pictures_of(loaded), COMPARED)
        batches = itertools.islice(parts(loaded), -(-COMPARED // AT_ONCE))
        images = {"kind": f"the first of the val split of {data}", "data": loaded.digest()}
    differences = fact_differences(source, facts, contract)
    compared = compare(source, file, batches, limits)
    compare_resizes(compared, source, file, pictures)
    assert compared.worst is not None
    times = milliseconds((source, file), compared.worst.part(0, 1))
    # what differs already would be evaluated as another model
    scores = None
    if data is not None and not differences:
        console.say(f"evaluate    {source.name} and the file on {data}")
        mine = of_source() if of_source is not None else evaluated(source, data, contract)
        scores = scores_of(mine, evaluated(file, data, contract))
    document = certificate(
        files_of(path), facts, file.runtime, differences, compared, images, scores, limits,
        dict(zip(("pytorch", file.runtime), times, strict=True)),
        f"{processor_name()}, {torch.get_num_threads()} threads", kept,
    )  # fmt: skip
    if facts.precision == "fp32" or not document["passed"]:
        for batch in (compared.straight, compared.worst):
            if batch is not None and document["first_difference"] is None:
                document["first_difference"] = first_difference(source, file, contract, batch, limits.block)
            if document["passed"] and document["first_difference"]:
                document["failures"].append(f"a block inside differs: {document['first_difference']}")
                document["passed"] = False
            if document["passed"]:
                break  # where queries came in another order, blocks differ and nothing is wrong
    return document


def made_up_batches(contract: InputContract) -> Iterator[Batch]:
    """Images that need no data, as the data path gives them; some stand upright."""
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    samples = (
        Sample(contract.resize_image(picture), *nothing, number, (picture.height, picture.width))
        for number, picture in enumerate(made_up_pictures())
    )
    for _ in range(0, COMPARED, AT_ONCE):
        yield collate([*itertools.islice(samples, AT_ONCE)])


@functools.cache
def made_up_pictures() -> tuple[Image.Image, ...]:
    """Images that need no data; some stand upright."""
    pictures = [
        picture for encoded in made_up_images() if isinstance(picture := read_rgb(encoded), Image.Image)
    ]
    upright = Image.Transpose.ROTATE_90
    return tuple(p.transpose(upright) if number % 4 == 3 else p for number, p in enumerate(pictures))


def pictures_of(data: DetectionDataModule) -> Iterator[Image.Image]:
    """The images of a val split before any resize."""
    index = data.read().splits["val"]
    for row in range(len(index)):
        picture = read_image(index, row, "pil")
        assert isinstance(picture, Image.Image)
        yield picture


def parts(data: DetectionDataModule) -> Iterator[Batch]:
    """The batches of a val split in parts of a few images."""
    data.setup("validate")
    for batch in data.val_dataloader():
        for first in range(0, len(batch), AT_ONCE):
            yield batch.part(first, min(first + AT_ONCE, len(batch)))


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


def evaluated(detector: Detector, data: str | Path, contract: InputContract) -> Scored:
    """The evaluation of a val split, and scores of masks."""
    module = detector.module
    loaded = folder_data(data, contract, module)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                      enable_checkpointing=False, use_distributed_sampler=False, devices=1)  # fmt: skip
    refuse_other_labels(Subject(detector.name, module, loaded, trainer))
    trainer.validate(module, datamodule=loaded, verbose=False)
    return module.val_ap.evaluation(), mask_scores(module, loaded.label_map)


def calibration(
    detector: Detector, contract: InputContract, data: str | Path | None, facts: ExportedFacts
) -> list[dict[str, Any]]:
    """Inputs of single images from which ranges and sensitivities are learned."""
    batches = (
        made_up_batches(contract) if data is None else parts(folder_data(data, contract, detector.module))
    )
    singles = (batch.part(image, image + 1) for batch in batches for image in range(len(batch)))
    return [inputs_of(facts, cropped(batch)) for batch in itertools.islice(singles, CALIBRATED)]


def cropped(batch: Batch) -> Batch:
    """A batch of one without the padding that others of its batch asked for."""
    height, width = sizes_without_padding(batch)[0]
    return replace(
        batch,
        images=batch.images[..., :height, :width].contiguous(),
        padding=batch.padding[:, :height, :width],
    )
