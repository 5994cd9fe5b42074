"""Cases of `survival.py` besides one process that is ended: runs at once, full disks, a slow tracker."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from survival_trial import KILL, ROOT, Start, Trial, import_all, records

from datamodules.kept import large
from zoo.registry.store import LocalRegistry
from zoo.registry.weights import released_from_checkpoint, save_weights
from zoo.runs import recipes
from zoo.runs.run_folder import RECIPE_FILE, RUN_FILE
from zoo.storage.durable import sha256_of

sys.path.insert(0, str(ROOT / "tests" / "support"))
SEEDS = (0, 1, 2)
FULL = os.strerror(errno.ENOSPC)
Sent = dict[str, set[tuple[int, str, float]]]
STALL_SECONDS = (
    40.0  # that a tracker may cost a whole training: a few calls, then rests; files and a last replay
)


class Together(Trial):
    """Three fine-tunings begun at once, in one folder, under one name; a fourth that would write into one of theirs.

    Every other time one is killed and gone on with. Each has to register what its seed gives when it is alone.
    """

    def run(self, kills: int) -> None:
        """So many times."""
        alone = {}
        for seed in SEEDS:
            folder = self._folder(f"alone{seed}")
            seconds = self._alone(Start(folder, self._finetune(seed)))
            (alone[seed],) = registered(folder)
            import_all(folder)
        while self.row.kills < kills:
            folder = self._folder(f"together{self.row.kills}")
            self._three(folder, seconds, killing=self.row.kills % 2 == 1)
            self._check(folder, alone)
            self.row.kills += 1

    def _finetune(self, seed: int) -> list[str]:
        return fine_tuning(self.work.parent / "shapes", seed)

    def _three(self, folder: Path, seconds: float, killing: bool) -> None:
        starts = {seed: Start(folder, self._finetune(seed)) for seed in SEEDS}
        self.row.chains += len(starts)
        victim, fourth = self.random.choice(SEEDS), None
        moment = time.time() + self.random.uniform(0, 2 * seconds)
        while not all([start.wait(0) for start in starts.values()]):
            time.sleep(0.002)
            runs = self._runs(folder)
            for run in runs.values():
                with contextlib.suppress(FileNotFoundError):
                    self._whole(run / RUN_FILE)
            if fourth is None and runs:
                run = min(runs.values())
                fourth = Start(folder, ["fit", "--config", str(run / RECIPE_FILE), "--output", str(run)])
            if killing and time.time() > moment:
                killing = not starts[victim].send((KILL,))
        assert fourth is not None
        fourth.wait(self.longest)
        lines = [line for line in fourth.said().splitlines() if line.startswith("error: ")]
        if fourth.code != 2 or len(lines) != 1 or "Traceback" in fourth.said():
            self._fault(f"{folder.name}: a fourth run into one of the folders: {fourth.code}, {lines}")
        for seed, start in starts.items():
            if start.code == -KILL:
                self._again(folder, seed)
            elif start.code != 0:
                self._fault(f"{start.log.name}: exit code {start.code}: {start.said()[-800:]}")

    def _again(self, folder: Path, seed: int) -> None:
        """Goes on with the one that was killed; one that had saved nothing is begun again, in a new folder."""
        run = self._runs(folder).get(seed)
        if run is not None and (run / "last.ckpt").is_file():
            again = Start(folder, ["fit", "--ckpt-path", str(run)])
        else:
            if run is not None:
                (run / RECIPE_FILE).unlink()
            again = Start(folder, self._finetune(seed))
        self.row.resumes += 1
        if not again.wait(self.longest) or again.code != 0:
            self._fault(f"{again.log.name}: exit code {again.code}: {again.said()[-800:]}")

    def _runs(self, folder: Path) -> dict[int, Path]:
        found = {}
        for file in folder.glob(f"mlruns/checkpoints/*/{RECIPE_FILE}"):
            with contextlib.suppress(FileNotFoundError):
                found[int(recipes.load(file)["seed_everything"])] = file.parent
        return found

    def _whole(self, file: Path) -> None:
        text = file.read_text()
        try:
            json.loads(text)
        except ValueError:
            self._fault(f"{file}: half of it: {text[:80]!r}")

    def _check(self, folder: Path, alone: dict[int, str]) -> None:
        store = LocalRegistry(folder / "mlruns" / "registry")
        runs, name = self._runs(folder), store.names()[0]
        versions = {}
        for number in store.versions(name):
            place = store.folder(name, number)
            versions[sha256_of(place / "model.safetensors")] = recipes.load(place / RECIPE_FILE)
        if len(runs) != len(SEEDS) or store.versions(name) != [1, 2, 3]:
            self._fault(f"{folder.name}: {len(runs)} folders, versions {store.versions(name)}")
        for seed in SEEDS:
            own = versions.get(alone[seed])
            if own is None or own["seed_everything"] != seed:
                self._fault(f"{folder.name}: seed {seed} has not registered its own weights")
            if seed in runs:
                document = json.loads((runs[seed] / "metrics.json").read_text())
                save_weights(released_from_checkpoint(document["checkpoint"]).state, folder / "of_run")
                if sha256_of(folder / "of_run") != alone[seed]:
                    self._fault(f"{folder.name}: the run of seed {seed} has other weights")
        found, _ = records(folder)
        counts = sorted(len(run) for run in found.values())
        if len(counts) < len(SEEDS) or len(set(counts[-3:])) != 1:
            self._fault(f"{folder.name}: MLflow's runs have {counts} records")


class Disk(Trial):
    """A disk that is full at some moment: a real, small file system, with a file that leaves little room on it."""

    def run(self, kills: int) -> None:
        """Until so many have found no room; then there is room, and what was said is followed."""
        base, new = self._folder("alone"), self._folder("new")
        seconds = self._alone(self._start(base, self._arguments(base)))
        import_all(base)
        before = _size(new / self.row.place)
        growth = _size(base / self.row.place) - before
        for number in range(4 * kills):
            if self.row.kills == kills:
                return
            folder = self.work / f"full{number}"
            place = folder / self.row.place
            place.mkdir(parents=True)
            room = int(self.random.uniform(0, 1.2 * growth))
            with mounted(place, before + 3 * growth + (8 << 20)):
                self._filled(folder)
                filling = fill(place, room)
                if self._full(folder, seconds, filling):
                    self._compare(base, folder)
            self.row.chains += 1

    def _full(self, folder: Path, seconds: float, filling: Path) -> bool:
        """Whether it came to its end, with room or after it was made."""
        start = self._start(folder, self._arguments(folder))
        if self._goes_on():
            start.wait(self.random.uniform(0, seconds))
            filling.unlink()
        start.wait(self.longest)
        said = start.said()
        self.row.kills += FULL in said or "disk is full" in said
        for word in ("records cannot be kept", "is not kept"):
            if said.count(word) > 1:
                self._fault(f"{start.log.name}: it says {said.count(word)} times that {word}")
        if start.code == 0:
            return True
        lines = re.findall(r"^error: .*$", said, re.MULTILINE)
        if (
            self._goes_on()
            or start.code != 2
            or len(lines) != 1
            or FULL not in lines[0]
            or "Traceback" in said
        ):
            return self._fault(f"{start.log.name}: exit code {start.code}: {said[-1500:]}")
        filling.unlink()
        again = self._start(folder, self._next(folder, start))
        self.row.resumes += 1
        if not again.wait(self.longest) or again.code != 0:
            return self._fault(f"{again.log.name}: exit code {again.code}: {again.said()[-1500:]}")
        return True

    def _goes_on(self) -> bool:
        """Whether a training needs no room there; then some is made while it trains."""
        return self.row.place == "mlruns"


class Index(Disk):
    """The kept index of a data set that counts as large finds no room: it is read without, which is said once."""

    def _start(self, folder: Path, arguments: list[str]) -> Start:
        count, large.LARGE_COUNT = large.LARGE_COUNT, 0  # in the process that is forked
        try:
            return super()._start(folder, arguments)
        finally:
            large.LARGE_COUNT = count

    def _full(self, folder: Path, seconds: float, filling: Path) -> bool:
        start = self._start(folder, self._arguments(folder))
        start.wait(self.longest)
        told = start.said().count("is not kept, for")
        self.row.kills += told > 0
        if start.code != 0 or told > 1:
            return self._fault(
                f"{start.log.name}: exit code {start.code}, told {told} times: {start.said()[-1500:]}"
            )
        return True


class Publishing(Disk):
    """A fine-tuning whose registry finds no room, and that is gone on with as it says."""

    def _arguments(self, folder: Path) -> list[str]:
        return fine_tuning(self.work.parent / "shapes", 0)

    def _next(self, folder: Path, start: Start) -> list[str]:
        found = super()._next(folder, start)
        if found[0] != "fit":
            self._fault(f"{start.log.name}: no line says how to go on: {start.said()[-300:]}")
        return found

    def _compare(self, base: Path, chain: Path) -> None:
        mine, theirs = registered(base), registered(chain)
        if mine != theirs:
            self._fault(f"{chain.name}: registered {theirs} instead of {mine}")
        if list(chain.glob("mlruns/registry/.staging*")):
            self._fault(f"{chain.name}: a part of a version is left")
        self._compare_records(base, chain)


class SlowTracker(Trial):
    """MLflow's server begins to answer one byte a second, at a random moment; afterwards it is well again."""

    def run(self, kills: int) -> None:
        """So many times."""
        base = self._folder("alone")
        with tracker(base) as server:
            seconds = self._alone(Start(base, self._arguments(base), MLFLOW_TRACKING_URI=server.uri))
            expected = server.stop()
            import_all(base)
        while self.row.kills < kills and self.row.chains < 4 * kills:
            folder = self._folder(f"slow{self.row.chains}")
            with tracker(folder) as server:
                self._train(folder, server, seconds)
                found = server.stop()
            self._compare(base, folder)
            self._compare_sent(folder, expected, found)
            self.row.chains += 1

    def _train(self, folder: Path, server: Server, seconds: float) -> None:
        start = Start(folder, self._arguments(folder), MLFLOW_TRACKING_URI=server.uri)
        start.wait(self.random.uniform(0, 0.8 * seconds) if self.row.chains else 0)
        server.mode("drip")
        start.wait(self.longest)
        self.row.kills += "does not answer" in start.said()
        if start.code != 0:
            self._fault(f"{start.log.name}: exit code {start.code}: {start.said()[-1500:]}")
        elif start.ended - start.begun > seconds + STALL_SECONDS:  # type: ignore[operator]
            self._fault(f"{start.log.name}: {start.ended - start.begun:.0f} s instead of {seconds:.0f}")  # type: ignore[operator]
        self.row.stalled = max(self.row.stalled, (start.ended or 0) - start.begun - seconds)
        server.mode("good")
        sync = Start(folder, ["runs", "sync"], MLFLOW_TRACKING_URI=server.uri)
        sync.wait(self.longest)
        if sync.code != 0 or list((folder / "mlruns" / "spool").glob("*.jsonl")):
            self._fault(f"{sync.log.name}: exit code {sync.code}: {sync.said()[-800:]}")

    def _compare_sent(self, folder: Path, expected: Sent, found: Sent) -> None:
        if len(found) != 1:
            self._fault(f"{folder.name}: {len(found)} runs with records")
        mine, theirs = (set().union(*sent.values()) for sent in (expected, found))
        self.row.records_lost += len(mine - theirs)
        for told, many in (("lost", mine - theirs), ("too many", theirs - mine)):
            if many:
                self._fault(f"{folder.name}: {len(many)} records {told}, e.g. {min(many)}")


