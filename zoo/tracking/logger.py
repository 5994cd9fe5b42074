"""MLflow as a Lightning logger that never stops a training.

What a dead server misses is spooled to `mlruns/spool/*.jsonl` and replayed later, by `finalize` if the
server is back by then, else by `replay_spool`. Live writes and replays run through the same `_apply`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from zoo.contract.labels import LabelMap
from zoo.storage.durable import write_atomically
from zoo.tracking.backend import DEFAULT_EXPERIMENT, TrackingStore, connect, experiment_id, resolve_store
from zoo.tracking.lineage import git_state

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Record = dict[str, Any]
_FIRST_REST, _LONGEST_REST = 30.0, 600.0  # seconds without a call after a failed one; doubles
_LONGEST_PARAM = 6000  # MLflow cuts what is longer; recipe.yaml holds it in full
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
# the server refused the call: repeating it cannot help
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class MLflowTracker(Logger):
    """Logs metrics, parameters, tags and artifacts of one run to MLflow, on rank zero only.

    Args:
        experiment: MLflow experiment, made if missing.
        run_name: shown by MLflow; it invents one otherwise.
        run_id: resume this run; its status becomes RUNNING again. One that the store does not have, because
            it is another machine's or folder's, is replaced by a new run, with a warning.
        root: folder of the embedded store and of the spool; `./mlruns` by default.
        tracking_uri: a server; MLFLOW_TRACKING_URI by default, else the embedded store.
        tags: tags of a new run, beside those of the code's git commit.

    The run is created at first use. A run that could not be created has `run_id` None.
    """

    def __init__(
        self,
        *,
        experiment: str = DEFAULT_EXPERIMENT,
        run_name: str | None = None,
        run_id: str | None = None,
        root: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.store: TrackingStore = resolve_store(root, tracking_uri)
        self._experiment_name = experiment
        self._run_name = run_name
        self._run_id = run_id
        self._resumed = run_id is not None
        self._started = False
        self._tags = {**_code_tags(), **(tags or {})}
        self._connection: MlflowClient | None = None
        self._rest_until, self._rest_seconds = 0.0, _FIRST_REST
        self._spool = Spool(self.store.root, uuid.uuid4().hex)
        self._checkpoint_tag = ""
        self._dropped = False  # whether records were lost because no place could keep them

    # --- the interface of Lightning's loggers

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str:
        """The run id; before a run exists, the id of its spool."""
        return self._run_id or self._spool.local_id

    @property
    def save_dir(self) -> str:
        """Lightning's default folder for files."""
        return str(self.store.root)

    @property
    def experiment(self) -> MLflowTracker:
        """Starts the run; Lightning touches this before a fit."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._guard(self._start, spool=None)
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """The scalar hyperparameters, flat; recipe.yaml is the complete record."""
        values = vars(params) if isinstance(params, Namespace) else params
        self.log_params(_flat_scalars(values))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of one step. A name MLflow would refuse is rewritten, and a warning says so once."""
        values = {metric_key(k): float(v) for k, v in metrics.items() if not isinstance(v, str)}
        self._write(
            {"kind": "metrics", "values": values, "step": int(step or 0), "time": int(time.time() * 1000)}
        )

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Sets the run's status; a run that was interrupted (SIGTERM, Ctrl-C) is KILLED.

        Lightning says `failed` for both, inside the handler of the exception that tells them apart.
        """
        if not self._started and not self._spool.path.exists():
            return
        if status == "failed" and isinstance(sys.exc_info()[1], SIGTERMException | KeyboardInterrupt):
            status = "killed"
        value = _STATUS.get(status, "FAILED")
        self._write({"kind": "status", "status": value, "time": int(time.time() * 1000)})
        if self._run_id is not None and self._spool.path.exists() and time.monotonic() >= self._rest_until:
            self._guard(lambda: self._spool.replay(self._client(), self.store), spool=None)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Notes the best checkpoint as a tag: `zoo publish <run>` reads it."""
        best = checkpoint_callback.best_model_path or checkpoint_callback.last_model_path
        if best and str(best) != self._checkpoint_tag:
            self._checkpoint_tag = str(best)
            self.set_tags({"zoo.checkpoint": str(Path(best).absolute())})

    # --- used by the command line and callbacks

    @property
    def run_id(self) -> str | None:
        """MLflow's run id; None on other ranks, and while the server cannot be reached."""
        return self.experiment._run_id

    @property
    def is_offline(self) -> bool:
        """Whether something waits in the spool."""
        return self._spool.path.exists()

    @property
    def spool_file(self) -> Path:
        """Where the records of this run wait for `replay_spool` while there is no server."""
        return self._spool.path

    @rank_zero_only
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters of the run. One that a resumed run already has with another value becomes a tag."""
        values = {metric_key(k): str(v) for k, v in params.items() if len(str(v)) <= _LONGEST_PARAM}
        if values:
            self._write({"kind": "params", "values": values})

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        self._write({"kind": "tags", "values": {str(k): str(v) for k, v in tags.items()}})

    @rank_zero_only
    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """A file, below `folder` of the run's artifacts; a missing one is logged, not raised."""
        if not Path(path).is_file():
            log.warning("%s does not exist and is not logged", path)
            return
        self._write({"kind": "artifact", "path": str(Path(path).absolute()), "folder": folder})

    @rank_zero_only
    def log_figure_file(self, path: str | Path) -> None:
        """A picture, below `pictures/`."""
        self.log_artifact(path, "pictures")

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """`text` as the artifact `name`."""
        self._write({"kind": "text", "text": text, "name": name})

    @rank_zero_only
    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """A plain mapping as the artifact `name`: YAML if it ends so, else JSON."""
        if name.endswith((".yaml", ".yml")):
            self.log_text(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True), name)
        else:
            self.log_text(json.dumps(value, indent=2, ensure_ascii=False), name)

    @rank_zero_only
    def log_start(self, *, recipe: str, label_map: LabelMap, data_digest: str, recipe_name: str = "") -> None:
        """The facts that make a run repeatable: resolved recipe, label map, digest of the data."""
        self.log_text(recipe, "recipe.yaml")
        self.log_dict(label_map.to_dict(), "label_map.json")
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        self.set_tags(
            {"zoo.data_digest": data_digest, "zoo.recipe_sha256": digest, "zoo.recipe": recipe_name}
        )

    # --- how

    def _client(self) -> MlflowClient:
        if self._connection is None:
            self._connection = connect(self.store)
        return self._connection

    def _start(self) -> str:
        """Creates or resumes the run, once."""
        if self._started:
            assert self._run_id is not None
            return self._run_id
        client = self._client()
        if self._run_id is None:
            self._run_id = _create_run(client, self.store, self._experiment_name, self._run_name, self._tags)
        elif self._resumed and not _resume_run(client, self._run_id):
            log.warning(
                "the MLflow run %s is not at %s; a new run is begun. The training goes on",
                self._run_id, self.store.uri,
            )  # fmt: skip
            self._run_id = _create_run(client, self.store, self._experiment_name, self._run_name, self._tags)
        self._started = True
        self._spool.note_run(self._run_id)
        return self._run_id

    def _write(self, record: Record) -> None:
        self._guard(lambda: _apply(self._client(), self._start(), record), spool=record)

    def _guard(self, call: Callable[[], Any], spool: Record | None) -> None:
        """Runs `call`, or spools `spool`, if MLflow fails or failed a short while ago."""
        if time.monotonic() < self._rest_until:
            self._keep(spool)
            return
        try:
            call()
        except _failures() as error:
            if _is_refusal(error):
                log.error("MLflow refused a record and it is not logged: %s (%s)", error, _short(spool))
                return
            log.warning(
                "MLflow at %s does not answer (%s). The training goes on; records are kept in %s until it "
                "does, and `zoo.tracking.logger.replay_spool` sends them later.",
                self.store.uri, _first_line(error), self._spool.path,
            )  # fmt: skip
            self._rest_until = time.monotonic() + self._rest_seconds
            self._rest_seconds = min(2 * self._rest_seconds, _LONGEST_REST)
            self._keep(spool)
        else:
            self._rest_seconds = _FIRST_REST

    def _keep(self, record: Record | None) -> None:
        """Spools; a record that can be kept nowhere is dropped, and the first time a warning says so."""
        if record is not None:
            header = {
                "kind": "run", "experiment": self._experiment_name, "run_name": self._run_name,
                "tags": self._tags, "run_id": self._run_id,
                "host": socket.gethostname(), "pid": os.getpid(),
            }  # fmt: skip
            try:
                self._spool.append(record, header)
            except OSError as error:
                if not self._dropped:
                    log.warning(
                        "records cannot be kept in %s either (%s) and are dropped. The training goes on",
                        self._spool.path, _first_line(error),
                    )  # fmt: skip
                self._dropped = True


