"""The `zoo` command. Only what a command needs is imported, so that `zoo --help` costs no torch.

Dotted overrides (`--model.schedule.lr 1e-4`) are taken out of the arguments first; Typer reads the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from zoo.cli.data.check import check
from zoo.cli.data.convert import convert, split
from zoo.cli.data.download import download
from zoo.cli.data.shard import shard
from zoo.cli.data.show import show
from zoo.cli.models.serving import serve
from zoo.cli.options import Augmentations, Json
from zoo.cli.overrides import split_overrides, with_data_option
from zoo.runs import signals
from zoo.runs.console import Console, rank_before, repeats_another, tame_log, write


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """What has been told is not told again: Typer would forget which Ctrl-C it was."""
        try:
            return super().invoke(ctx)
        except signals.Told as error:
            raise signals.Interrupted from error


app = typer.Typer(
    name="zoo",
    cls=_Commands,
    help="Fine-tune, train, check and share DETR-family detectors. Start with `zoo demo`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data_app = typer.Typer(
    help="Look at a data set before training on it.", no_args_is_help=True, rich_markup_mode=None
)
for command in (check, convert, split, show, download, shard):
    data_app.command()(command)
app.add_typer(data_app, name="data")
runs_app = typer.Typer(help="What trainings left behind.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")

TAKES_OVERRIDES = ("finetune", "fit", "plan", "validate", "test", "predict", "manifest", "data show")
_FIRST_SECONDS = 10.0

Configs = Annotated[
    list[str] | None,
    typer.Option(
        "--config", "-c", help="Recipe: a path, a name such as rt_detr/r50_coco_72e, or several to merge."
    ),
]
Registry = Annotated[
    Path | None,
    typer.Option("--registry", help="Local registry; default $ZOO_REGISTRY or ./mlruns/registry."),
]
Evaluated = Annotated[str | None, typer.Argument(help="Registered name, checkpoint or run folder.")]
Checkpoint = Annotated[str | None, typer.Option("--ckpt-path", help="Checkpoint of the recipe's model.")]
DataInstead = Annotated[
    str | None, typer.Option("--data", help="Folder or address, instead of the recipe's data.")
]
MetricsFolder = Annotated[
    Path | None, typer.Option("--output", help="Folder of metrics.json; default mlruns/scores/MODEL.SPLIT.")
]
TileSide = Annotated[
    str | None,
    typer.Option(
        "--tiles",
        help="Cut large images into tiles of N or HxW pixels and merge what is found; none: not; default: as the "
        "model was trained.",
    ),
]
TileOverlap = Annotated[
    float | None, typer.Option("--tile-overlap", help="Share of a tile's side; default 0.2.")
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out images and objects that are at fault.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-recipe", help="Import callbacks and loggers that the recipe names, whosever they are."
    ),
]
RunFolder = Annotated[
    Path | None, typer.Option("--output", help="Run folder; default mlruns/checkpoints/<run>.")
]


def _print_version(asked: bool) -> None:
    if asked:
        import zoo

        Console().say(f"detr-zoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="The installed version.")
    ] = False,
) -> None:
    pass


@app.command()
def finetune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model of `zoo list`, or a name in the registry.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Folder: COCO, YOLO, VOC, CSV, CVAT, shards, ...; detected. Or an address."
        ),
    ],
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the images; default: the recipe's.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Instead of epochs.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            help="Images per step, over all devices; auto: the recipe's, as many at a time as a device holds.",
        ),
    ] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="How many, or auto.")] = None,
    image_size: Annotated[str | None, typer.Option("--image-size", help="HxW or N, multiples of 32.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name in the registry; default: folder and model.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="To start from: published, random, or a checkpoint. Nothing is ever random in silence.",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate; those of parts keep their ratio to it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of weights, order and augmentation; default: the recipe's.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=1, help="End after so many validations without a better AP."),
    ] = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", help="End after 2h, 90m, 1d or 01:30:00, over all resumes.")
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option("--freeze", help="What does not train, some of backbone,encoder,all-but-head."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="32-true or bf16-mixed; default: the latter on a GPU that has it."),
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Less memory, for a third more time."),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Backbone and encoder by torch: takes a minute; for GPUs."
        ),
    ] = None,
    logger: Annotated[
        str | None,
        typer.Option("--logger", help="Some of tensorboard,wandb, beside MLflow."),
    ] = None,
    augmentations: Augmentations = None,
    balance: Annotated[
        float | None,
        typer.Option("--balance", help="Repeat images of classes that fewer than this share of images have."),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            "--tiles",
            help="N or HxW pixels: train and evaluate large images in tiles, for small objects; none: not.",
        ),
    ] = None,
    tile_overlap: TileOverlap = None,
    output: RunFolder = None,
    ckpt_path: Annotated[
        str | None,
        typer.Option("--ckpt-path", help="`auto`: go on with the run in --output, if there is one."),
    ] = None,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Also overfit four images first, and name the fault if that fails."),
    ] = False,
    trust_recipe: Trust = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Train on your own images: from a folder to an AP, pictures and a registered model.

    Any key of the recipe may be given too, as in --model.schedule.weight_decay 1e-4 or --data.num_workers 2.
    """
    from zoo.runs.finetune import finetune as finetune_model

    console = Console(as_json)
    run = finetune_model(
        model, data, epochs=epochs, max_steps=max_steps, batch_size=batch_size, devices=devices,
        image_size=image_size, name=name, weights=weights, lr=lr, seed=seed, patience=patience, max_time=max_time,
        freeze=freeze, precision=precision, checkpointing=checkpointing, compile=compiled, logger=logger, tiles=tiles,
        tile_overlap=tile_overlap, output=output, resume=ckpt_path, preflight=preflight, registry=registry,
        overrides=context.obj, trust=trust_recipe, console=console, augmentations=augmentations, balance=balance,
    )  # fmt: skip
    console.result(run.document)


