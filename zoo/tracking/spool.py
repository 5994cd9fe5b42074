"""Records that MLflow has not confirmed: kept on disk, one file a run, and sent again later.

A record may so reach MLflow twice, which changes nothing: MLflow keeps a metric once for its time, step and value,
parameters, tags and files by their names; and a run is looked for by its tag before it is created again.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from zoo.storage.deadline import Deadline
from zoo.storage.durable import write_atomically
from zoo.tracking.backend import TrackingStore, connect, experiment_id, resolve_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Record = dict[str, Any]
LOCAL_ID = "zoo.offline_id"  # tag: finds the run whose creation was never confirmed
_PATIENCE = 10.0  # seconds that `replay_spool` waits for an answer
_MOST_IN_BATCH = 100  # parameters or tags; MLflow refuses more
# the server refused the call: repeating it cannot help
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


@dataclass(frozen=True)
class ReplayReport:
    """What a replay did: where to, records sent, records still waiting, and the runs they belong to."""

    store: str
    sent: int
    waiting: int
    run_ids: tuple[str, ...]


def replay_spool(root: str | Path | None = None, tracking_uri: str | None = None) -> ReplayReport:
    """Sends the records that no server received; spools of processes that still run are left to them.

    Raises:
        ConnectionError: if the server does not answer; what was not sent stays in the spool.
    """
    store = resolve_store(root, tracking_uri)
    deadline = Deadline()

    def in_time(call: Callable[[], Any]) -> Any:
        return call() if store.uri.startswith("sqlite:") else deadline.call(call, _PATIENCE)

    spools = [Spool(store.root, path.stem) for path in (store.root / "spool").glob("*.jsonl")]
    # an attempt before its resume, so that the status of the later one stays
    spools = sorted((spool for spool in spools if not spool.is_in_use()), key=Spool.begun)
    sent, runs = 0, list[str]()
    for spool in spools:
        try:
            run_id, count = spool.replay(connect(store), store, in_time)
        except failures() as error:
            waiting = sum(s.waiting() for s in spools)
            raise ConnectionError(
                f"MLflow at {store.uri} does not answer ({first_line(error)}); {sent} records sent, "
                f"{waiting} still wait in {store.root / 'spool'}. Try again when the server is up."
            ) from error
        sent += count
        if run_id is not None and run_id not in runs:
            runs.append(run_id)
    return ReplayReport(store.uri, sent, sum(s.waiting() for s in spools), tuple(runs))


class Spool:
    """The records of one run on disk: a header line, then one JSON object a record."""

    def __init__(self, root: Path, local_id: str) -> None:
        self.local_id = local_id
        self.path = root / "spool" / f"{local_id}.jsonl"
        self._files = root / "spool" / f"{local_id}.files"
        self._lock = FileLock(root / "spool" / f".{local_id}.lock")

    def append(self, record: Record, header: Record) -> None:
        """Adds a record; an artifact is copied, since its file may be gone at the replay."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if record["kind"] == "artifact":
                record = {**record, "path": str(self._copy(Path(record["path"])))}
            size = self.path.stat().st_size if self.path.exists() else 0
            text = "".join(json.dumps(line) + "\n" for line in [*([] if size else [header]), record])
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                if self.path.exists():  # the next record must not begin behind half of this one
                    os.truncate(self.path, size)
                raise

    def note_run(self, run_id: str) -> None:
        """Records, for a later replay, to which run the waiting records belong."""
        if self.path.exists():
            with self._lock:
                header, records = self._read()
                self._rewrite({**header, "run_id": run_id}, records)

    def waiting(self) -> int:
        """Number of records."""
        return len(self._read()[1]) if self.path.exists() else 0

    def is_in_use(self) -> bool:
        """Whether its writer is another process that still runs on this machine."""
        header, _ = self._read()
        if header.get("host") != socket.gethostname() or header.get("pid") == os.getpid():
            return False
        return Path(f"/proc/{header.get('pid')}").exists()

    def begun(self) -> float:
        """When its first record was kept, in seconds since 1970."""
        return float(self._read()[0].get("time", 0.0))

    def replay(
        self, client: MlflowClient, store: TrackingStore, in_time: Callable[[Callable[[], Any]], Any],
        end: float = math.inf,
    ) -> tuple[str | None, int]:  # fmt: skip
        """Sends the records in order; returns (run id, None without records; number sent).

        Args:
            client: of the store.
            store: where they go: to the run of the header, and to a new one if it has no such run.
            in_time: makes a call; raises if it takes too long.
            end: of `time.monotonic`; what is not sent by then stays.
        """
        with self._lock:
            header, records = self._read()
            run_id = in_time(lambda: self._run(client, store, header)) if records else None
            header, sent = {**header, "run_id": run_id}, 0
            try:
                for record in records:
                    if time.monotonic() > end:
                        break
                    try:
                        in_time(functools.partial(apply, client, str(run_id), record))
                    except failures() as error:
                        if not is_refusal(error):
                            raise
                        log.error(
                            "MLflow refused a record and it is not logged: %s (%s)", error, short(record)
                        )
                    sent += 1
            finally:
                if sent < len(records):
                    self._rewrite(header, records[sent:])
            if sent == len(records):
                self.path.unlink()
                shutil.rmtree(self._files, ignore_errors=True)
                Path(self._lock.lock_file).unlink(missing_ok=True)
        return run_id, sent

    def _run(self, client: MlflowClient, store: TrackingStore, header: Record) -> str:
        """The run of the records; made only where an earlier attempt has not made it."""
        run_id = header["run_id"]
        if run_id is not None and has_run(client, run_id):
            return str(run_id)
        tags = {**header["tags"], LOCAL_ID: self.local_id}
        return create_run(client, store, header["experiment"], header["run_name"], tags)

    def _copy(self, source: Path) -> Path:
        target = self._files / uuid.uuid4().hex[:8] / source.name
        target.parent.mkdir(parents=True)
        try:
            return Path(shutil.copy2(source, target))
        except OSError:  # half of it would fill a disk that is full already
            shutil.rmtree(target.parent, ignore_errors=True)
            raise

    def _read(self) -> tuple[Record, list[Record]]:
        lines = [json.loads(line) for line in _whole_lines(self.path.read_text(encoding="utf-8"))]
        # none: killed in its very first write
        return (lines[0], lines[1:]) if lines else ({}, [])

    def _rewrite(self, header: Record, records: list[Record]) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in [header, *records])
        write_atomically(self.path, lines.encode())


