"""`zoo evaluate`: why the AP of a model is what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.base import DetectionDataModule
from datamodules.custom import CustomDataModule
from zoo.contract.preprocess import InputContract
from zoo.evaluation.coco_ap import Evaluation, score_table
from zoo.report.given import Given
from zoo.report.page import write_report
from zoo.runs.console import Console, counted
from zoo.runs.evaluate import Split, from_model, refuse_other_labels, say_tiles
from zoo.runs.input_sizes import input_sizes
from zoo.runs.lightning import quiet
from zoo.runs.report import score_split
from zoo.runs.reports.of_run import faults_of, given_of, masks_in
from zoo.runs.reports.results_file import collected, read_results
from zoo.runs.reports.scores_folder import scores_folder

if TYPE_CHECKING:
    from zoo.detector import Detector, GivenTiles


def evaluate_with_report(
    model: str | Path | Detector | None,
    data: str | Path,
    *,
    split: Split = "val",
    predictions: Path | None = None,
    precision: float | None = None,
    tiles: GivenTiles | None = None,
    tile_overlap: float | None = None,
    skip_broken: bool = False,
    output: Path | None = None,
    registry: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Scores a model, or a file of its detections, and writes the page that says why.

    Args:
        model: a detector, a name in the registry, a checkpoint, a run folder or an exported file.
        data: folder or address.
        split: `val` or `test`.
        predictions: COCO results, instead of a model: image ids and category ids are those of the data.
        precision: wanted of the thresholds; None: the best F1.
        tiles: as of `Detector.predict`: images are cut, and scored whole.
        tile_overlap: likewise.
        skip_broken: images and objects at fault are left out; else they are errors.
        output: folder of report.html and report.json; None: mlruns/scores/MODEL.SPLIT.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        console: prints scores and the reasons; None: on stdout.

    Returns:
        what report.json holds.

    Raises:
        ValueError, OSError: model, data or predictions cannot be read or do not fit.
    """
    console = console or Console()
    if (model is None) == (predictions is None):
        what = "evaluate what?" if model is None else "a model and --predictions, not both:"
        raise ValueError(f"{what} zoo evaluate MODEL --data DIR, or --predictions results.json --data DIR")
    refuse_split(split)
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"--precision-at {precision}: a precision is above 0 and at most 1")
    if predictions is not None:
        if tiles is not None or tile_overlap is not None:
            raise ValueError(
                "--tiles says how a model looks at images; --predictions are made already: leave it out"
            )
        given = of_predictions(predictions, data, split, precision, console, skip_broken=skip_broken)
    else:
        assert model is not None
        given = of_model(
            model, data, split, precision, registry, console, tiles=tiles, tile_overlap=tile_overlap,
            skip_broken=skip_broken,
        )  # fmt: skip
    if output is None:
        output = scores_folder([given.model], split)
    written = write_report(given, output)
    if precision is not None:
        console.say(_at(precision, written.numbers["threshold"]["chosen"]))
    for sentence in written.numbers["why"]:
        console.say(sentence)
    console.say(f"report      {written.page}")
    console.say(f"numbers     {written.file}")
    return written.numbers


def _at(precision: float, chosen: Mapping[str, float] | None) -> str:
    """The threshold that was wanted, and that the reasons speak of."""
    if chosen is None:
        return f"no threshold has the precision {precision:g}: what follows is at the usual threshold"
    return (
        f"precision {precision:g} from threshold {chosen['threshold']:.3f} on, with recall {chosen['recall']:.3f}; "
        "what follows is at this threshold"
    )


def refuse_split(split: str) -> None:
    """Raises ValueError for another split than those that a model can be scored on."""
    if split not in ("val", "test"):
        raise ValueError(f"--split {split}: it is val or test")


def of_model(
    model: str | Path | Detector, data: str | Path, split: Split, precision: float | None,
    registry: str | Path | None, console: Console, look: bool = True, tiles: GivenTiles | None = None,
    tile_overlap: float | None = None, skip_broken: bool = False,
) -> Given:  # fmt: skip
    """Runs the model over the split."""
    quiet()
    subject = from_model(model, data, registry, tiles, tile_overlap, skip_broken)
    refuse_other_labels(subject)
    refuse_other_split(subject.data, split)
    limits = subject.module.limits_of(subject.module.init_args)
    limits.refuse_any(
        input_sizes(subject.data, {}, (split,)),
        subject.name,
        "use larger images, or a model with fewer queries",
    )
    say_tiles(subject.data, split, console)
    scores = score_split(split, subject.trainer, subject.module, subject.data, console)
    return given_of(
        subject.name, split, str(data), subject.module.val_ap.evaluation(), subject.data,
        contract=subject.data.input, precision=precision, faults=faults_of(subject.data, look),
        masks=masks_in(scores),
    )  # fmt: skip


def of_predictions(
    file: Path, data: str | Path, split: Split, precision: float | None, console: Console, look: bool = True,
    skip_broken: bool = False,
) -> Given:  # fmt: skip
    """Scores a COCO results file on the annotations of the split; no image is read but those of the page."""
    module = CustomDataModule(
        root=str(data), input=InputContract(resize="stretch", size=(640, 640)), train_transform="none",
        batch_size=1, eval_batch_size=1, num_workers=0, seed=0, needs_train=False, skip_broken=skip_broken,
    )  # fmt: skip
    module.setup("validate")
    refuse_other_split(module, split)
    index = module.read().splits[split]
    evaluation = Evaluation(collected(read_results(file), index, module.label_map, file))
    console.say(f"\n{split}: {evaluation.num_images} images, 95 % interval by bootstrap over images")
    console.say(score_table(evaluation, module.label_map, evaluation.interval()))
    console.say()
    return given_of(
        file.stem,
        split,
        str(data),
        evaluation,
        module,
        precision=precision,
        faults=faults_of(module, look),
    )


def refuse_other_split(data: DetectionDataModule, split: str) -> None:
    """Raises ValueError where the data set has no such split, naming those it has."""
    splits = data.read().splits
    if not len(splits.get(split, ())):
        there = ", ".join(
            f"{name} ({counted(len(index), 'image')})" for name, index in splits.items() if len(index)
        )
        raise ValueError(
            f"the data set has no {split} split; it has {there or 'no image at all'}: choose with --split"
        )