@app.command()
def fit(
    context: typer.Context,
    config: Configs = None,
    data: DataInstead = None,
    ckpt_path: Annotated[
        str | None,
        typer.Option(
            "--ckpt-path",
            help="Resume: a checkpoint, or `last` of the run in --output; `auto`: that, or a new run.",
        ),
    ] = None,
    output: RunFolder = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="Also overfit four images first.")] = False,
    ray_workers: Annotated[
        int | None, typer.Option("--ray-workers", min=1, help="Train in so many workers of Ray Train.")
    ] = None,
    trust_recipe: Trust = False,
    registry: Registry = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            help="Train nothing: repeat a step that was not finite, from the file that the run saved, and tell "
            "where it begins. Exit code 1 if it is not finite here too.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe, as in: zoo fit --config rt_detr/r50_coco_72e --data data/coco.

    Any key of the recipe may be given too, as in --trainer.max_epochs 12 or --model.schedule.lr 1e-4.
    """
    from zoo.runs.fit import fit as fit_recipe
    from zoo.runs.replay import replay as replay_step

    console = Console(as_json)
    if replay is not None:
        found = replay_step(replay, console)
        console.result(found)
        raise typer.Exit(1 if found["reproduced"] else 0)
    common: dict[str, Any] = {
        "overrides": _with_data(context.obj, data), "resume": ckpt_path, "output": output, "preflight": preflight,
        "registry": registry, "trust": trust_recipe, "console": console,
    }  # fmt: skip
    if ray_workers is not None:
        from zoo.runs.on_ray import fit_on_ray

        run = fit_on_ray(config, workers=ray_workers, **common)
    else:
        run = fit_recipe(config, **common)
    console.result(run.document)


@app.command()
def plan(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            help="Recipe: a path, such as run/recipe.yaml, or a name such as rt_detr/r18_coco_72e."
        ),
    ],
    data: DataInstead = None,
    devices: Annotated[int | None, typer.Option("--devices", min=1, help="Most of a machine.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Of one GPU, e.g. 24GB; default: those of this machine.")
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size", help="Most images a device takes at a time, or auto: what its memory holds."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Of the training set, where it is not at hand.")
    ] = None,
    step_seconds: Annotated[
        float | None,
        typer.Option("--step-seconds", min=0.0, help="Of an optimizer step, measured elsewhere."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Train a few steps for memory and time.")
    ] = True,
    as_json: Json = False,
) -> None:
    """How a recipe trains on your devices as published, or why it cannot, and what that costs."""
    from zoo.runs.plan import plan as plan_recipe

    console = Console(as_json)
    found = plan_recipe(
        recipe, devices=devices, memory=memory, batch_size=batch_size, images=images, step_seconds=step_seconds,
        measure=measure, overrides=_with_data(context.obj, data), console=console,
    )  # fmt: skip
    console.result(found.document())


def _with_data(overrides: dict[str, Any], data: str | None) -> dict[str, Any]:
    """`--data DIR` is `--data.root DIR`."""
    if data is None:
        return overrides
    from datamodules.shards.reader import place_of

    return overrides | {"data.root": place_of(data)}


@app.command()
def validate(
    context: typer.Context,
    model: Evaluated = None,
    config: Configs = None,
    ckpt_path: Checkpoint = None,
    data: DataInstead = None,
    decoder_layers: Annotated[
        str | None, typer.Option("--decoder-layers", help="e.g. 6,5,4,3: AP and ms per image for each.")
    ] = None,
    tiles: TileSide = None,
    tile_overlap: TileOverlap = None,
    skip_broken: SkipBroken = False,
    output: MetricsFolder = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """AP of a model on the val split, with its interval."""
    model, console = model or ckpt_path, Console(as_json)
    _score(
        "val", model, config, context.obj, data, decoder_layers, output, registry, console, tiles, tile_overlap,
        skip_broken,
    )  # fmt: skip


@app.command(name="test")
def score_test_split(
    context: typer.Context,
    model: Evaluated = None,
    config: Configs = None,
    ckpt_path: Checkpoint = None,
    data: DataInstead = None,
    tiles: TileSide = None,
    tile_overlap: TileOverlap = None,
    skip_broken: SkipBroken = False,
    output: MetricsFolder = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """AP of a model on the test split, with its interval."""
    model, console = model or ckpt_path, Console(as_json)
    _score(
        "test", model, config, context.obj, data, None, output, registry, console, tiles, tile_overlap, skip_broken
    )  # fmt: skip


def _score(
    split: Literal["val", "test"], model: str | None, config: list[str] | None, overrides: dict[str, Any],
    data: str | None, decoder_layers: str | None, output: Path | None, registry: Path | None, console: Console,
    tiles: str | None, tile_overlap: float | None, skip_broken: bool,
) -> None:  # fmt: skip
    from zoo.runs.evaluate import evaluation
    from zoo.runs.report import write_metrics
    from zoo.runs.reports.scores_folder import scores_folder
    from zoo.runs.threads import chosen

    with chosen(console):
        document = evaluation(
            split, model=model, recipe=config, overrides=overrides, data=data, decoder_layers=decoder_layers,
            registry=registry, console=console, tiles=tiles, tile_overlap=tile_overlap,
            skip_broken=skip_broken,
        )  # fmt: skip
    if output is None:
        output = scores_folder([model or "recipe"], split)
    console.say(f"metrics     {write_metrics(document, output)}")
    console.result(document)


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Registered name, checkpoint, run folder or exported file.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Folder or address.")] = None,
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "val",
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="COCO results, instead of a model.")
    ] = None,
    precision_at: Annotated[
        float | None,
        typer.Option(
            "--precision-at", help="Thresholds with this precision, e.g. 0.9, instead of the best F1."
        ),
    ] = None,
    tiles: TileSide = None,
    tile_overlap: TileOverlap = None,
    skip_broken: SkipBroken = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the page; default mlruns/scores/MODEL.SPLIT.")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """AP of a model, and why it is what it is: one page, report.html, that needs no network."""
    from zoo.runs.reports.of_model import evaluate_with_report
    from zoo.runs.threads import chosen

    if data is None:
        raise ValueError("evaluate on which images? zoo evaluate MODEL --data DIR")
    console = Console(as_json)
    with chosen(console):
        numbers = evaluate_with_report(
            model, data, split=split, predictions=predictions, precision=precision_at,  # type: ignore[arg-type]
            tiles=tiles, tile_overlap=tile_overlap, skip_broken=skip_broken, output=output, registry=registry,
            console=console,
        )  # fmt: skip
    console.result(numbers)


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(help="Registered name, checkpoint, run folder, exported file, results.json.")
    ],
    second: Annotated[str, typer.Argument(help="Likewise.")],
    data: Annotated[str, typer.Option("--data", help="Folder or address.")],
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "val",
    skip_broken: SkipBroken = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder of the page; default mlruns/scores/FIRST.and.SECOND.SPLIT."),
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Which of two models is better on the same images, at which classes, and where they disagree."""
    from zoo.runs.reports.of_two import compare as run
    from zoo.runs.threads import chosen

    console = Console(as_json)
    with chosen(console):
        found = run(
            first, second, data, split=split, skip_broken=skip_broken, output=output,  # type: ignore[arg-type]
            registry=registry, console=console,
        )  # fmt: skip
    console.result(found)


