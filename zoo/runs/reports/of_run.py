"""The page that a training ends with, and what every report knows of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datamodules.base import DetectionDataModule
from datamodules.index import Fault
from zoo.evaluation.coco_ap import Evaluation
from zoo.report.given import Given, Training
from zoo.report.page import Written, write_report
from zoo.runs import recipes
from zoo.runs.image_check import image_faults_of, is_large, known_image_faults
from zoo.runs.quick_check import seen_as
from zoo.runs.tracked import registry_name
from zoo.tracking.lineage import tool_versions

if TYPE_CHECKING:
    from zoo.runs.train import TrainedRun

_NO_LIMIT = 1 << 20  # queries: not the data's fault
_NOTES = ("rare_class", "below_stride", "mixed_sizes", "class_not_evaluated")  # that explain a score


def report_of_run(
    run: TrainedRun, split: str, evaluation: Evaluation, scores: Mapping[str, Any], hardware: str
) -> Written:
    """Writes the page of a finished training into its folder: report.html, of the test split report.test.html."""
    facts = {
        "best checkpoint": f"step {run.step}",
        "ended by": run.stopped or "its schedule",
        "time": f"{run.seconds / 60:.1f} minutes",
        "hardware": hardware,
        **tool_versions(),
    }
    given = given_of(
        registry_name(run.recipe), split, str(run.recipe["data"]["init_args"].get("root", "")), evaluation, run.data,
        contract=run.data.input, faults=faults_of(run.data, look=False), masks=masks_in(scores),
        training=Training(run.history.series, recipes.dump(run.recipe), facts),
    )  # fmt: skip
    return write_report(given, run.folder, "report" if split == "val" else f"report.{split}")


def masks_in(scores: Mapping[str, Any]) -> dict[str, Any]:
    """AP of masks and panoptic quality, where there are some."""
    return {kind: scores[kind] for kind in ("segm", "panoptic") if kind in scores}


def given_of(
    name: str, split: str, place: str, evaluation: Evaluation, data: DetectionDataModule, **more: Any
) -> Given:
    """With the index of the split, and of what could be learned from."""
    splits = data.read().splits
    train = splits.get("train")
    learned = train if train is not None and len(train) else None
    return Given(name, split, place, evaluation, data.label_map, splits[split], train=learned, **more)


def faults_of(data: DetectionDataModule, look: bool) -> list[Fault]:
    """What the annotations show, and the pixels: of a small set that is looked at, else what is known already."""
    from datamodules.doctor import quick_faults
    from datamodules.doctor.statistics import measure, view_size
    from datamodules.index import by_severity

    read = data.read()
    classes = dict(zip(read.label_map.source_ids, read.label_map.names, strict=True))
    view = view_size(seen_as(data.input))
    faults = [*quick_faults(read.splits, classes, measure(read.splits, view, _NO_LIMIT), read.format)]
    if look and not any(index.store is not None for index in read.splits.values()) and not is_large(data):
        faults += image_faults_of(data)
    else:
        faults += known_image_faults(data)
    return sorted((f for f in faults if f.severity != "note" or f.kind in _NOTES), key=by_severity)
