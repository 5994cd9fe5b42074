"""`zoo fit`: a recipe from the command line to a trained, evaluated run; also the resume of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.cli import recipes
from zoo.cli.console import Console
from zoo.cli.report import report
from zoo.cli.training import RECIPE_FILE, RUNS, train


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
    if not configs and resume is not None and folder is not None:
        configs = [str(folder / RECIPE_FILE)]
    recipe = recipes.read(configs, overrides)
    run = train(recipe, folder, resume, overfit_first, None, console)
    console.result(report(run, ["val"], console))


def find_checkpoint(ckpt_path: str | None, folder: Path | None) -> tuple[Path | None, Path | None]:
    """(checkpoint to resume, run folder). `last` is that of the folder, or of the newest run.

    Raises:
        FileNotFoundError: naming where it looked.
    """
    if ckpt_path is None:
        return None, folder
    if ckpt_path != "last":
        path = Path(ckpt_path)
        if not path.is_file():
            raise FileNotFoundError(f"--ckpt-path {path} does not exist")
        return path, folder or path.resolve().parent
    found = (
        [folder / "last.ckpt"]
        if folder
        else sorted(RUNS.glob("*/last.ckpt"), key=lambda p: p.stat().st_mtime)
    )
    if not found or not found[-1].is_file():
        raise FileNotFoundError(f"--ckpt-path last: no last.ckpt in {folder or RUNS}; name the file")
    return found[-1], found[-1].parent