@app.command()
def predict(
    context: typer.Context,
    items: Annotated[
        list[str],
        typer.Argument(
            help="MODEL, then images: files, folders, http(s) URLs or data URIs; or a video: a file, rtsp:// or the "
            "number of a camera.",
            metavar="MODEL IMAGE...",
        ),
    ],
    config: Configs = None,
    ckpt_path: Annotated[
        str | None, typer.Option("--ckpt-path", help="Checkpoint; then every argument is an image.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            help="Lowest score. Default for boxes and their masks: what the model's manifest says, else 0.3; for "
            "panoptic segments what the model's rule says (0.85 as published). A number given here replaces both.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Folder of the JSON, the drawn pictures, and of masks: results.json (COCO), or panoptic.json with "
            "panoptic/*.png (COCO panoptic); default mlruns/predictions. With --data: results.json or "
            "results.parquet.",
        ),
    ] = None,
    allow_private: Annotated[
        bool,
        typer.Option(
            "--allow-private", help="Also fetch images from this machine, its network, and any port."
        ),
    ] = False,
    tiles: TileSide = None,
    tile_overlap: TileOverlap = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Instead of images: a folder of many, a data set or shards, also at an address. A job that was "
            "interrupted goes on.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Of --data; default: its only one, else val.")
    ] = None,
    data_format: Annotated[
        str | None,
        typer.Option("--format", help="Of --data: auto, coco, yolo, ...; images: without annotations."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Of --data and videos: only these, joined by commas.")
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option("--max-detections", min=1, help="Of --data and videos: the best so many an image."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Of --data; default: 16 on a GPU; 1 on a CPU, to the last digit as one by one. Small networks "
            "are faster there with 8.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=1024,
            help="Of --data: processes that read images; actors of Ray that detect.",
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Of --data: local, or ray, on all machines of a cluster.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="Of --data and videos: cpu, cuda, cuda:1; default: a GPU if there is one."
        ),
    ] = None,
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="Of a video: look at each Nth frame.")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> int:
    """Detect objects, as in: zoo predict my_model photo.jpg. Exit code 1 if an image could not be read."""
    from zoo.runs.subject import detector_of_recipe, load
    from zoo.runs.threads import chosen
    from zoo.video.frames import is_video

    model, sources = (ckpt_path, items) if ckpt_path else (items[0], items[1:])
    if context.obj and not config:
        raise ValueError("dotted overrides change a recipe; give one with --config")

    def detector() -> Any:
        if config:
            return detector_of_recipe(config, context.obj, model, registry)
        return load(model, registry)

    console = Console(as_json)
    of_data = {
        "split": split, "format": data_format, "batch-size": batch_size, "workers": workers, "engine": engine,
    }  # fmt: skip
    of_both = {"classes": classes, "max-detections": max_detections, "device": device}
    videos = [source for source in sources if is_video(source)]
    if every is not None and not videos:
        raise ValueError("--every belongs to a video, and there is none; leave it out")
    if data is not None:
        from zoo.bulk.job import predict_data
        from zoo.bulk.plan import Setting

        if sources:
            raise ValueError(f"{sources[0][:200]}: give images or --data, not both")
        if engine == "ray" and config:
            raise ValueError("--engine ray loads the model by its name in every actor, so not by --config")
        found = predict_data(
            detector, model, data, output or Path("results.json"), console, split=split,
            format=data_format or "auto", threshold=threshold, tiles=tiles, tile_overlap=tile_overlap,
            classes=classes, most=max_detections,
            setting=Setting(batch_size, workers, device or "auto", engine or "local"),  # type: ignore[arg-type]
            registry=registry,
        )  # fmt: skip
    else:
        from zoo.runs.predict import predict as run

        needing = of_data if videos else of_data | of_both
        given = next((name for name, value in needing.items() if value is not None), None)
        if given is not None:
            raise ValueError(f"--{given} belongs to --data DIR, and there is none; leave it out")
        if videos:
            from zoo.video.predict import predict_video

            if len(sources) > 1:
                raise ValueError(f"{videos[0][:200]} is a video: give one at a time, and no images with it")
            with chosen(console):
                found = predict_video(
                    detector, videos[0], output or Path("mlruns", "predictions"), console, every=every or 1,
                    threshold=threshold, tiles=tiles, tile_overlap=tile_overlap, classes=classes,
                    most=max_detections, device=device or "auto",
                )  # fmt: skip
            console.result(found)
            return 1 if found["unreadable"] else 0
        with chosen(console):
            found = run(
                detector,
                sources,
                threshold,
                output or Path("mlruns", "predictions"),
                console,
                allow_private,
                tiles=tiles,
                tile_overlap=tile_overlap,
            )
    console.result(found)
    return 1 if found["unreadable"] else 0


