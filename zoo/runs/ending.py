"""What a command that trains ends with, also when it was interrupted and is gone on with."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import DetectionDataModule
from zoo.runs.console import Console, quoted
from zoo.runs.register import register
from zoo.runs.report import report
from zoo.runs.run import Run
from zoo.runs.run_folder import noted
from zoo.runs.train import Registration, TrainedRun


def finish(run: TrainedRun, registration: Registration | None, console: Console) -> Run:
    """The report; and of a fine-tuning the test split's too, the registration and the line to try it."""
    test = registration is not None and "test" in run.data.read().splits
    splits = ["val", "test"] if test else ["val"]
    document = report(run, splits, console)
    run.stop.obey_if_asked()
    if registration is None:
        name = f"{run.recipe.get('about', {}).get('name', 'model')}.mine"
        console.say(f"\ntry it:\n  zoo predict {quoted(run.folder)} {quoted(example_image(run.data))}")
        console.say(f"publish it:\n  zoo publish {quoted(run.folder)} --name {name}")
        say_page(run, console)
        return Run(run.folder, document)
    registry = None if registration.registry is None else Path(registration.registry)
    name, parent = registration.name, registration.parent
    registered = register(run, document, splits[-1], name, registry, parent, console)
    if registered is not None:
        document["registered"] = registered
        where = "" if registry is None else f" --registry {quoted(registry)}"
        console.say(f"\ntry it:\n  zoo predict {registered} {quoted(example_image(run.data))}{where}")
        console.say(f"make it the one that NAME@champion means:\n  zoo alias {registered} champion{where}")
        say_page(run, console)
    return Run(run.folder, document)


def say_page(run: TrainedRun, console: Console) -> None:
    """How to look at the run in MLflow."""
    if run.tracker is not None:
        uri = run.tracker.store.uri
        page = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {quoted(uri)}"
        console.say(f"look at it:\n  {page}")


def noted_registration(folder: Path) -> Registration | None:
    """What the fine-tuning that began in the folder was to end with; None if none did."""
    facts = noted(folder).get("register")
    if not isinstance(facts, dict) or set(facts) != set(Registration._fields):
        return None
    return Registration(**facts)


def example_image(data: DetectionDataModule) -> str:
    """An image of the val split, for the line to copy; a name to replace where it lies inside a shard."""
    index = data.read().splits["val"]
    return "IMAGE" if index.store is not None else str(index.path(0))
