"""Fine-tuning: completes a recipe from the data and the user's choices, and trains it as `fit` does."""

from __future__ import annotations

import copy
import datetime
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datamodules.base import DetectionDataModule
from datamodules.index import Fault, by_severity
from datamodules.shards.reader import place_of
from zoo.contract.input_limits import InputLimits, Size
from zoo.registry.manifest import Manifest
from zoo.registry.names import base_name, check_name, shortened
from zoo.registry.store import UnknownModelError, find, is_builtin_name, refuse_builtin_name
from zoo.registry.terms import restriction
from zoo.runs import augmenting, building, catalogue, mask_data, recipes, schema, tile_recipe, trust
from zoo.runs.channels import suit_channels
from zoo.runs.console import Console
from zoo.runs.image_check import image_check
from zoo.runs.input_sizes import input_sizes, most_places
from zoo.runs.options.batch_size import parse as parse_batch_size
from zoo.runs.options.chosen import Options
from zoo.runs.options.stopping import suit_validations
from zoo.runs.quick_check import quick_check
from zoo.runs.recipes import Recipe
from zoo.runs.run import Run
from zoo.runs.run_folder import RECIPE_FILE, new_folder, refuse_used
from zoo.storage.patterns import compiled
from zoo.training.module import check_block, parameter_names
from zoo.training.preflight import queries_advice

# what a size's recipe gives; schedule, average and everything else come from the family's finetune recipe
ARCHITECTURE_KEEPS = ("schedule", "ema", "multi_scale", "multi_scale_epochs", "num_classes")
# of a recipe's data block, what stays when its data are replaced
DATA_KEEPS = (
    "later_transforms", "min_box_side", "dense_o2o", "flip_both", "val_fraction", "bucketing", "augmentations",
    "balance", "tile_sampling",
)  # fmt: skip
STRIDE = 32  # of the coarsest feature map: where the shortest side is resized, images have one place at least
LONGEST_TO_SHORTEST = 1333 / 800
ImageSize = int | str | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a recipe is completed with; see `finetune`. None means the recipe's."""

    model: str
    data: Path | str  # a folder, or the address of shards
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    devices: int | str | None = None
    image_size: ImageSize | None = None
    name: str | None = None
    weights: str | Path | None = None
    lr: float | None = None
    seed: int | None = None
    tiles: ImageSize | None = None
    tile_overlap: float | None = None
    options: Options = field(default_factory=Options)
    augmentations: augmenting.Given | None = None
    balance: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Start:
    """What a model name means: the recipe to start from and the weights that belong to it."""

    recipe: Recipe
    family_name: str  # e.g. rt_detr_r18, also for a model of the registry that began as one
    weights: str | None  # registry reference of its weights; None if there are none
    manifest: Manifest | None = None
    left_out: tuple[str, ...] = ()  # what a registered model's recipe says and is not taken from there


