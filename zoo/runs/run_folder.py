"""The folder of a run: names of its files, and checks that no two runs share one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from zoo.runs.console import is_rank_zero, quoted
from zoo.storage.durable import sweep_temporaries, write_json

RUNS = Path("mlruns", "checkpoints")
RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"  # what a resume goes on with: MLflow's ids of the run, and what a fine-tuning ends with
LAST_FILE = "last.ckpt"
METRICS_FILE = "metrics.json"
LOCK_FILE = ".run.lock"
FOLDER_VARIABLE = "ZOO_RUN_FOLDER"  # tells the processes that Lightning starts where rank zero writes


def new_folder(name: str) -> Path:
    """Makes a new run folder; processes that Lightning starts get the same one."""
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    first = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not is_rank_zero():
        return first  # this process writes nothing; rank zero broadcasts the folder
    number = 1
    while True:
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return folder


def holds_a_run(folder: Path) -> bool:
    """Whether a training has left something in `folder` that another would overwrite."""
    return folder.is_dir() and (any(folder.glob("*.ckpt")) or (folder / METRICS_FILE).exists())


def document_of(folder: Path) -> dict[str, Any]:
    """metrics.json of a finished run, with the checkpoint where it lies now: the folder may have been moved.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: the file is not as a run writes it.
    """
    file = folder / METRICS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {METRICS_FILE}: it is no run folder, or its run is not finished; name a "
            "checkpoint file"
        )
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        beside = folder / Path(document["checkpoint"]).name
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} names no checkpoint ({error!r:.80}); name a checkpoint file") from error
    return document | ({"checkpoint": str(beside)} if beside.is_file() else {})


def refuse_used(folder: Path, trusted: bool = False) -> None:
    """Raises FileExistsError where a new run may not be written; names the way to go on with the old one."""
    if FOLDER_VARIABLE in os.environ or not is_rank_zero():
        return
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output {folder} is a file; name a folder")
    if not holds_a_run(folder):
        return
    if (folder / LAST_FILE).is_file():
        way = f"go on with it: zoo fit --ckpt-path last --output {quoted(folder)}"
        way += " --trust-recipe" if trusted else ""
    else:
        way = "or remove it"
    raise FileExistsError(f"--output {folder} holds a run already; name another folder, {way}")


def noted(folder: Path) -> dict[str, Any]:
    """What `note` has written; nothing where that cannot be read."""
    try:
        facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def note(folder: Path, **facts: Any) -> None:
    """Adds to what a resume will find."""
    write_json(folder / RUN_FILE, noted(folder) | facts)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Locks `folder` against other trainings on this machine; the lock ends with the process.

    What a process left half written there is removed.

    Raises:
        FileExistsError: another training holds the lock.
    """
    if not is_rank_zero() or os.environ.get(FOLDER_VARIABLE) == str(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(f"{folder}: another run is writing there now; name another --output") from None
    except NotImplementedError:
        pass  # this file system knows no locks
    os.environ[FOLDER_VARIABLE] = str(folder)
    sweep_temporaries(folder, every=lock.is_locked)
    try:
        yield
    finally:
        os.environ.pop(FOLDER_VARIABLE, None)
        lock.release()
