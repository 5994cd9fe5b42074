"""`zoo validate` and `zoo test`: AP of a recipe's model, a checkpoint or a registered model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer

from datamodules.base import DetectionDataModule
from datamodules.custom import CustomDataModule
from datamodules.shards.reader import place_of
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector, GivenTiles
from zoo.evaluation.coco_ap import format_score
from zoo.evaluation.coco_evaluator import protocol
from zoo.evaluation.scores import interval_in, or_nan
from zoo.runs import mask_data, recipes
from zoo.runs.console import Console, Silent, counted, quoted
from zoo.runs.input_sizes import input_sizes
from zoo.runs.lightning import quiet
from zoo.runs.report import score_split
from zoo.runs.subject import Subject, from_recipe, load
from zoo.runs.timing import Laps
from zoo.runs.tracked import hardware
from zoo.training.module import DetectionModule

TIMED_IMAGES = 16
EVALUATION_BATCH = 16
Split = Literal["val", "test"]


def evaluate(
    model: str | Path | Detector,
    data: str | Path | None = None,
    *,
    split: Split = "val",
    recipe: recipes.Given | None = None,
    overrides: Mapping[str, Any] | None = None,
    tiles: GivenTiles | None = None,
    tile_overlap: float | None = None,
    skip_broken: bool = False,
    registry: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Scores of a model on a data set: AP by the rules of COCO, its interval, the AP of each class.

    >>> import zoo
    >>> scores = zoo.evaluate(zoo.Run.open("run").detector(), "shapes", console=zoo.Silent())
    >>> scores["images"], 0 <= scores["AP"] <= 1
    (2, True)

    Args:
        model: a detector, a name in the registry, a checkpoint or a run folder; with `recipe` its weights.
        data: folder or address; prepared as the model was trained. None with `recipe`: the recipe's.
        split: `val` or `test`.
        recipe: of weights without a recipe of their own, such as an official file.
        overrides: dotted keys of the recipe and their values.
        tiles: as of `Detector.predict`: images are cut, and scored whole.
        tile_overlap: likewise.
        skip_broken: images and objects at fault are left out; else they are errors.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        console: prints the table; None: on stdout.

    Raises:
        ValueError, OSError: the model or the data cannot be read, or their classes differ.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}; it is val or test")
    document = evaluation(
        split, model=model, recipe=recipe, overrides=overrides, data=data, decoder_layers=None,
        registry=registry, console=console or Console(), tiles=tiles, tile_overlap=tile_overlap,
        skip_broken=skip_broken,
    )  # fmt: skip
    scores: dict[str, Any] = document[split]
    return scores


def evaluation(
    split: Split,
    *,
    model: str | Path | Detector | None,
    recipe: recipes.Given | None,
    overrides: Mapping[str, Any] | None,
    data: Path | str | None,
    decoder_layers: str | None,
    registry: str | Path | None,
    console: Console,
    tiles: GivenTiles | None = None,
    tile_overlap: float | None = None,
    skip_broken: bool = False,
) -> dict[str, Any]:
    """The content of metrics.json: the scores, and the model, data and protocol they belong to.

    Raises:
        ValueError: neither a model nor a recipe was given, or head and data do not fit.
    """
    quiet()
    if recipe:
        if isinstance(model, Detector):
            raise ValueError("a detector needs no recipe; leave one of them out")
        if tiles is not None or tile_overlap is not None:
            raise ValueError(
                "--tiles with a recipe: give them as its key, --data.input.tiles '{size: [640, 640]}'"
            )
        left_out = {"data.skip_broken": True} if skip_broken else {}
        subject = from_recipe(recipe, {**(overrides or {}), **left_out}, model, data, registry)
    elif model:
        if overrides:
            raise ValueError("dotted overrides change a recipe; give one with --config")
        subject = from_model(model, data, registry, tiles, tile_overlap, skip_broken)
    else:
        action = "validate" if split == "val" else "test"
        raise ValueError(
            f"nothing to evaluate: zoo {action} MODEL --data FOLDER, or zoo {action} --config RECIPE"
        )
    refuse_other_labels(subject)
    sizes = input_sizes(subject.data, {}, (split,))
    limits = subject.module.limits_of(subject.module.init_args)
    limits.refuse_any(sizes, subject.name, "use larger images, or a model with fewer queries")
    document: dict[str, Any] = {
        "model": subject.name,
        "hardware": hardware(subject.trainer),
        "data_digest": subject.data.digest(),
        "label_map": subject.data.label_map.to_dict(),
        "protocol": protocol(),
    }
    cut = subject.data.input.tiles
    if cut is not None:
        document["tiles"] = {"size": list(cut.size), "overlap": cut.overlap}
    say_tiles(subject.data, split, console)
    if decoder_layers is None:
        document[split] = score_split(split, subject.trainer, subject.module, subject.data, console)
    else:
        document["decoder_layers"] = by_layers(
            parse_layers(decoder_layers, subject.module), subject, split, console
        )
    return document


def say_tiles(data: DetectionDataModule, split: str, console: Console) -> None:
    """How images are cut, if they are, and how many views that makes."""
    tiles, index = data.input.tiles, data.read().splits.get(split)
    if tiles is None or index is None or not len(index):
        return
    views = sum(tiles.num_views(*index.size(row)) for row in range(len(index)))
    uncut = " (no image is larger than a tile)" if views == len(index) else ""
    console.say(
        f"tiles       {tiles}, and the whole image: {views:,} views of {counted(len(index), 'image')}{uncut}; scores "
        "are of whole images"
    )


def from_model(
    model: str | Path | Detector, folder: Path | str | None, registry: str | Path | None,
    tiles: GivenTiles | None = None, tile_overlap: float | None = None, skip_broken: bool = False,
) -> Subject:  # fmt: skip
    """A trained model on a folder of images, prepared as the model's input contract says."""
    if folder is None:
        name = model.name if isinstance(model, Detector) else model
        raise ValueError(f"on which images? zoo validate {quoted(name)} --data FOLDER")
    detector = model if isinstance(model, Detector) else load(model, registry)
    contract = detector.input.with_tiles(detector.tiles_of(tiles, tile_overlap))
    data = folder_data(folder, contract, detector.module, skip_broken)
    return Subject(detector.name, detector.module, data, silent_trainer())


