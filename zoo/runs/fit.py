"""`zoo fit`: a recipe from the command line to a trained, evaluated run; also the resume of one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.runs import recipes
from zoo.runs.console import Console
from zoo.runs.report import report
from zoo.runs.run_folder import LAST_FILE, RECIPE_FILE, RUNS, holds_a_run, refuse_used
from zoo.runs.train import train


def fit_recipe(
    *,
    configs: Sequence[str],
    overrides: Iterable[tuple[str, str]],
    ckpt_path: str | None,
    folder: Path | None,
    overfit_first: bool,
    console: Console,
) -> None:
    """`zoo fit`: merge, train, evaluate the best checkpoint on val, write the report."""
    resume, folder = find_checkpoint(ckpt_path, folder)
    if resume is None and folder is not None:
        refuse_used(folder)
    if not configs and resume is not None and folder is not None:
        configs = [str(recipe_beside(resume, folder))]
    recipe = recipes.read(configs, overrides)
    run = train(recipe, folder, resume, overfit_first, None, console)
    console.result(report(run, ["val"], console))


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


def find_checkpoint(ckpt_path: str | None, folder: Path | None) -> tuple[Path | None, Path | None]:
    """(checkpoint to resume, run folder). `last` is that of the folder, or of the newest run.

    Raises:
        FileNotFoundError: naming where it looked.
        FileExistsError: the run folder is that of another run.
        ValueError: the file is no checkpoint that a training can go on from.
    """
    if ckpt_path is None:
        return None, folder
    if ckpt_path != "last":
        path = Path(ckpt_path).expanduser()
        if (path / LAST_FILE).is_file():
            path = path / LAST_FILE
        if not path.is_file():
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
    if not found or not found[-1].is_file():
        raise FileNotFoundError(f"--ckpt-path last: no {LAST_FILE} in {folder or RUNS}; name the file")
    return found[-1], found[-1].parent


def refuse_weights_alone(path: Path) -> None:
    """Raises ValueError for a file of weights: there is no optimizer, no schedule and no place to go on from."""
    if path.suffix == ".safetensors":
        raise ValueError(
            f"--ckpt-path {path} holds weights alone, no training to go on with; start a new one from them: "
            f"--init_from.source {shlex.quote(str(path))}, or zoo finetune --weights {shlex.quote(str(path))}"
        )