app.command()(serve)


@app.command()
def bench(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Registered names, checkpoints, run folders or exported files.", metavar="NAME..."
        ),
    ],
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", help="e.g. 1,8.")] = "1,8",
    precision: Annotated[str, typer.Option("--precision", help="Some of fp32,bf16,fp16.")] = "fp32",
    decoder_layers: Annotated[
        str | None, typer.Option("--decoder-layers", help="e.g. 6,3; default: as many as the model runs.")
    ] = None,
    runtimes: Annotated[
        str | None,
        typer.Option("--runtimes", help="Some of pytorch,onnxruntime,openvino; default: all installed."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also compiled by torch, which takes minutes.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1; auto: a GPU if there is one.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of the CPU.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="All have a turn in each.")] = 5,
    images: Annotated[
        str | None, typer.Option("--images", help="File, folder or address; default: made up, 640x480.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Also AP on this folder, and a plot of it against time.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder of the plot.")] = Path("mlruns", "bench"),
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Milliseconds of models, bytes of an image to detections and network alone, in turns on this machine."""
    from zoo.runs.bench import bench as run

    console = Console(as_json)
    found = run(
        names, batch_sizes=batch_sizes, precisions=precision, decoder_layers=decoder_layers, runtimes=runtimes,
        compiled=compiled,
        device=device, threads=threads, rounds=rounds, images=images, data=data, output=output, registry=registry,
        console=console,
    )  # fmt: skip
    console.result(found)


@app.command()
def demo(
    seed: Annotated[int, typer.Option("--seed", help="Of data, weights and order.")] = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimizer steps; default: a few minutes.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", help="Folder of data, run, registry, pictures and MLflow's store.")
    ] = Path("mlruns", "demo"),
    as_json: Json = False,
) -> None:
    """The whole cycle offline in a few minutes: data, training, AP, registry, prediction."""
    from zoo.runs.demo import DEFAULT_STEPS
    from zoo.runs.demo import demo as run

    console = Console(as_json)
    console.result(run(seed=seed, steps=steps or DEFAULT_STEPS, output=output, console=console))


@app.command(name="list")
def list_models(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of recipes/README.md.")
    ] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Only those whose terms clearly allow commercial use.")
    ] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Models of the zoo and of your registry."""
    from zoo.cli.models.listing import list_models as run
    from zoo.cli.models.listing import results_table

    if markdown:
        Console().say(results_table())
    else:
        run(registry, Console(as_json), commercial)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="Of `zoo list`, or NAME@alias, NAME:version.")],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Everything known about one model."""
    from zoo.cli.models.listing import info as run

    run(name, registry, Console(as_json))


@app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="NAME, NAME@alias or NAME:version; or a model of transformers, as hf:ORG/REPO[@REVISION] or "
            "hf:./FOLDER."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", help="Copy the verified files here.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Fetch from this file or address instead, e.g. without network."),
    ] = None,
    called: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name in the registry of a model of transformers; default: family and repo."
        ),
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Fetch a model and check every hash."""
    from zoo.runs.register import pull as run

    console = Console(as_json)
    console.result(run(name, output, source, registry, console, called))