def apply(client: MlflowClient, run_id: str, record: Record) -> None:
    """Writes one record into a run."""
    from mlflow.entities import Metric, Param, RunTag

    kind = record["kind"]
    if kind == "metrics":
        metrics = [Metric(k, v, record["time"], record["step"]) for k, v in record["values"].items()]
        client.log_batch(run_id, metrics=metrics)
    elif kind == "params":
        known = client.get_run(run_id).data.params  # a parameter can never change
        new = [Param(k, v) for k, v in record["values"].items() if k not in known]
        changed = [RunTag(f"changed/{k}", v) for k, v in record["values"].items() if known.get(k, v) != v]
        for k in range(0, max(len(new), len(changed)), _MOST_IN_BATCH):
            part = slice(k, k + _MOST_IN_BATCH)
            client.log_batch(run_id, params=new[part], tags=changed[part])
    elif kind == "dataset":
        _log_dataset(client, run_id, record)
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in record["values"].items()])
    elif kind == "artifact":
        client.log_artifact(run_id, record["path"], record["folder"] or None)
    elif kind == "text":
        client.log_text(run_id, record["text"], record["name"])
    elif kind == "status":
        client.set_terminated(run_id, record["status"], end_time=record["time"])
    else:
        raise AssertionError(f"unknown record kind {kind}")


def _log_dataset(client: MlflowClient, run_id: str, record: Record) -> None:
    """Writes what a run was trained on; the same data set twice is one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    dataset = Dataset(**record["dataset"])
    entry = DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])
    try:
        client.log_inputs(run_id, [entry])
    except MlflowException as error:
        if error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        log.warning("the MLflow server knows no data sets; the tag zoo.data_digest tells of it: %s", error)


def create_run(
    client: MlflowClient, store: TrackingStore, experiment: str, run_name: str | None, tags: Mapping[str, str]
) -> str:
    """Id of the run with this local id: of a call that was given up, whose work was done, or of a new one.

    Raises:
        ConnectionError: what answers is not MLflow.
    """
    place = experiment_id(client, store, experiment)
    made = client.search_runs([place], f"tags.`{LOCAL_ID}` = '{tags[LOCAL_ID]}'", max_results=1)
    run = made[0] if made else client.create_run(place, tags=dict(tags), run_name=run_name)
    run_id = str(run.info.run_id)
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise ConnectionError(f"it answers, but not as MLflow does: it calls a run {run_id!r:.40}")
    return run_id


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has this run, and not as deleted.

    Raises:
        ConnectionError: what answers is not MLflow.
    """
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if is_refusal(error):
            return False
        raise
    if info.run_id != run_id:
        raise ConnectionError(
            f"it answers, but not as MLflow does: asked for run {run_id}, it gave {info.run_id!r:.40}"
        )
    return bool(info.lifecycle_stage == "active")


def failures() -> tuple[type[BaseException], ...]:
    """Errors of a store that is down, or is none: MLflow's own, of sockets, SQLite, and answers that make no sense."""
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, OSError, SQLAlchemyError, ParseError


def is_refusal(error: BaseException) -> bool:
    """Whether the server has understood, and said no."""
    return getattr(error, "error_code", None) in _REFUSALS


def first_line(error: BaseException) -> str:
    """What it says, to be read in a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def short(record: Record | None) -> str:
    """Its beginning."""
    return str(record)[:200]


def _whole_lines(text: str) -> list[str]:
    """Complete lines: a process killed while writing leaves an incomplete last one."""
    return text.split("\n")[:-1]
