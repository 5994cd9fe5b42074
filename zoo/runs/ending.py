"""What a command that trains ends with, also when it was interrupted and is gone on with."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import DetectionDataModule
from zoo.runs.console import Console, is_rank_zero, quoted
from zoo.runs.register import register
from zoo.runs.report import report
from zoo.runs.run import Run
from zoo.runs.run_folder import METRICS_FILE, noted
from zoo.runs.train import Registration, TrainedRun


def finish(run: TrainedRun, registration: Registration | None, console: Console) -> Run:
    """The report; and of a fine-tuning the test split's too, the registration and the line to try it."""
    test = registration is not None and "test" in run.data.read().splits
    splits = ["val", "test"] if test else ["val"]
    document = report(run, splits, console)
    if is_rank_zero():  # the others are done
        run.stop.obey_if_asked()
    if registration is None:
        name = f"{run.recipe.get('about', {}).get('name', 'model')}.mine"
        console.say(f"\ntry it:\n  zoo predict {quoted(run.folder)} {quoted(example_image(run.data))}")
        console.say(f"publish it:\n  zoo publish {quoted(run.folder)} --name {name}")
        console.say("look at it:\n  " + "\n  ".join(page_of(run)))
        return Run(run.folder, document)
    registry = None if registration.registry is None else Path(registration.registry)
    name, parent = registration.name, registration.parent
    registered = register(run, document, splits[-1], name, registry, parent, console)
    if registered is not None:
        document["registered"] = registered
        where = "" if registry is None else f" --registry {quoted(registry)}"
        console.say(f"\ntry it:\n  zoo predict {registered} {quoted(example_image(run.data))}{where}")
        console.say(f"make it the one that NAME@champion means:\n  zoo alias {registered} champion{where}")
        console.say("look at it:\n  " + "\n  ".join(page_of(run)))
    return Run(run.folder, document)


def page_of(run: TrainedRun) -> list[str]:
    """How to look at the run in MLflow: the command that serves its pages, where no server does, and the address."""
    if run.tracker is None:
        return [str(run.folder / METRICS_FILE)]
    uri, page = run.tracker.store.uri, run.tracker.page()
    if uri.startswith("http"):
        return [f"{uri.rstrip('/')}/{page}"]
    return [f"mlflow ui --backend-store-uri {quoted(uri)}", f"http://127.0.0.1:5000/{page}"]


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