def finetune(
    model: str,
    data: str | Path,
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | str | None = None,
    devices: int | str | None = None,
    image_size: ImageSize | None = None,
    name: str | None = None,
    weights: str | Path | None = None,
    lr: float | None = None,
    seed: int | None = None,
    patience: int | None = None,
    max_time: str | datetime.timedelta | None = None,
    freeze: str | Sequence[str] | None = None,
    precision: str | None = None,
    checkpointing: bool | None = None,
    compile: bool | None = None,
    logger: str | Sequence[str] | None = None,
    augmentations: augmenting.Given | None = None,
    balance: float | None = None,
    tiles: ImageSize | None = None,
    tile_overlap: float | None = None,
    output: str | Path | None = None,
    resume: str | None = None,
    preflight: bool = False,
    registry: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> Run:
    """Trains a model on your own images: from a folder to an AP, pictures and a registered model.

    >>> import zoo
    >>> run = zoo.finetune(
    ...     "rt_detr_tiny", "shapes", weights="random", max_steps=2, batch_size=4, image_size=64, console=zoo.Silent()
    ... )
    >>> run.registered
    'rt_detr_tiny.shapes:1'
    >>> 0 <= run.scores["val"]["AP"] <= 1
    True
    >>> prediction = run.detector().predict("shapes/val/00000.png", threshold=0.0)

    None is always the recipe's own value.

    Args:
        model: of `zoo.available()`, or a name in the registry.
        data: folder in any format that is understood, or the address of shards.
        epochs: the length.
        max_steps: the length in optimizer steps, instead of epochs.
        batch_size: images of a step, over all devices; `auto` keeps the recipe's and searches for the most that a
            device holds at a time.
        devices: how many, or `auto`.
        image_size: a side, or (height, width), multiples of 32; where the shorter side is resized, that one, or
            (shorter, most of the longer).
        name: in the registry, `MODEL.TAG`; None makes one of model and data folder.
        weights: `published`, `random`, or a file; None is published where there are any.
        lr: learning rate; those of parts of the model keep their ratio to it.
        seed: of weights, order and augmentation.
        patience: validations without a better score after which the training ends.
        max_time: `2h`, `90m`, `1d` or `01:30:00` after which it ends, over all resumes.
        freeze: of `backbone`, `encoder` and `all-but-head`: what does not train.
        precision: `32-true`, `bf16-mixed`, or on a GPU `16-mixed`; None: bf16-mixed on a GPU that has it.
        checkpointing: layers keep their inputs alone and are computed again in the backward pass: less memory, more
            time.
        compile: backbone and encoder by torch, which takes a minute or more; for GPUs.
        logger: `tensorboard` and `wandb`, beside MLflow.
        augmentations: operations of torchvision, albumentations and ours besides the recipe's, as a list or the YAML
            file of one, see `datamodules.augmentations.block`.
        balance: share of the training images; images of classes that fewer have are repeated, see
            `datamodules.balance`; LVIS took 0.001.
        tiles: side in pixels of the images, or (height, width): large images are trained and evaluated in tiles of that
            size, mixed with whole ones, and the model predicts so too; `none` for none.
        tile_overlap: of neighbouring tiles, as a share of their side; None is 0.2.
        output: run folder; None makes one under mlruns/checkpoints.
        resume: `auto` goes on with the run in `output` if there is one, by its own recipe: a command that is started
            again and again.
        preflight: overfit four images first, and name the fault if that fails.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        overrides: dotted keys of the recipe and their values.
        trust: whether overrides may name callbacks and loggers besides Lightning's harmless ones; they are imported.
        console: prints the progress; None: on stdout.

    Raises:
        ValueError, OSError: naming what to change: the data, the model's name, or the weights.
        FloatingPointError: the training diverged.
        KeyboardInterrupt: after last.ckpt is written; says how to go on.
    """
    from zoo.runs.ending import finish
    from zoo.runs.fit import find_run, fit
    from zoo.runs.train import Registration, trained

    console = console or Console()
    checkpoint, folder = find_run(resume, output)
    if checkpoint is not None:
        return fit(resume=checkpoint, output=folder, trust=trust, console=console)
    images = parse_batch_size(batch_size)
    choices = Choices(
        model=model, data=data, epochs=epochs, max_steps=max_steps, devices=devices,
        batch_size=images if isinstance(images, int) else None,
        image_size=image_size, name=name, weights=weights, lr=lr, seed=seed, augmentations=augmentations,
        balance=balance, tiles=tiles, tile_overlap=tile_overlap, overrides=overrides or {},
        options=Options(patience=patience, max_time=max_time, freeze=freeze, precision=precision,
            checkpointing=checkpointing, compile=compile, search_batch=images == "auto", logger=logger,
        ),
    )  # fmt: skip
    start = starting_point(model, registry)
    name = model_name(choices, start)
    recipe, notes = complete_recipe(start, choices)
    schema.check(recipe, trust)
    if folder is not None:
        refuse_used(folder, trust)
    read = read_data(recipe)
    refuse_too_few_places(recipe, read, start.family_name)
    faults = quick_check(read, queries_of(recipe))
    seen, looked = image_check(read, place_of(data))
    notes += [*fit_to_data(recipe, read, choices), head_note(recipe), *looked, *augmenting.notes_on(read)]
    if recipe["init_from"]["source"] == start.weights:
        notes += fetch_published(start, registry)
    recipe["about"]["name"], _, tag = name.partition(".")
    recipe["about"]["tag"] = tag or "custom"
    folder = folder or new_folder(name.replace(".", "-"))
    announce(recipe, read, [*faults, *seen], notes, console)
    ending = Registration(name, None if registry is None else str(Path(registry).absolute()), start.weights)
    with trained(recipe, folder, None, preflight, registry, console, trust, ending) as done:
        return finish(done, ending, console)


def model_name(choices: Choices, start: Start) -> str:
    """What the trained model will be registered as: the name given, else one made of model and data folder.

    Raises:
        ValueError: a registry cannot hold the name given; says why, before anything is trained.
    """
    if choices.name is not None:
        check_name(choices.name)
        refuse_builtin_name(choices.name)
        return choices.name
    tag = slug(place_of(choices.data).rstrip("/").rpartition("/")[2])
    name = shortened(f"{start.family_name}.{tag}")
    return shortened(f"{start.family_name}.my_{tag}") if is_builtin_name(name) else name


def starting_point(name: str, registry: str | Path | None) -> Start:
    """The recipe and weights behind a model of the zoo or of the user's registry.

    Raises:
        ValueError: there is no such model; names the nearest.
    """
    try:
        entry = catalogue.find(name, registry)
    except ValueError as unknown:
        try:
            found = find(name, registry)
        except (UnknownModelError, ValueError):
            raise unknown from None
        if found.folder is None or not (found.folder / RECIPE_FILE).is_file():
            raise ValueError(
                f"{name} has no recipe beside its weights; finetune a model of `zoo list`"
            ) from None
        recipe, left_out = registered_recipe(found.folder / RECIPE_FILE, found.manifest.family)
        reference = f"{found.manifest.name}:{found.manifest.version}"
        return Start(recipe, found.manifest.name.partition(".")[0], reference, found.manifest, left_out)
    if entry["published"] is None:
        return Start(recipes.load(recipes.resolve(entry["recipes"][0])), entry["name"], None)
    # weights of an unpublished schedule have no recipe; their manifest holds the same block
    first = entry["recipes"][:1]
    size = recipes.load(recipes.resolve(first[0])) if first else catalogue.manifest_of(entry)
    of_family = catalogue.finetune_recipe(entry["family"], size["model"]["class_path"])
    if of_family is None and not first:
        raise ValueError(
            f"{name} has no recipe, and its family none for fine-tuning: add recipes/{entry['family']}/finetune.yaml"
        )
    if of_family is None:  # then the schedule is that of the model's own recipe
        return Start(size, base_name(entry["name"]), entry["full_name"])
    arguments = of_family["model"]["init_args"]
    arguments |= {k: v for k, v in size["model"]["init_args"].items() if k not in ARCHITECTURE_KEEPS}
    contract = of_family["data"]["init_args"]["input"]
    own = size["data"]["init_args"]["input"] if first else size["input"]
    if (
        contract["resize"] == own["resize"] == "stretch"
    ):  # sizes of a family may have inputs of different sizes
        contract["size"] = list(own["size"])
    return Start(of_family, base_name(entry["name"]), entry["full_name"])


def registered_recipe(path: Path, family: str) -> tuple[Recipe, tuple[str, ...]]:
    """Model, data and plain numbers of a registered model's recipe, which may be a stranger's; and what is left out.

    Raises:
        ValueError: what is taken is at fault, or names classes that are not the zoo's.
    """
    given = recipes.load(path)
    trainer = given.get("trainer")
    if not isinstance(trainer, dict):
        raise ValueError(f"{path}: trainer is {trainer!r:.60}; it must be a mapping")
    recipe = {
        key: value
        for key, value in given.items()
        if key in ("seed_everything", "model", "data", "checkpoint")
    }
    recipe |= {
        "about": {"family": family},
        "trainer": {key: trainer[key] for key in trust.FROM_REGISTRY if key in trainer},
        "init_from": {"source": "none"},
        "tracking": {"experiment": family},
    }
    try:
        schema.check(recipe)
        check_block(recipe["model"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    of_machine = ("accelerator", "devices", "num_nodes", "strategy")
    return recipe, tuple(
        f"trainer.{key}" for key in trainer.keys() - recipe["trainer"].keys() - {*of_machine}
    )


def complete_recipe(start: Start, choices: Choices) -> tuple[Recipe, list[str]]:
    """The recipe with every choice in it, and notes for the user; `fit_to_data` adds num_classes."""
    recipe = copy.deepcopy(start.recipe)
    arguments, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    recipe["about"] = {
        "name": start.family_name,
        "tag": "custom",
        "family": recipe["about"]["family"],
        "license": "not stated",
        "published": None,
        "measured": None,
        "sources": [],
    }
    keep = {k: data[k] for k in mask_data.KEPT}
    keep |= {k: v for k, v in data.items() if k in DATA_KEEPS}
    recipe["tracking"].pop("run_id", None)
    notes = choose_weights(recipe, start, choices.weights)
    if start.left_out:
        notes.append(
            f"{', '.join(sorted(start.left_out))} of the registered recipe: left out; give them again if wanted"
        )
    place = place_of(choices.data)
    if schema.module_class(recipe).learns_masks:
        recipe["data"] = mask_data.data_block(place, keep)
        notes += mask_data.suit_model(recipe)
    else:
        recipe["data"] = {"class_path": mask_data.OUTLINES, "init_args": {"root": place, **keep}}
    if choices.image_size is not None:
        contract = recipe["data"]["init_args"]["input"]
        contract["size"] = parse_size(choices.image_size, contract["resize"], limits_of(recipe).multiple_of)
        if contract["resize"] == "shortest":
            notes.append(
                "--image-size of this family: shorter side x the longest that the longer side may be"
            )
        if arguments.get("multi_scale"):
            arguments["multi_scale"] = []
            notes.append("multi_scale is switched off, for it would undo --image-size")
    notes += tile_recipe.write(recipe, choices.tiles, choices.tile_overlap)
    if choices.batch_size is not None:
        arguments["schedule"]["global_batch_size"] = choices.batch_size
        recipe["data"]["init_args"]["batch_size"] = choices.batch_size
    if choices.lr is not None:
        scale_learning_rate(arguments["schedule"], choices.lr)
    # a registered model's recipe was another machine's
    trainer |= {"accelerator": "auto", "devices": "auto", "num_nodes": 1}
    if choices.epochs is not None:
        trainer["max_epochs"] = choices.epochs
        trainer.pop("max_steps", None)
    if choices.max_steps is not None:
        trainer["max_steps"], trainer["max_epochs"] = choices.max_steps, -1
    if choices.devices is not None:
        trainer["devices"] = int(choices.devices) if str(choices.devices).isdigit() else choices.devices
    if choices.seed is not None:
        recipe["seed_everything"] = recipe["data"]["init_args"]["seed"] = choices.seed
    if choices.augmentations is not None:
        recipe["data"]["init_args"]["augmentations"] = augmenting.block_of(choices.augmentations)
    if choices.balance is not None:
        recipe["data"]["init_args"]["balance"] = choices.balance
    recipes.apply_overrides(recipe, choices.overrides)
    notes += suit_channels(recipe)
    notes += choices.options.write(recipe, choices.overrides)
    return recipe, notes


def choose_weights(recipe: Recipe, start: Start, weights: str | Path | None) -> list[str]:
    """Writes `init_from` and the backbone's weights; never random without saying so.

    Raises:
        ValueError: published weights of a model that has none.
        FileNotFoundError: a path that is none.
    """
    backbone = recipe["model"]["init_args"].get("backbone")
    recipe["init_from"] = {"source": "none", "head": "keep"}
    if weights is None and start.weights is None:
        weights = "random"
    if weights == "random":
        return ["weights: random; the whole network learns from your images alone", *_from_scratch(recipe)]
    if backbone is not None:
        backbone["weights"] = "random"  # the detector's weights hold the backbone's too
    if weights in (None, "published"):
        if start.weights is None:
            raise ValueError(
                f"{start.family_name} has no published weights; train it from scratch with --weights random, "
                "or start from a checkpoint with --weights PATH"
            )
        recipe["init_from"] = {"source": start.weights, "head": "by_class_name"}
        return [f"weights: {start.weights}; classes of the same name keep their rows, the others start new"]
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--weights {str(weights)!r} is neither published nor random nor a file")
    recipe["init_from"] = {"source": str(path.resolve()), "head": _head_for(path)}
    return [f"weights: {path} (head: {recipe['init_from']['head']})"]


def _head_for(path: Path) -> str:
    """Class rows can be copied by name only if the file holds the names of its classes."""
    if path.suffix == ".safetensors":
        return "new"
    from zoo.storage.checkpoint_io import read_checkpoint

    return "by_class_name" if "zoo" in read_checkpoint(path) else "new"


def _from_scratch(recipe: Recipe) -> list[str]:
    """Removes freezing and low learning rates, which suit trained weights only."""
    arguments, notes = recipe["model"]["init_args"], []
    backbone, schedule = arguments.get("backbone"), arguments["schedule"]
    if backbone is None:
        return []
    backbone["weights"] = "random"
    frozen = [k for k in ("freeze_stem", "frozen_norm") if backbone.get(k)]  # of the backbone alone
    for key in frozen:
        backbone[key] = False
    if frozen:
        notes.append(f"backbone {' and '.join(frozen)} switched off: random weights have to learn")
    of_backbone = [name for name in parameter_names(recipe["model"]) if name.startswith("backbone.")]
    kept = []
    for rule in schedule["rules"]:
        if not any(map(compiled(rule["match"]).search, of_backbone)):
            kept.append(rule)  # part of the method, not of starting from trained weights
            continue
        if rule.pop("freeze", False):
            notes.append(f"{rule['match']} learns instead of being frozen")
        slow = rule.pop("lr", None) if rule.get("lr") is not None and rule["lr"] < schedule["lr"] else None
        if slow is not None:
            notes.append(f"{rule['match']} learns at {schedule['lr']:g} instead of {slow:g}")
        if rule.keys() - {"match"}:
            kept.append(rule)
    schedule["rules"] = kept
    return notes


def scale_learning_rate(schedule: dict[str, Any], lr: float) -> None:
    """Sets the learning rate; those of the rules keep their ratio to it."""
    ratio = lr / schedule["lr"]
    schedule["lr"] = lr
    for rule in schedule["rules"]:
        if rule.get("lr") is not None:
            rule["lr"] = rule["lr"] * ratio


def parse_size(given: ImageSize, resize: str = "stretch", multiple: int = STRIDE) -> list[int]:
    """640, `480x640` or (480, 640) (height, width) to [h, w]; where the shortest side is resized, [shorter, longer].

    There one number is the shorter side, and the longer may have DETR's 1333 to 800 of it.

    Raises:
        ValueError: not of that form, or no multiples of `multiple` where the image is stretched.
    """
    text = "x".join(map(str, given)) if isinstance(given, tuple) else str(given)
    match = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", text)
    if match is None:
        raise ValueError(f"--image-size {text!r:.40} is neither N nor HxW, as in 640 or 480x640")
    if resize == "shortest":
        sides = [int(match[1]), int(match[2] or int(match[1]) * LONGEST_TO_SHORTEST)]
        if min(sides) < STRIDE:
            raise ValueError(f"--image-size {text}: both sides must be at least {STRIDE}")
        _refuse_huge(text, sides)
        return sorted(sides)
    size = [int(match[1]), int(match[2] or match[1])]
    if any(side % multiple or not side for side in size):
        near = "x".join(str(max(multiple, round(side / multiple) * multiple)) for side in size)
        raise ValueError(
            f"--image-size {text}: both sides must be multiples of {multiple}; the nearest is {near}"
        )
    _refuse_huge(text, size)
    return size


def _refuse_huge(text: str, sides: list[int]) -> None:
    most = InputLimits().largest
    if max(sides) > most:
        raise ValueError(
            f"--image-size {text[:20]}: a side may have at most {most} pixels; cut larger images into tiles"
        )


def head_note(recipe: Recipe) -> str:
    """How the family initialises class rows that get no weights."""
    prior = schema.module_class(recipe).class_prior
    if prior is None:
        return "class head: new rows start as torch starts a linear layer, as the official code leaves them"
    return f"class head: new rows start at a probability of {prior:g} for every class (the focal prior)"


def read_data(recipe: Recipe) -> DetectionDataModule:
    """The data set as the recipe reads it; raises for faulty data."""
    data = building.Recipe(recipe).datamodule()
    noticed = logging.getLogger("datamodules.base")
    before = noticed.level
    noticed.setLevel(logging.ERROR)  # `announce` prints every fault
    try:
        if schema.module_class(recipe).learns_masks:
            mask_data.refuse_bare_boxes(data, recipe["data"]["init_args"]["root"])
        data.setup("fit")
    finally:
        noticed.setLevel(before)
    return data


def fit_to_data(recipe: Recipe, data: DetectionDataModule, choices: Choices) -> list[str]:
    """Writes what depends on the data: num_classes, and a batch and warm-up that a small set allows."""
    notes: list[str] = []
    arguments, trainer = recipe["model"]["init_args"], recipe["trainer"]
    schedule = arguments["schedule"]
    images = data.images_of_epoch
    arguments["num_classes"] = data.label_map.num_classes
    if data.tile_items is not None:
        notes += data.tile_items.lines()
    if images < schedule["global_batch_size"] and choices.batch_size is None:
        smaller = 1 << (images.bit_length() - 1)
        notes.append(f"global_batch_size {schedule['global_batch_size']} -> {smaller}: only {images} images")
        schedule["global_batch_size"] = smaller
        recipe["data"]["init_args"]["batch_size"] = min(smaller, recipe["data"]["init_args"]["batch_size"])
    per_epoch = max(1, images // schedule["global_batch_size"])
    limit = trainer.get("max_steps", -1)
    steps = limit if limit and limit > 0 else per_epoch * trainer["max_epochs"]
    if schedule["warmup_steps"] > steps // 10:
        shorter = max(1, steps // 10)
        notes.append(f"warmup_steps {schedule['warmup_steps']} -> {shorter}: a tenth of {steps} steps")
        schedule["warmup_steps"] = shorter
    fullest = data.most_objects()
    queries = queries_of(recipe)
    if fullest > queries:
        places = most_places(limits_of(recipe), sizes_of(recipe, data))
        notes.append(queries_advice(schema.module_class(recipe).queries_key, fullest, queries, places))
    notes.append(f"{steps} steps of {schedule['global_batch_size']} images, {per_epoch} an epoch")
    notes += suit_validations(recipe, per_epoch, steps, choices.overrides)
    return notes


def limits_of(recipe: Recipe) -> InputLimits:
    """What sizes of input the recipe's model takes."""
    return schema.module_class(recipe).limits_of(recipe["model"]["init_args"])


def sizes_of(recipe: Recipe, data: DetectionDataModule) -> set[Size]:
    """Sizes of input that all splits give."""
    return input_sizes(data, recipe["data"]["init_args"], ("train", "val", "test"))


def refuse_too_few_places(recipe: Recipe, data: DetectionDataModule, name: str) -> None:
    """Raises ValueError where the images are too small for the queries, or of a size that no model takes."""
    advice = f"use a larger --image-size or fewer --model.{schema.module_class(recipe).queries_key}"
    limits_of(recipe).refuse_any(sizes_of(recipe, data), name, advice)


def queries_of(recipe: Recipe) -> int:
    """How many queries the recipe's model has."""
    return schema.module_class(recipe).num_queries(recipe["model"]["init_args"])


def fetch_published(start: Start, registry: str | Path | None) -> list[str]:
    """Makes the published weights ready before anything else takes time; a note where their terms are restricted.

    Raises:
        ConnectionError: they cannot be fetched; names `--weights random`.
    """
    from zoo.registry.pull import pull
    from zoo.storage.fetch import DownloadError

    assert start.weights is not None
    try:
        manifest = pull(start.weights, registry=registry).manifest
    except DownloadError as error:
        raise ConnectionError(
            f"the weights of {start.weights} cannot be fetched: {str(error).partition('; ')[0]:.300}. `zoo pull "
            f"{start.weights}` tells which file to fetch on another machine, and takes it with --source FILE; then "
            "repeat this. Or train from scratch: --weights random"
        ) from error
    restricted = restriction(manifest.terms, manifest.license)
    return [f"{start.weights}: {restricted}; what you train from it inherits that"] if restricted else []


def announce(
    recipe: Recipe, data: DetectionDataModule, faults: list[Fault], notes: list[str], console: Console
) -> None:
    """Prints data, faults, classes and notes before anything takes time."""
    console.say(f"data        {recipe['data']['init_args']['root']}")
    summary = data.summary()
    every = sorted([*summary.faults, *faults], key=by_severity)
    for line in replace(summary, faults=every).lines():
        console.say(f"  {line}")
    contract = recipe["data"]["init_args"]["input"]
    height, width = contract["size"]
    shape = f"{height}x{width}" if contract["resize"] == "stretch" else f"{height} to {width} a side"
    console.say(f"model       {recipe['about']['name']}, {data.label_map.num_classes} classes, input {shape}")
    for note in notes:
        console.say(f"  {note}")


def slug(text: str) -> str:
    """Lower-case letters, digits and single underscores: a tag that a registry name may have."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "custom"
