"""Evaluates a finished training: AP with its interval, curves, gallery, metrics.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from datamodules.base import DetectionDataModule
from datamodules.loading.pictures import read_image
from zoo.contract.batch import Annotations, Batch, Detections
from zoo.contract.labels import LabelMap
from zoo.contract.segments import PanopticSegmentation
from zoo.detector import DEFAULT_THRESHOLD
from zoo.evaluation.coco_ap import Evaluation, score_table, small_set_note
from zoo.evaluation.coco_evaluator import protocol
from zoo.evaluation.operating_point import best_f1
from zoo.evaluation.scores import ap_document
from zoo.pictures.detections import annotations_of, compare, curves, gallery
from zoo.pictures.painting import seen_rgb
from zoo.pictures.segments import compare_panoptic
from zoo.prediction.masks import PanopticRule, sizes_without_padding
from zoo.prediction.tiles.merge import CREDIBLE
from zoo.prediction.tiles.views import detect_in_tiles
from zoo.registry.manifest import METRICS, METRICS_OF_MASKS
from zoo.report.numbers import for_manifest
from zoo.runs.console import Console, counted, is_rank_zero
from zoo.runs.mask_report import mask_fields, mask_protocols, mask_scores, mask_table
from zoo.runs.reports.of_run import report_of_run
from zoo.runs.run_folder import METRICS_FILE, RECIPE_FILE
from zoo.runs.tracked import hardware
from zoo.runs.train import TrainedRun, saver_of
from zoo.storage.durable import write_json, written
from zoo.training.module import DetectionModule

PICTURES = 8


def report(run: TrainedRun, splits: Sequence[str], console: Console) -> dict[str, Any]:
    """Evaluates the best checkpoint, writes pictures and metrics.json, and prints where everything is."""
    loggers, run.trainer.loggers = run.trainer.loggers, []  # the run's curves hold the training alone
    run.trainer.limit_val_batches = run.trainer.limit_test_batches = 1.0  # the final scores are of all images
    scores, evaluations = {}, {}
    for name in splits:
        scores[name] = score_split(name, run.trainer, run.module, run.data, console)
        evaluations[name] = run.module.val_ap.evaluation()
        saver_of(run.trainer).obey_if_any_asked(run.trainer)
    run.stop.apart = True  # the first process does the rest
    run.trainer.loggers = loggers
    document: dict[str, Any] = {
        "run": run.tracker.run_id if run.tracker else None,
        "folder": str(run.folder),
        "checkpoint": str(run.checkpoint),
        "step": run.step,
        "seconds": round(run.seconds, 1),
        "stopped": run.stopped,
        "hardware": hardware(run.trainer),
        "recipe": str(run.folder / RECIPE_FILE),
        "data_digest": run.data.digest(),
        "label_map": run.data.label_map.to_dict(),
        "protocol": protocol(),
        **scores,
    }
    if not is_rank_zero():
        return document
    point = scores[splits[0]]["operating_point"]
    pictures = [
        write_curves(run, scores),
        write_gallery(run, DEFAULT_THRESHOLD if point is None else point["threshold"]),
    ]
    run.stop.obey_if_asked()
    pages = [report_of_run(run, n, evaluations[n], scores[n], document["hardware"]) for n in splits]
    # of val: test is not there to choose by
    document["thresholds"] = for_manifest(pages[0].numbers["threshold"], splits[0])
    path = write_metrics(document, run.folder)
    if run.tracker is not None:
        for written in pages:
            run.tracker.log_artifact(written.page)
        for picture in pictures:
            run.tracker.log_figure_file(picture)
        run.tracker.log_artifact(path)
        facts = measured(document, splits[-1]) | {"thresholds": document["thresholds"]}
        run.tracker.log_dict(facts, "measured.json")
        for name in splits:  # the curves end with the last weights, which need not be the best
            run.tracker.log_metrics(best_scores(name, scores[name]), run.step)
    console.say(f"best        {run.checkpoint}  (step {run.step})")
    console.say(f"curves      {pictures[0]}")
    console.say(f"gallery     {pictures[1]}")
    console.say(f"metrics     {path}")
    for name, written in zip(splits, pages, strict=True):
        console.say(f"report      {written.page}  ({name})")
        for sentence in written.numbers["why"][:2]:
            console.say(f"  {sentence}")
    return document


def score_split(
    name: str, trainer: Trainer, module: DetectionModule, data: DetectionDataModule, console: Console
) -> dict[str, Any]:
    """Scores of the module on `val` or `test`: printed as a table, returned as plain values."""
    run = trainer.validate if name == "val" else trainer.test
    console.say(f"evaluating  {name}: {counted(len(data.read().splits[name]), 'image')}")
    run(module, datamodule=data, verbose=False)
    evaluation = module.val_ap.evaluation()
    interval = evaluation.interval()
    masks = mask_scores(module, data.label_map)
    point = best_f1(evaluation)
    if is_rank_zero():
        console.say(f"\n{name}: {evaluation.num_images} images, 95 % interval by bootstrap over images")
        console.say(score_table(evaluation, data.label_map, interval))
        if point is not None:
            objects = sum(int(m.objects.sum()) for m in evaluation.matches.values())
            warned = point.warning(objects, evaluation.num_images)
            console.say("\n".join(["", point.line(), *([] if warned is None else [warned])]))
        for line in mask_table(masks):
            console.say(line)
        console.say()
    operating_point = None if point is None else dataclasses.asdict(point)
    return {**scores_of(evaluation, data.label_map, interval), "operating_point": operating_point, **masks}


def scores_of(
    evaluation: Evaluation, labels: LabelMap, interval: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    """The scores of one split as plain values; nan (nothing to score) becomes null."""
    return {
        **ap_document(evaluation, labels, interval, evaluation.scores),
        "note": small_set_note(interval["AP"], evaluation.num_images),
    }


def measured(document: dict[str, Any], split: str) -> dict[str, Any]:
    """The fields of a manifest's `measured` from a metrics document."""
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "interval")
    return {
        "step": document["step"],
        "split": split,
        "hardware": document["hardware"],
        "protocol": {**document["protocol"], **mask_protocols(document[split])},
        **{key: document[split][key] for key in keys},
        **mask_fields(document[split]),
    }


