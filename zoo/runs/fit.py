"""`zoo fit`: a recipe to a trained, evaluated run; also the resume of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.shards.reader import place_of
from zoo.runs import recipes
from zoo.runs.console import Console, quoted
from zoo.runs.ending import finish, noted_registration
from zoo.runs.run import Run
from zoo.runs.run_folder import LAST_FILE, METRICS_FILE, RECIPE_FILE, RUNS, holds_a_run, refuse_used
from zoo.runs.train import trained
from zoo.training.saving import BEFORE

AUTO = "auto"
MOST_NAMED = 5  # runs, in a line


def fit(
    recipe: recipes.Given | None = None,
    *,
    data: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    output: str | Path | None = None,
    preflight: bool = False,
    registry: str | Path | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> Run:
    """Trains a recipe, evaluates its best checkpoint on val, and writes scores, curves and gallery.

    >>> import zoo
    >>> recipe = zoo.recipe("rt_detr/tiny", {"model.num_classes": 4, "data.batch_size": 4})
    >>> short = {"model.schedule.global_batch_size": 4, "trainer.max_steps": 2, "trainer.max_epochs": -1}
    >>> run = zoo.fit(recipe, data="shapes", overrides=short, output="run", console=zoo.Silent())
    >>> sorted(run.scores["val"]["per_class"])
    ['circle', 'cross', 'square', 'triangle']
    >>> run = zoo.fit(resume="run", overrides={"trainer.max_steps": 3}, console=zoo.Silent())
    >>> [step for step, ap in run.curves["val/AP"]]
    [2, 3]

    Args:
        recipe: of `zoo.recipe`, or what that takes. None with `resume`: the run's own.
        data: the recipe's `data.root`, a folder or the address of shards.
        overrides: dotted keys and their values.
        resume: a checkpoint, a run folder, `last` for the newest run's, or `auto` for that of `output` if there is
            one: a command that is started again and again.
        output: run folder; by default a new one under mlruns/checkpoints.
        preflight: overfit four images first, and name the fault if that fails.
        registry: folder in which `init_from.source` is looked up; ZOO_REGISTRY or ./mlruns/registry by default.
        trust: whether the recipe may name callbacks and loggers besides Lightning's harmless ones; they are imported.
        console: prints the progress; None: on stdout.

    Raises:
        ValueError, OSError: the recipe, the data or the weights are at fault, or the folder holds another run.
        FloatingPointError: the training diverged.
        KeyboardInterrupt: after last.ckpt is written; says how to go on.
    """
    console = console or Console()
    checkpoint, folder = find_checkpoint(resume, None if output is None else Path(output))
    if resume == "last" and output is None and folder is not None:
        console.say(f"last        {told_of_newest(folder, changed=bool(recipe or overrides or data))}")
    if checkpoint is None and folder is not None:
        refuse_used(folder, trust)
    if not recipe and checkpoint is not None and folder is not None:
        recipe = str(recipe_beside(checkpoint, folder))
    changes = dict(overrides or {})
    if data is not None:
        changes["data.root"] = place_of(data)
    registration = None if checkpoint is None or folder is None else noted_registration(folder)
    complete = recipes.read(recipe or (), changes)
    with trained(complete, folder, checkpoint, preflight, registry, console, trust) as done:
        return finish(done, registration, console)


def recipe_beside(resume: Path, folder: Path) -> Path:
    """The recipe of the run folder, else that of the folder that the checkpoint lies in.

    Raises:
        FileNotFoundError: neither has one.
    """
    places = list(dict.fromkeys([folder / RECIPE_FILE, resume.absolute().parent / RECIPE_FILE]))
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"there is no {' and no '.join(map(str, places))}; name the recipe of the checkpoint with --config"
    )


def find_checkpoint(ckpt_path: str | Path | None, folder: Path | None) -> tuple[Path | None, Path | None]:
    """(checkpoint to resume, run folder). `last` is that of the folder, or of the newest run; `auto` may be none.

    Raises:
        FileNotFoundError: naming where it looked.
        FileExistsError: the run folder is that of another run.
        ValueError: the file is no checkpoint that a training can go on from.
    """
    if ckpt_path is None:
        return None, folder
    if ckpt_path == AUTO:
        if folder is None:
            raise ValueError(
                "--ckpt-path auto needs --output FOLDER, where the run is found when it is started again"
            )
        return (folder / LAST_FILE if is_there(folder / LAST_FILE) else None), folder
    if ckpt_path != "last":
        path = Path(ckpt_path).expanduser()
        if is_there(path / LAST_FILE):
            path = path / LAST_FILE
        if not is_there(path):
            what = f" or has no {LAST_FILE}" if path.is_dir() else ""
            raise FileNotFoundError(f"--ckpt-path {path} does not exist{what}")
        refuse_weights_alone(path)
        beside = path.resolve().parent
        if folder is not None and folder.resolve() != beside and holds_a_run(folder):
            raise FileExistsError(
                f"--output {folder} holds another run than {path}; name a new folder, or leave --output out "
                "to go on beside the checkpoint"
            )
        return path, folder or beside
    found = (
        [folder / LAST_FILE]
        if folder
        else sorted(RUNS.glob(f"*/{LAST_FILE}"), key=lambda p: p.stat().st_mtime)
    )
    if not found or not is_there(found[-1]):
        raise FileNotFoundError(f"--ckpt-path last: no {LAST_FILE} in {folder or RUNS}; name the file")
    return found[-1], found[-1].parent


def told_of_newest(folder: Path, changed: bool) -> str:
    """Which run `last` has taken, and which others are not finished.

    Raises:
        ValueError: it is finished, and nothing is changed that would train it for longer.
    """
    every = list(RUNS.glob(f"*/{LAST_FILE}"))
    open_ = [last.parent.name for last in every if last.parent != folder and not is_finished(last.parent)]
    others = f"; not finished there: {', '.join(sorted(open_)[-MOST_NAMED:])}" if open_ else ""
    elsewhere = f"a run with an --output of its own: zoo fit --ckpt-path last --output FOLDER{others}"
    if is_finished(folder) and not changed:
        raise ValueError(
            f"--ckpt-path last: the newest run in {RUNS} is finished, {folder.name}; to train it for longer: zoo fit "
            f"--ckpt-path {quoted(folder)} --trainer.max_epochs N; {elsewhere}"
        )
    return f"{folder}, the newest of {len(every)} in {RUNS}; {elsewhere}"


def is_finished(folder: Path) -> bool:
    """Whether the run has its scores, and has not gone on since."""
    scores, last = folder / METRICS_FILE, folder / LAST_FILE
    return scores.is_file() and not (last.is_file() and last.stat().st_mtime > scores.stat().st_mtime)


def find_run(resume: str | None, output: str | Path | None) -> tuple[Path | None, Path | None]:
    """`find_checkpoint` for a fine-tuning, which begins a run and goes on with none but its own.

    Raises:
        ValueError: another word than `auto`.
    """
    if resume not in (None, AUTO):
        raise ValueError(
            f"zoo finetune goes on with the run in --output alone: --ckpt-path auto; a checkpoint that you name goes "
            f"on with zoo fit --ckpt-path {quoted(resume)}"
        )
    return find_checkpoint(resume, None if output is None else Path(output))


def is_there(path: Path) -> bool:
    """Whether there is a checkpoint, or for last.ckpt the one before it, which a run takes where the last is gone."""
    return path.is_file() or (path.name == LAST_FILE and path.with_name(BEFORE).is_file())


def refuse_weights_alone(path: Path) -> None:
    """Raises ValueError for a file of weights: there is no optimizer, no schedule and no place to go on from."""
    if path.suffix == ".safetensors":
        raise ValueError(
            f"--ckpt-path {path} holds weights alone, no training to go on with; start a new one from them: "
            f"--init_from.source {quoted(path)}, or zoo finetune --weights {quoted(path)}"
        )