@app.command()
def export(
    name: Annotated[
        str | None, typer.Argument(help="Registered name, checkpoint or run folder; with --check optional.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="onnx, openvino or transformers.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="New or empty folder, default below mlruns/exports; with --check, of the new certificate.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Compare on its val split, with AP; default: made-up images, without."),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="HxW or N, as of finetune; default: the model's.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Logits and boxes of all queries instead of detections.")
    ] = False,
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or int8.")] = "fp32",
    decoder_layers: Annotated[
        int | None, typer.Option("--decoder-layers", min=1, help="Only the first so many.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="Export nothing: repeat the certificate of this file or folder here."),
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> int:
    """A model as a file for other runtimes, with proof that it computes the same. Exit code 1 if it does not."""
    from zoo.runs import export as exports

    console = Console(as_json)
    if check is not None:
        found = exports.check(check, name, data=data, output=output, registry=registry, console=console)
    elif name is None:
        raise ValueError("export what? zoo export NAME --output FOLDER, or zoo export --check FILE")
    else:
        found = exports.export(
            name, to, output, data=data, image_size=image_size, raw=raw, precision=precision,  # type: ignore[arg-type]
            decoder_layers=decoder_layers, registry=registry, console=console,
        )  # fmt: skip
    console.result(found)
    return 0 if found["passed"] else 1


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="MLflow run id, or the folder of a run.")],
    name: Annotated[str, typer.Option("--name", help="In the registry, e.g. rt_detr_r18.birds.")],
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="e.g. champion; may be repeated.")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Register the best checkpoint of a run as safetensors with a manifest."""
    from zoo.runs.run import publish as publish_run

    console, aliases = Console(as_json), alias or []
    published = publish_run(run, name, aliases=aliases, registry=registry)
    console.say(f"published   {published.reference}  {published.folder}")
    if not published.is_new:
        console.say("note        these very weights were registered before, so that there is no new version")
    for alias_ in aliases:
        console.say(f"alias       {name}@{alias_}")
    if published.note:
        console.say(f"note        {published.note}")
    console.result(
        {
            "name": name, "version": published.manifest.version, "aliases": aliases,
            "folder": str(published.folder),
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in published.manifest.files],
            "mlflow_version": published.mlflow_version,
        }
    )  # fmt: skip


@app.command()
def alias(
    model: Annotated[str, typer.Argument(help="NAME:version, or NAME for the newest.")],
    alias: Annotated[str, typer.Argument(help="e.g. champion, for NAME@champion.")],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Point an alias to a version of the registry, as in: zoo alias my_model:2 champion."""
    from zoo.runs.register import set_alias

    console = Console(as_json)
    console.result(set_alias(model, alias, registry, console))


