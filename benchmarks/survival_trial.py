"""A training that is ended again and again, beside the one that was left alone: what `survival.py` and its cases do."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

import zoo.runs.ending  # noqa: F401 (what the children need)
from zoo.cli.main import run_command
from zoo.runs import recipes
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.tracking.backend import connect, resolve_store

ROOT = Path(__file__).resolve().parents[1]
ORPHAN_SECONDS = 10.0
LONGEST_SECONDS = 120.0  # of one process
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "zoo", "callbacks")
MODULES = "modules.txt"  # that a process which ended by itself had imported
TEMPORARY = re.compile(r"\.tmp$|\.link$|\.part$")


@dataclass
class Row:
    """A training and what ends it, again and again.

    Attributes:
        changes: of the family's tiny recipe, by dotted keys.
        signals: what is sent; several in a row, 50 ms after each other.
        early: the share of the training in which it is sent; small shares make long chains.
        new_store: MLflow's database is made by the training itself, else it lies there.
        trial: what is done with it; None: `Trial`.
        to: who is sent the signals: the `first` process, the `last` that it started, or `all`.
        place: what lies on a disk that is full.
    """

    name: str
    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    signals: tuple[int, ...] = (KILL,)
    early: float = 1.0
    new_store: bool = False
    trial: type[Trial] | None = None
    to: str = "first"
    place: str = ""

    kills: int = 0
    resumes: int = 0
    chains: int = 0
    longest_chain: int = 0
    records_lost: int = 0
    stalled: float = 0.0  # seconds that a slow tracker cost, at most
    differences: list[str] = field(default_factory=list)


def tiny(family: str, data: Path) -> dict[str, Any]:
    """The family's first recipe, small, on `data`: 6 steps of 4 images an epoch, two epochs."""
    keys = [key for key in recipes.bundled() if key.startswith(f"{family}/")]
    key = min(keys, key=lambda key: ("coco" not in key, key))
    recipe = recipes.load(recipes.resolve(key))
    arguments = recipe["model"]["init_args"]
    overlay = ROOT / "tests" / "tiny" / f"{family}.yaml"
    for name, changes in (yaml.safe_load(overlay.read_text()) if overlay.is_file() else {}).items():
        if name in arguments:
            arguments[name] = arguments[name] | changes if isinstance(changes, dict) else changes
    arguments["num_classes"] = 4
    arguments["schedule"] |= {"global_batch_size": 4, "warmup_steps": 5}
    arguments["schedule"] |= (
        {"flat_epochs": 1, "tail_epochs": 0, "restart_epoch": None}
        if arguments["schedule"].get("decay") == "flat_cosine"
        else {"drop_epochs": [1]}
    )
    contract = recipe["data"]["init_args"]["input"]
    contract["size"] = [64, 64] if contract["resize"] == "stretch" else [64, 96]
    recipe["data"] = {
        "class_path": "datamodules.custom.CustomDataModule",
        "init_args": {
            "root": str(data), "input": contract, "seed": 0, "batch_size": 4, "eval_batch_size": 4,
            "num_workers": 0, "train_transform": recipe["data"]["init_args"]["train_transform"],
        },
    }  # fmt: skip
    recipe["trainer"] |= {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "check_val_every_n_epoch": 1,
    }  # fmt: skip
    recipe["init_from"] = {"source": "none", "head": "keep"}
    return recipe