def best_scores(split: str, scores: dict[str, Any]) -> dict[str, float]:
    """Scores of the best checkpoint as metrics of the run, e.g. `best/val/AP`."""
    names = (*METRICS, *METRICS_OF_MASKS)
    return {f"best/{split}/{name}": scores[name] for name in names if scores.get(name) is not None}


def write_metrics(document: dict[str, Any], folder: Path) -> Path:
    """metrics.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS_FILE
    write_json(path, document, indent=2)
    return path


def write_curves(run: TrainedRun, scores: dict[str, dict[str, Any]]) -> Path:
    """Loss and scores over the steps, with the interval of the best AP."""
    path = run.folder / "curves.png"
    shown = {
        n: p
        for n, p in run.history.series.items()
        if n in ("train/loss", "val/AP", "val/AP50", "val/AP75", "val/segm_AP", "val/PQ")
    }
    bands = {f"val/{key}": tuple(band) for key, band in scores.get("val", {}).get("interval", {}).items()}
    known = {n: band for n, band in bands.items() if n in shown and None not in band}
    with written(path):
        curves(shown, path, bands=known, best=run.step)
    return path


def write_gallery(run: TrainedRun, threshold: float = DEFAULT_THRESHOLD) -> Path:
    """Predictions that score the threshold beside the ground truth, on the first images of the val split."""
    data, labels = run.data, run.data.label_map
    rows = []
    if data.input.tiles is not None:
        for image, found, known in _first_in_tiles(run.module, data, threshold):
            rows.append(compare(image, found, known, labels, threshold))
    for batch in _first_batches(data) if data.input.tiles is None else ():
        pictures = [original_shape(batch, i) for i in range(len(batch))]
        moved = batch.to(run.module.device)
        if batch.panoptic is not None and run.module.panoptic is not None:
            segments = _segments(run.module, run.module.panoptic, moved, labels)
            compared = zip(pictures, segments, batch.panoptic, strict=True)
            rows += [compare_panoptic(*each, labels) for each in compared]
        else:
            found_in = _detections(run.module, moved)
            rows += [
                compare(pictures[i], found_in[i], annotations_of(batch, i), labels, threshold)
                for i in range(len(batch))
            ]
    path = run.folder / "gallery.png"
    with written(path):
        gallery(rows[:PICTURES], columns=2).save(path)
    return path


def _first_in_tiles(
    module: DetectionModule, data: DetectionDataModule, threshold: float
) -> Iterator[tuple[Image.Image | Tensor, Detections, Annotations]]:
    """Whole images, what is found in all of their views, and what is there."""
    index, truth = data.read().splits["val"], data.truth("val")
    for row in range(min(PICTURES, len(index))):
        image = read_image(index, row, data.input)
        found, _ = detect_in_tiles(
            image, data.input, lambda batch: module.detect(batch.to(module.device)), at_once=1,
            lowest=CREDIBLE * threshold,
        )  # fmt: skip
        seen = seen_rgb(image) if isinstance(image, Tensor) else image
        yield seen, found, truth.evaluated(index, row, data.label_map).annotations


def original_shape(batch: Batch, index: int) -> Image.Image:
    """Image `index` of a uint8 batch, without its padding, stretched back to the original size."""
    inside = ~batch.padding[index]
    height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
    seen = seen_rgb(batch.images[index, :, :height, :width])
    pixels: Tensor = seen.permute(1, 2, 0).contiguous().cpu()
    h, w = batch.original_sizes[index]
    return Image.fromarray(pixels.numpy()).resize((w, h), Image.Resampling.BICUBIC)


def _first_batches(data: DetectionDataModule) -> Iterator[Batch]:
    seen = 0
    for batch in data.val_dataloader():
        yield batch
        seen += len(batch)
        if seen >= PICTURES:
            return


def _detections(module: DetectionModule, batch: Batch) -> list[Detections]:
    """On the CPU, with masks where the model predicts any."""
    if module.instances is None:
        found = module.detect(batch)
    else:
        predictions = module.predictions(batch)
        found = module.instances(predictions, sizes_without_padding(batch), batch.original_sizes)
    return [
        d._replace(scores=d.scores.cpu(), labels=d.labels.cpu(), boxes_xyxy=d.boxes_xyxy.cpu()) for d in found
    ]


def _segments(
    module: DetectionModule, rule: PanopticRule, batch: Batch, labels: LabelMap
) -> list[PanopticSegmentation]:
    """Segments at their true place: padding is cut off, also where the model's own rule keeps it."""
    exact = dataclasses.replace(rule, crop_padding=True)
    sizes = sizes_without_padding(batch)
    return exact(module.predictions(batch), sizes, batch.original_sizes, labels.things)
