"""`zoo demo`: the whole cycle on made-up shapes, offline, from random weights, in a few minutes."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.shapes import CLASSES, generate_shapes, paint_image
from zoo.detector import DEFAULT_THRESHOLD
from zoo.runs import recipes
from zoo.runs.console import Console, quoted
from zoo.runs.ending import page_of
from zoo.runs.finetune import announce, queries_of, read_data
from zoo.runs.predict import predict
from zoo.runs.quick_check import quick_check
from zoo.runs.register import pull, register
from zoo.runs.report import report
from zoo.runs.run_folder import METRICS_FILE
from zoo.runs.subject import load
from zoo.runs.train import trained
from zoo.storage.durable import write_json

NAME = "rt_detr_tiny.shapes"
DEFAULT_STEPS = 1250
NUM_TRAIN, NUM_VAL = 2500, 400
SIZE = 128
PASSES = 3  # validations on the way
BATCH = 16  # half the steps of 8 learn more in three quarters of the time: small steps are mostly overhead
RATE = 3.0e-3  # of AdamW at that batch
MARKER = ".zoo_demo"


def demo(*, seed: int, steps: int, output: Path, console: Console) -> dict[str, Any]:
    """Generates data, checks it, trains, evaluates, registers, pulls back, predicts on a new image.

    Args:
        seed: of the data, the weights and the order; each gives another data set.
        steps: optimizer steps, a fixed budget: CI compares the AP and never the time.
        output: everything goes below it, MLflow's store and the registry too.
        console: for the user.

    Returns:
        metrics.json's content.
    """
    output = empty_folder(output)
    with inside(output):  # where MLflow's data go
        return _demo(seed, steps, output, console)


def _demo(seed: int, steps: int, output: Path, console: Console) -> dict[str, Any]:
    begun = time.monotonic()
    # a second thread buys a quarter of the time on idle cores and costs hours on busy ones; and with one
    # the result does not depend on the machine's number of cores
    torch.set_num_threads(1)
    console.say(f"1/5  data: {NUM_TRAIN} + {NUM_VAL} images of {', '.join(CLASSES)}, made now")
    folder = generate_shapes(output / "shapes", NUM_TRAIN, NUM_VAL, seed, SIZE)
    recipe = demo_recipe(folder, seed, steps)
    data = read_data(recipe)
    faults = quick_check(data, queries_of(recipe))
    console.say(f"     {len(faults)} faults")
    announce(recipe, data, faults, [f"{steps} steps from random weights, seed {seed}"], console)
    console.say("2/5  training")
    registry = output / "registry"
    with trained(recipe, output / "run", None, False, registry, console) as run:
        console.say("3/5  the result")
        document = report(run, ["val"], console)
        console.say("4/5  registered, and pulled back by its name")
        reference = register(run, document, "val", NAME, registry, None, console) or NAME
        page = page_of(run)
    pull(reference, None, None, registry, console)
    picture = output / "new_image.png"
    image, objects = paint_image(np.random.default_rng([seed, 2, 0]), SIZE)
    names = ", ".join(sorted(CLASSES[label] for label, _ in objects))
    console.say(f"5/5  a new image with {len(objects)} objects: {names}")
    image.resize((4 * SIZE, 4 * SIZE), Image.Resampling.NEAREST).save(picture)
    predictions = output / "predictions"
    threshold = shown_from(document["val"])
    predict(lambda: load(reference, registry), [str(picture)], threshold, predictions, console)
    document |= {"registered": reference, "demo_seconds": round(time.monotonic() - begun, 1)}
    write_json(output / METRICS_FILE, document, indent=2)
    closing(output, document, reference, page, console)
    return document


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working directory, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def empty_folder(output: Path) -> Path:
    """The folder of the demo, emptied of an earlier demo.

    Raises:
        FileExistsError: it holds something that no demo put there.
    """
    output = output.absolute()
    marker = output / MARKER
    if output.exists() and any(output.iterdir()):
        if not marker.is_file():
            raise FileExistsError(f"{output} is not empty and not an earlier demo; choose another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    marker.write_text("made by zoo demo, which empties this folder when it runs again\n", encoding="utf-8")
    return output


def demo_recipe(data: Path, seed: int, steps: int) -> recipes.Recipe:
    """The tiny recipe on the shapes, for a fixed number of steps."""
    recipe = copy.deepcopy(recipes.load(recipes.resolve("rt_detr/tiny")))
    recipe["about"] |= {"name": NAME.partition(".")[0], "tag": NAME.partition(".")[2]}
    recipe["seed_everything"] = seed
    recipe["model"]["init_args"]["num_classes"] = len(CLASSES)
    recipe["model"]["init_args"]["schedule"] |= {"lr": RATE, "global_batch_size": BATCH}
    recipe["data"]["init_args"] |= {
        "root": str(data),
        "batch_size": BATCH,
        "train_transform": "shapes",
        "seed": seed,
        "num_workers": 1,  # reads and augments on the second core; a sixth of the time otherwise
    }
    per_epoch = NUM_TRAIN // recipe["model"]["init_args"]["schedule"]["global_batch_size"]
    recipe["trainer"] |= {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": 1,
        "check_val_every_n_epoch": max(1, steps // per_epoch // PASSES),
    }
    return recipe


def shown_from(scores: dict[str, Any]) -> float:
    """The threshold of the best F1 on the validation images; the usual one where nothing was found there."""
    point = scores["operating_point"]
    return DEFAULT_THRESHOLD if point is None else float(point["threshold"])


def closing(
    output: Path, document: dict[str, Any], reference: str, page: list[str], console: Console
) -> None:
    """Where everything is, and what to do next."""
    registry = quoted(output / "registry")
    console.say(
        f"\nAP {document['val']['AP']:.3f} after {document['demo_seconds']:.0f} s. All is below {output}:"
    )
    for what in ("run/curves.png", "run/gallery.png", "predictions/new_image_detections.png",
                 "predictions/predictions.json", "run/recipe.yaml", "metrics.json"):  # fmt: skip
        console.say(f"  {output / what}")
    console.say("look at the run:     " + "\n                     ".join(page))
    threshold = shown_from(document["val"])
    console.say(
        f"predict:             zoo predict {reference} IMAGE --threshold {threshold:g} --registry {registry}"
    )
    console.say("your own images:     zoo finetune rt_detr_tiny --data FOLDER")