class Server:
    """MLflow's, of `bad_server.py`, in a process of its own; what is sent to it is kept as MLflow keeps it."""

    def __init__(self, folder: Path) -> None:
        self.uri = ""
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        self.uri = self._orders.recv()

    def mode(self, name: str) -> None:
        """How it answers from now on."""
        self._orders.send(name)
        self._orders.recv()

    def stop(self) -> Sent:
        """{run: (step, metric, value) of each record}; ends it."""
        self._orders.send("stop")
        found: Sent = self._orders.recv()
        self._process.join(5)
        return found


def serve(orders: Any) -> None:
    """Until it is told to stop."""
    from tracking_server import BadServer

    server = BadServer()
    orders.send(server.uri)
    while (order := orders.recv()) != "stop":
        server.mode = order
        orders.send(order)
    sent: Sent = {}
    for run, *record in server.records:
        sent.setdefault(run, set()).add(tuple(record))
    orders.send(sent)


@contextmanager
def tracker(folder: Path) -> Iterator[Server]:
    """A server that ends with the block."""
    server = Server(folder)
    try:
        yield server
    finally:
        server._process.kill()


@contextmanager
def mounted(place: Path, size: int) -> Iterator[None]:
    """A file system of its own (tmpfs), of so many bytes; Linux, as root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, room: int) -> Path:
    """A file that leaves so many bytes of the disk; a new database, a lock and a few names are below that."""
    filling = place / ".filling"
    with open(filling, "wb") as file:
        facts = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, max(1, facts.f_bavail * facts.f_bsize - room))
    return filling


def fine_tuning(data: Path, seed: int) -> list[str]:
    """Arguments of a short one, with the default name."""
    return [
        "finetune", "rt_detr_tiny", "--data", str(data), "--weights", "random", "--epochs", "2", "--batch-size", "4",
        "--image-size", "64", "--seed", str(seed), "--checkpoint.every_n_train_steps", "1",
    ]  # fmt: skip


def registered(folder: Path) -> list[str]:
    """SHA-256 of the weights of all versions of all models."""
    store = LocalRegistry(folder / "mlruns" / "registry")
    places = [store.folder(name, version) for name in store.names() for version in store.versions(name)]
    return [sha256_of(place / "model.safetensors") for place in places]


def _size(place: Path) -> int:
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