@dataclass(frozen=True)
class ReplayReport:
    """What a replay did: records sent, records still waiting, and the runs they belong to."""

    sent: int
    waiting: int
    run_ids: tuple[str, ...]


def replay_spool(root: str | Path | None = None, tracking_uri: str | None = None) -> ReplayReport:
    """Sends the records that no server received; spools of processes that still run are left to them.

    Raises:
        ConnectionError: if the server does not answer; what was not sent stays in the spool.
    """
    store = resolve_store(root, tracking_uri)
    spools = [Spool(store.root, path.stem) for path in sorted((store.root / "spool").glob("*.jsonl"))]
    spools = [spool for spool in spools if not spool.is_in_use()]
    sent, runs = 0, []
    for spool in spools:
        try:
            run_id, count = spool.replay(connect(store), store)
        except _failures() as error:
            waiting = sum(s.waiting() for s in spools)
            raise ConnectionError(
                f"MLflow at {store.uri} does not answer ({_first_line(error)}); {sent} records sent, "
                f"{waiting} still wait in {store.root / 'spool'}. Try again when the server is up."
            ) from error
        sent += count
        runs.append(run_id)
    return ReplayReport(sent, sum(s.waiting() for s in spools), tuple(runs))


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

    def replay(self, client: MlflowClient, store: TrackingStore) -> tuple[str, int]:
        """Sends the records in order, removing each as it is sent; returns (run id, number sent)."""
        with self._lock:
            header, records = self._read()
            run_id = header["run_id"]
            if run_id is None or not _has_run(client, run_id):
                tags = {**header["tags"], "zoo.offline_id": self.local_id}
                run_id = _create_run(client, store, header["experiment"], header["run_name"], tags)
                self._rewrite({**header, "run_id": run_id}, records)
            for position, record in enumerate(records):
                try:
                    _apply(client, run_id, record)
                except _failures() as error:
                    if not _is_refusal(error):
                        self._rewrite({**header, "run_id": run_id}, records[position:])
                        raise
                    log.error("MLflow refused a record and it is not logged: %s (%s)", error, _short(record))
            self.path.unlink()
            shutil.rmtree(self._files, ignore_errors=True)
        return run_id, len(records)

    def _copy(self, source: Path) -> Path:
        target = self._files / uuid.uuid4().hex[:8] / source.name
        target.parent.mkdir(parents=True)
        return Path(shutil.copy2(source, target))

    def _read(self) -> tuple[Record, list[Record]]:
        lines = [json.loads(line) for line in _whole_lines(self.path.read_text(encoding="utf-8"))]
        if not lines:  # killed in its very first write: nothing was kept, nothing is sent
            return {
                "kind": "run",
                "run_id": None,
                "experiment": DEFAULT_EXPERIMENT,
                "run_name": None,
                "tags": {},
            }, []
        return lines[0], lines[1:]

    def _rewrite(self, header: Record, records: list[Record]) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in [header, *records])
        write_atomically(self.path, lines.encode())