@app.command()
def push(
    name: Annotated[str, typer.Argument(help="NAME, NAME@alias or NAME:version of a registered model.")],
    to: Annotated[str, typer.Argument(help="hf:ORG/REPO; HF_TOKEN is a token that may write there.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is created.")] = False,
    form: Annotated[
        str, typer.Option("--as", help="zoo: the version's own files; transformers: a folder that it loads.")
    ] = "zoo",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing; show what would be sent.")
    ] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Share a registered model on the Hugging Face hub, with a model card made of its manifest."""
    from zoo.runs.push import push as run

    console = Console(as_json)
    console.result(
        run(name, to, private=private, form=form, dry_run=dry_run, registry=registry, console=console)  # type: ignore[arg-type]
    )


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(help="Model of `zoo list`, registered name, or family.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every family.")] = False,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Other official numbers; default: the package's.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of zoo/verification/README.md.")
    ] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Prove on this machine that a model's code equals the official code; check its files if they are here."""
    from zoo.cli.models.verifying import verify as run_verify

    if not run_verify(name, every, golden, markdown, registry, Console(as_json)):
        raise typer.Exit(1)


@app.command()
def manifest(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Recipe of the weights: a path or a name.")],
    labels_of: Annotated[
        str | None, typer.Option("--labels-of", help="Model with the same classes, instead of the data.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="New file, e.g. zoo/manifests/NAME.TAG.yaml; default: stdout."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draft the manifest of a recipe's published weights: parameters and multiply-adds are counted."""
    from zoo.runs.draft import draft
    from zoo.storage.durable import write_atomically

    if output is not None and output.exists():
        raise FileExistsError(f"{output} is there already; remove it, or name another file")
    drafted, console = draft(recipe, context.obj, labels_of), Console(as_json)
    console.result(drafted.to_dict())
    text = drafted.to_yaml()
    if output is not None:
        write_atomically(output, text.encode())
        console.say(
            f"manifest    {output}: hashes, notes and the source of the scores are for you to complete"
        )
    elif not as_json:
        console.say(text.rstrip())


@runs_app.command(name="sync")
def sync_runs(
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of the runs that were spooled; default ./mlruns.")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri", help="Server; default $MLFLOW_TRACKING_URI or the store in the folder."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send to MLflow what runs kept on disk while its server did not answer."""
    from zoo.runs.sync import sync

    console = Console(as_json)
    console.result(sync(root, tracking_uri, console))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 faults found, or diverged, 2 not possible, 128 + N by the signal N."""
    arguments = sys.argv[1:] if argv is None else argv
    codes = [1]
    if arguments[:1] == ["serve"]:
        atexit.register(_end_at_once, codes)  # before others register theirs, so that it comes after them
    codes[0] = run_command(arguments)
    sys.exit(codes[0])


def _end_at_once(codes: Sequence[int]) -> None:
    """Ends without taking the libraries apart: seconds in which a server that has answered everybody still stands."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(codes[0])


def run_command(argv: Sequence[str]) -> int:
    """One command to its exit code. Errors are one line on stderr; ZOO_DEBUG=1 shows the traceback."""
    tame_log()
    try:
        with signals.raising():
            plain, overrides = split_overrides(with_data_option(argv))
            command = " ".join(plain[: 2 if plain[:1] == ["data"] else 1])
            if overrides and command not in TAKES_OVERRIDES:
                raise ValueError(
                    f"--{next(iter(overrides))}: only {', '.join(TAKES_OVERRIDES)} take dotted overrides, as in "
                    "`zoo fit --config NAME --trainer.max_epochs 1`"
                )
            result: Any = app(args=plain, standalone_mode=False, obj=overrides)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except signals.Interrupted as error:
        return _fail(str(error), 130)
    except signals.Terminated as error:
        return _fail(f"ended by {signal.Signals(error.signal).name}", 128 + error.signal)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ZOO_DEBUG"):
            raise
        return _fail(_message(error), 1 if isinstance(error, FloatingPointError) else 2)
    except Exception as error:
        # Typer's own usage errors know how to present themselves
        if not hasattr(error, "format_message") or os.environ.get("ZOO_DEBUG"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # `zoo` or `zoo data` alone
            write(error.format_message(), sys.stdout)
            return 2
        return _fail(error.format_message(), 2)
    if result == 130:  # Typer has turned Ctrl-C into an exit code
        return _fail("interrupted", 130)
    return int(result or 0)


def _message(error: BaseException) -> str:
    from datamodules.index.faults import brief, visible

    if isinstance(error, OSError) and error.filename and error.strerror:
        return visible(brief(f"{error.filename}: {error.strerror}"))
    return visible(brief(str(error), most=8000), keep="\n") or type(error).__name__


def _fail(message: str, code: int) -> int:
    if repeats_another():
        # the first says it, and its end ends this one; where it does not, this one alone has the error
        time.sleep(_FIRST_SECONDS)
    rank = rank_before()
    if message and (code == 2 or not rank):  # a signal is rank zero's to tell of
        write(f"{rank}error: {message}", sys.stderr)
    return code


if __name__ == "__main__":
    main()