class Start:
    """A process with `zoo ARGUMENTS` in `folder`, in a session of its own.

    Args:
        folder: its working folder.
        arguments: of the command.
        environment: variables of it.
    """

    numbers = itertools.count()

    def __init__(self, folder: Path, arguments: list[str], **environment: str) -> None:
        self.log = folder / f"log-{next(self.numbers):04}.txt"
        self.begun = time.time()
        self.ended: float | None = None
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(folder, arguments, environment)

    def _child(self, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        code = 99
        try:
            os.setsid()
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(folder)
            os.environ.update({"ZOO_CACHE": str(folder / "cache"), **environment})
            code = self.command(arguments)
            with contextlib.suppress(OSError):  # a disk that is full
                (folder / MODULES).write_text("\n".join(sys.modules))
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def command(self, arguments: list[str]) -> int:
        """In the new process; its exit code."""
        return run_command(arguments)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within these."""
        until = time.time() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.ended = time.time()
            elif time.time() < until:
                time.sleep(0.002)
            else:
                break
        return self.code is not None

    def send(self, signals: tuple[int, ...], to: str = "first") -> bool:
        """Whether it still lived, so that it was ended by them."""
        for number in signals:
            if self.wait(0):
                return number != signals[0]
            there = {self.pid, *self.living()}
            for pid in {"first": {self.pid}, "last": {max(there)}, "all": there}[to]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            self.wait(0.05 if len(signals) > 1 else 0)
        return True

    def said(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def living(self) -> list[int]:
        """Processes of its session that are there."""
        found = []
        for place in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = place.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(place.parent.name))
        return found


class Trial:
    """The trainings of one row."""

    longest = LONGEST_SECONDS

    def __init__(self, row: Row, work: Path, seed: int) -> None:
        self.row = row
        self.random = random.Random(f"{seed}/{row.family}/{row.name}")
        self.work = work / re.sub(r"[^a-z0-9]+", "_", f"{row.family} {row.name}".lower())
        self.recipe = tiny(row.family, work / "shapes")
        recipes.apply_overrides(self.recipe, row.changes)
        self.recipe["data"]["init_args"]["root"] = str(work / row.changes.get("data.root", "shapes"))
        self.ended: list[Start] = []

    def run(self, kills: int) -> None:
        """The training left alone, then chains until there were so many kills."""
        base = self._folder("alone")
        self._alone(self._start(base, self._arguments(base)))
        import_all(base)
        timed = self._folder("timed")
        seconds = self._alone(self._start(timed, self._arguments(timed)))
        while self.row.kills < kills:
            chain = self._folder(f"chain{self.row.chains}")
            before = self.row.kills
            if self._chain(chain, seconds, kills):
                self._compare(base, chain)
                shutil.rmtree(chain) if not self.row.differences else None
            self.row.chains += 1
            self.row.longest_chain = max(self.row.longest_chain, self.row.kills - before)
        for start in self.ended:
            self._look_for_orphans(start, wait=True)

    def _start(self, folder: Path, arguments: list[str]) -> Start:
        return Start(folder, arguments)

    def _alone(self, start: Start) -> float:
        """Seconds that a process takes which nothing ends."""
        start.wait(self.longest)
        if start.code != 0:
            raise RuntimeError(f"the training itself fails: {start.said()[-2000:]}")
        return start.ended - start.begun  # type: ignore[operator]

    def _wait(self, start: Start, seconds: float) -> None:
        """Until the moment at which it is ended."""
        start.wait(self.random.uniform(0, self.row.early * seconds))

    def _stuck(self, start: Start) -> str:
        """What is told of a process that does not end."""
        return ""

    def _folder(self, name: str) -> Path:
        folder = self.work / name
        folder.mkdir(parents=True)
        return self._filled(folder)

    def _filled(self, folder: Path) -> Path:
        (folder / "recipe.yaml").write_text(recipes.dump(self.recipe))
        if not self.row.new_store:
            (folder / "mlruns").mkdir(exist_ok=True)
            (folder / "mlruns" / "mlflow.db").write_bytes(empty_database())
        return folder

    def _arguments(self, folder: Path) -> list[str]:
        if (folder / "run" / "last.ckpt").is_file():
            return ["fit", "--ckpt-path", "last", "--output", "run"]
        return ["fit", "--config", "recipe.yaml", "--output", "run"]

    def _chain(self, folder: Path, seconds: float, kills: int) -> bool:
        """Starts and ends until the training has run through; whether it has."""
        arguments = self._arguments(folder)
        first = True
        while True:
            start = self._start(folder, arguments)
            self.row.resumes += not first
            first = False
            if self.row.kills < kills:
                self._wait(start, seconds)
                if start.code is None and start.send(self.row.signals, self.row.to):
                    self.row.kills += 1
            if not start.wait(self.longest):
                stacks = self._stuck(start)
                start.send((KILL,), "all")
                start.wait(10)
                told = f"no end within {self.longest:.0f} s\n{start.said()[-600:]}\n{stacks}"
                return self._fault(f"{start.log.name}: {told}")
            self._look_for_temporaries(folder, start)
            self._look_for_orphans(start)
            if start.code == 0:
                return True
            killed = start.code == -KILL and KILL in self.row.signals
            if not killed and not self._ended_as_asked(folder, start):
                return False
            arguments = self._next(folder, start)

    def _ended_as_asked(self, folder: Path, start: Start) -> bool:
        expected = {128 + number for number in self.row.signals if number != KILL}
        if start.code not in expected:
            return self._fault(f"{start.log.name}: exit code {start.code}: {start.said()[-1500:]}")
        # a second Ctrl-C raises at once; Python reports and drops what is raised while it frees an object
        if "Traceback" in re.sub(r"Exception ignored in:.*\nTraceback", "", start.said()):
            self._fault(f"{start.log.name}: a traceback")
        return True

    def _next(self, folder: Path, start: Start) -> list[str]:
        """The line that it says, where it could say one; it names the checkpoint, so it is also followed."""
        lines = re.findall(r"go on with: (zoo fit .*)$", start.said(), re.MULTILINE)
        if lines and start.code != -KILL:
            return shlex.split(lines[-1])[1:]
        if (folder / "run" / "last.ckpt").is_file() and start.code != -KILL and "step" in start.said():
            self._fault(f"{start.log.name}: no line says how to go on: {start.said()[-800:]}")
        return self._arguments(folder)

    def _look_for_temporaries(self, folder: Path, start: Start) -> None:
        if start.code == -KILL and start.ended - start.begun < 2:  # type: ignore[operator]
            return  # it may not have come to it
        for place in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if TEMPORARY.search(place.name) and place.stat().st_mtime < start.begun:
                    self._fault(f"{start.log.name}: {place.relative_to(folder)} is older than it")

    def _look_for_orphans(self, start: Start, wait: bool = False) -> None:
        if start not in self.ended:
            self.ended.append(start)
        for one in list(self.ended):
            age = time.time() - (one.ended or 0)
            if wait and one is start and one.living():
                time.sleep(max(0.0, ORPHAN_SECONDS - age))
                age = ORPHAN_SECONDS
            if age >= ORPHAN_SECONDS:
                for pid in one.living():
                    self._fault(f"{one.log.name}: process {pid} lives {age:.0f} s after it")
                if not wait:
                    self.ended.remove(one)

    def _compare(self, base: Path, chain: Path) -> None:
        one, two = base / "run", chain / "run"
        names = [sorted(p.name for p in folder.glob("*.ckpt")) for folder in (one, two)]
        if names[0] != names[1]:
            self._fault(f"{chain.name}: checkpoints {names[1]} instead of {names[0]}")
            return
        for name in names[0]:
            mine, theirs = read_checkpoint(one / name), read_checkpoint(two / name)
            for part in COMPARED:
                if not same(mine[part], theirs[part]):
                    self._fault(f"{chain.name}: {part} of {name} differs")
        mine, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
        if mine["val"] != theirs["val"] or mine["step"] != theirs["step"]:
            self._fault(f"{chain.name}: scores {theirs['val']['AP']} instead of {mine['val']['AP']}")
        if (base / "mlruns" / "mlflow.db").is_file():
            self._compare_records(base, chain)

    def _compare_records(self, base: Path, chain: Path) -> None:
        (mine, _), (theirs, states) = records(base), records(chain)
        if len(theirs) != 1:
            self._fault(f"{chain.name}: {len(theirs)} MLflow runs with metrics")
        if states != ["FINISHED"]:
            self._fault(f"{chain.name}: MLflow's runs are {states}")
        expected = Counter(next(iter(mine.values())))
        found = Counter(record for run in theirs.values() for record in run)
        lost, more = set(expected) - set(found), set(found - expected)
        self.row.records_lost += len(lost)
        for told, many in (("lost", lost), ("too many", more)):
            if many:
                self._fault(f"{chain.name}: {len(many)} records {told}, e.g. {min(many)}")

    def _fault(self, text: str) -> bool:
        self.row.differences.append(text)
        return False


def records(folder: Path) -> tuple[dict[str, list[tuple[str, int, float]]], list[str]]:
    """({run: (metric, step, value) of each record}, state of each run) of an MLflow database."""
    with contextlib.closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        found: dict[str, list[tuple[str, int, float]]] = {}
        query = "SELECT run_uuid, key, step, value, is_nan FROM metrics ORDER BY step, key"
        for run, key, step, value, is_nan in database.execute(query):
            found.setdefault(run, []).append((key, step, -1.0 if is_nan else value))
        states = [row[0] for row in database.execute("SELECT status FROM runs")]
    return found, states


def import_all(folder: Path) -> None:
    """What a training has imported, so that those which are forked from here need not: it takes half their time."""
    for name in (folder / MODULES).read_text().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def same(one: Any, two: Any) -> bool:
    """Whether all tensors and values are equal, bit by bit; NaN is equal to NaN."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and bool(((one == two) | (one != one)).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return one == two or (one != one and two != two)


@functools.cache
def empty_database() -> bytes:
    """MLflow's, made in a process of its own: a forked connection would be shared."""
    with tempfile.TemporaryDirectory() as folder:
        pid = os.fork()
        if pid == 0:
            connect(resolve_store(folder))
            os._exit(0)
        os.waitpid(pid, 0)
        return Path(folder, "mlflow.db").read_bytes()