def metric_key(name: str) -> str:
    """`name` as MLflow takes it: letters, digits, `_ . - / space :` only.

    A rewritten name ends in a hash of the original, so that two classes never share a curve.
    """
    clean = re.sub(r"[^\w./ :-]", "_", name, flags=re.ASCII)
    if clean == name:
        return name
    clean = f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    _warn_renamed(name, clean)
    return clean


@functools.cache
def _warn_renamed(name: str, clean: str) -> None:
    log.warning("MLflow does not allow the name %r; it is logged as %r", name, clean)


def _apply(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    kind = record["kind"]
    if kind == "metrics":
        metrics = [Metric(k, v, record["time"], record["step"]) for k, v in record["values"].items()]
        client.log_batch(run_id, metrics=metrics)
    elif kind == "params":
        known = client.get_run(run_id).data.params  # a parameter can never change
        new = [Param(k, v) for k, v in record["values"].items() if k not in known]
        changed = [RunTag(f"changed/{k}", v) for k, v in record["values"].items() if known.get(k, v) != v]
        client.log_batch(run_id, params=new, tags=changed)
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


def _create_run(
    client: MlflowClient, store: TrackingStore, experiment: str, run_name: str | None, tags: Mapping[str, str]
) -> str:
    run = client.create_run(experiment_id(client, store, experiment), tags=dict(tags), run_name=run_name)
    return str(run.info.run_id)


def _resume_run(client: MlflowClient, run_id: str) -> bool:
    """Marks the run as running again; False if the store has no such run, or holds it as deleted."""
    if not _has_run(client, run_id):
        return False
    client.update_run(run_id, status="RUNNING")
    attempt = int(client.get_run(run_id).data.tags.get("zoo.attempt", "1")) + 1
    client.set_tag(run_id, "zoo.attempt", str(attempt))
    return True


def _has_run(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if _is_refusal(error):
            return False
        raise


def _code_tags() -> dict[str, str]:
    state = git_state()
    if state is None:
        return {}
    commit = {"zoo.git_commit": state.commit, "mlflow.source.git.commit": state.commit}
    return {**commit, "zoo.git_dirty": str(state.dirty).lower()}


def _flat_scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat_scalars(value, f"{name}/")
        elif isinstance(value, str | int | float | bool):
            flat[name] = value
    return flat


def _failures() -> tuple[type[BaseException], ...]:
    """Errors of a store that is down: MLflow's own, those of sockets and of SQLite."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, OSError, SQLAlchemyError


def _is_refusal(error: BaseException) -> bool:
    return getattr(error, "error_code", None) in _REFUSALS


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _short(record: Record | None) -> str:
    return str(record)[:200]


def _whole_lines(text: str) -> list[str]:
    """Complete lines: a process killed while writing leaves an incomplete last one."""
    return text.split("\n")[:-1]