def silent_trainer(accelerator: str = "auto") -> Trainer:
    """On one device, without files and bars."""
    return Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator=accelerator,
                   enable_checkpointing=False, use_distributed_sampler=False, devices=1)  # fmt: skip


def folder_data(
    folder: Path | str, contract: InputContract, module: DetectionModule, skip_broken: bool = False
) -> DetectionDataModule:
    """A folder to evaluate on, which needs no train split. Masks are evaluated one image at a time."""
    common: dict[str, Any] = {
        "input": contract,
        "train_transform": "none",
        "batch_size": 1,
        "num_workers": 0,
        "seed": 0,
        "skip_broken": skip_broken,
    }
    if module.instances is None:
        return CustomDataModule(
            root=str(folder), eval_batch_size=EVALUATION_BATCH, needs_train=False, **common
        )
    return mask_data.evaluation_data(place_of(folder), {**common, "eval_batch_size": 1}, module.label_map)


def refuse_other_labels(subject: Subject) -> None:
    """Raises ValueError if the head's classes are not those of the data, naming the first difference."""
    subject.data.setup("validate")
    mine, theirs = subject.module.label_map, subject.data.label_map
    difference = mine.difference(theirs) if mine is not None else None
    if difference:
        raise ValueError(
            f"{subject.name} and the data do not have the same classes: {difference}. Evaluate on data with "
            "the model's classes, or fine-tune it on these"
        )


def parse_layers(text: str, module: DetectionModule) -> list[int]:
    """`6,5,4,3` to numbers that the decoder has.

    Raises:
        ValueError: not numbers, or not between 1 and the layers that were trained.
    """
    if module.runtime != "pytorch":
        raise ValueError(
            "--decoder-layers: an exported file has the layers that it was exported with; give the model itself"
        )
    trained = module.decoder_layers
    if trained is None:
        raise ValueError("--decoder-layers: this architecture does not evaluate with fewer decoder layers")
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdigit() and 1 <= int(p) <= trained for p in parts):
        raise ValueError(
            f"--decoder-layers {text!r}: give numbers from 1 to {trained}, the layers that were trained"
        )
    return [int(p) for p in parts]


def by_layers(counts: Sequence[int], subject: Subject, split: str, console: Console) -> list[dict[str, Any]]:
    """AP with its interval and milliseconds an image, for each number of decoder layers."""
    before, rows = subject.module.set_decoder_layers(counts[0]), []
    try:
        for count in counts:
            subject.module.set_decoder_layers(count)
            scores = score_split(split, subject.trainer, subject.module, subject.data, Silent())
            rows.append({"layers": count, "ms_per_image": milliseconds(subject), **scores})
    finally:
        subject.module.set_decoder_layers(before)
    table = [
        (
            r["layers"],
            *(format_score(or_nan(r[k]), interval_in(r, k)) for k in ("AP", "AP50")),
            round(r["ms_per_image"], 2),
        )
        for r in rows
    ]
    console.table(("decoder layers", "AP", "AP50", "ms/image"), table)
    console.say(
        f"{split}: {rows[0]['images']} images; times at batch 1, {hardware(subject.trainer)}, input to boxes"
    )
    if rows[0]["note"]:
        console.say(rows[0]["note"])
    return rows


def milliseconds(subject: Subject) -> float:
    """Median time of one image at batch 1, from normalised input to boxes."""
    module = subject.module
    module.eval()
    loader = subject.data.val_dataloader()
    batches = [batch.part(0, 1) for batch in islice(loader, TIMED_IMAGES)]
    laps = Laps(module.device)
    for batch in [batches[0], *batches]:  # the first run warms up
        moved = module.normalized(batch.to(module.device))
        laps.begin()
        module.detect(moved)
        laps.end("detections")
    return statistics.median(laps.stages["detections"].wall[1:])
