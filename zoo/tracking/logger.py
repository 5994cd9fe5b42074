"""MLflow as a Lightning logger that never stops a training.

What a server misses, or does not confirm in time, is spooled to `mlruns/spool/*.jsonl` and replayed later, by
`finalize` if the server is back by then, else by `replay_spool`. Live writes and replays run through the same
`apply`. A record may so reach MLflow twice, which changes nothing: MLflow keeps a metric once for its time, step and
value, parameters, tags and files by their names; and a run is looked for by its tag before it is created again.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from zoo.contract.labels import LabelMap
from zoo.storage.deadline import Deadline
from zoo.tracking.backend import DEFAULT_EXPERIMENT, TrackingStore, connect, resolve_store
from zoo.tracking.lineage import git_state
from zoo.tracking.spool import (
    LOCAL_ID,
    Record,
    Spool,
    apply,
    create_run,
    failures,
    first_line,
    has_run,
    is_refusal,
    short,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_T = TypeVar("_T")
Point = tuple[str, int, str]  # a metric, its step, its value: as text, for NaN is not equal to itself
_FIRST_REST, _LONGEST_REST = 30.0, 600.0  # seconds without a call after a failed one; doubles
# seconds that a call is waited for; files are sent before the first step and after the last
_PATIENCE, _PATIENCE_FOR_FILES = 2.0, 10.0
_LONGEST_FINISH = 10.0  # seconds of replaying at the end of a run; what is left waits for `zoo runs sync`
_LONGEST_PARAM = 6000  # MLflow cuts what is longer; recipe.yaml holds it in full
_DIGITS = 32  # of a data set's digest: MLflow takes 36 characters
_REPLACED = ("params", "tags", "status")  # a later one replaces an earlier one, so they are kept in order
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MLflowTracker(Logger):
    """Logs metrics, parameters, tags and artifacts of one run to MLflow, on rank zero only.

    Args:
        experiment: MLflow experiment, made if missing.
        run_name: shown by MLflow; it invents one otherwise.
        run_id: resume this run; its status becomes RUNNING again. One that the store does not have, because
            it is another machine's or folder's, is replaced by a new run, with a warning.
        local_id: `local_id` of the tracker whose run is resumed: finds it where `run_id` was never known.
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
        local_id: str | None = None,
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
        self._tags = {**_source_tags(), **(tags or {})}
        self._connection: MlflowClient | None = None
        self._deadline = Deadline()
        self._rest_until, self._rest_seconds = 0.0, _FIRST_REST
        self._spool = Spool(self.store.root, local_id or uuid.uuid4().hex)
        self._checkpoint_tag = ""
        self._held: list[Record] = []  # neither sent nor spooled, for the disk is full or read-only
        self._told_held = False
        # what a resumed run has, read once: the steps after its checkpoint are trained again
        self._logged: frozenset[Point] | None = None

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
            self._guard(lambda: self._in_time(self._start), spool=None)
            if self._started and self._resumed and self._logged is None:
                self._logged = frozenset()
                self._guard(lambda: self._in_time(self._read_logged, _PATIENCE_FOR_FILES), spool=None)
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """The scalar hyperparameters, flat; recipe.yaml is the complete record."""
        values = vars(params) if isinstance(params, Namespace) else params
        self.log_params(_flat_scalars(values))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of one step, which a run that is resumed before it may have had. A name MLflow would refuse is
        rewritten, and a warning says so once.
        """
        at = int(step or 0)
        values = {metric_key(k): float(v) for k, v in metrics.items() if not isinstance(v, str)}
        new = {k: v for k, v in values.items() if (k, at, repr(v)) not in (self._logged or ())}
        if new:
            self._write({"kind": "metrics", "values": new, "step": at, "time": int(time.time() * 1000)})

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Sets the run's status; a run that was interrupted (SIGTERM, Ctrl-C) is KILLED.

        Lightning says `failed` for both, inside the handler of the exception that tells them apart.
        """
        if not self._started and not self._spool.path.exists() and not self._held:
            return
        if status == "failed" and isinstance(sys.exc_info()[1], SIGTERMException | KeyboardInterrupt):
            status = "killed"
        value = _STATUS.get(status, "FAILED")
        if self._spool.path.exists() or self._held:
            self._rest_until = 0.0  # the last occasion: a server that was started again gets everything now
        if self._spool.path.exists():
            self._guard(self._replay, spool=None)
        self._write({"kind": "status", "status": value, "time": int(time.time() * 1000)})
        if self._held:
            log.warning("%d records are lost: there is still no place for them", len(self._held))

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
    def local_id(self) -> str:
        """Names the run where the server does not, or does not yet."""
        return self._spool.local_id

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
    def log_dataset(self, name: str, digest: str, place: str, facts: Mapping[str, Any]) -> None:
        """What the run is trained on, as MLflow's input: a name, the sha256 of the data, where they lie."""
        scheme, there, _ = place.partition("://")
        dataset = {
            "name": name, "digest": digest[:_DIGITS], "source_type": scheme if there else "local",
            "source": json.dumps({"uri": place, "url": place}), "profile": json.dumps(facts),
        }  # fmt: skip
        self._write({"kind": "dataset", "dataset": dataset, "context": "training"})

    @rank_zero_only
    def log_start(self, *, recipe: str, label_map: LabelMap, data_digest: str, recipe_name: str = "") -> None:
        """The facts that make a run repeatable: resolved recipe, label map, digest of the data."""
        self.log_text(recipe, "recipe.yaml")
        self.log_dict(label_map.to_dict(), "label_map.json")
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        self.set_tags(
            {"zoo.data_digest": data_digest, "zoo.recipe_sha256": digest, "zoo.recipe": recipe_name}
        )

    def page(self) -> str:
        """Where MLflow's pages have the run, as one of model training; without it they open as for language models.

        Empty if that cannot be found out.
        """
        if not self._started or self.is_offline:
            return ""
        try:
            info = self._in_time(lambda: self._client().get_run(self._start())).info
        except failures():
            return ""
        return f"#/experiments/{info.experiment_id}/runs/{info.run_id}?workflowType=machine_learning"

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
        run_id = self._run_id
        if run_id is not None and self._resumed and not _resume_run(client, run_id):
            log.warning(
                "the MLflow run %s is not at %s; a new run is begun. The training goes on",
                run_id, self.store.uri,
            )  # fmt: skip
            run_id = None
        if run_id is None:
            tags = {**self._tags, LOCAL_ID: self._spool.local_id}
            run_id = create_run(client, self.store, self._experiment_name, self._run_name, tags)
        self._run_id = run_id
        self._started = True
        self._spool.note_run(run_id)
        return run_id

    def _read_logged(self) -> None:
        client, run_id = self._client(), self._start()
        names = client.get_run(run_id).data.metrics
        metrics = [m for name in names for m in client.get_metric_history(run_id, name)]
        self._logged = frozenset((m.key, m.step, repr(m.value)) for m in metrics)

    def _write(self, record: Record) -> None:
        """Sends or spools what is held and then the record, until one of them has to be held again."""
        waiting, self._held = [*self._held, record], []
        for number, one in enumerate(waiting, start=1):
            self._send_or_keep(one)
            if self._held:
                self._held += waiting[number:]
                break

    def _send_or_keep(self, record: Record) -> None:
        if record["kind"] in _REPLACED and self._spool.path.exists():
            self._keep(record)
            return
        patience = _PATIENCE_FOR_FILES if record["kind"] in ("artifact", "text") else _PATIENCE
        self._guard(lambda: self._in_time(lambda: self._send(record), patience), spool=record)

    def _send(self, record: Record) -> None:
        """Writes a record; into a new run if the store has the old one no longer."""
        try:
            apply(self._client(), self._start(), record)
        except failures() as error:
            if not is_refusal(error) or self._run_id is None or has_run(self._client(), self._run_id):
                raise
            self._started, self._resumed = False, True
            apply(self._client(), self._start(), record)

    def _in_time(self, call: Callable[[], _T], seconds: float = _PATIENCE) -> _T:
        """What `call` returns, unless a server takes longer; the database of this machine is waited for."""
        self._client()  # imports, and makes the database: not to be counted
        if self.store.uri.startswith("sqlite:"):
            return call()
        return self._deadline.call(call, seconds)

    def _replay(self) -> None:
        self._in_time(self._start)
        end = time.monotonic() + _LONGEST_FINISH
        self._spool.replay(self._client(), self.store, self._in_time, end)

    def _guard(self, call: Callable[[], Any], spool: Record | None) -> None:
        """Runs `call`, or spools `spool`, if MLflow fails or failed a short while ago."""
        if time.monotonic() < self._rest_until:
            self._keep(spool)
            return
        try:
            call()
        except failures() as error:
            if is_refusal(error):
                log.error("MLflow refused a record and it is not logged: %s (%s)", error, short(spool))
                return
            log.warning(
                "MLflow at %s does not answer (%s). The training goes on; records are kept in %s until it "
                "does, or until they are sent with: zoo runs sync --root %s",
                self.store.uri, first_line(error), self._spool.path, shlex.quote(str(self.store.root)),
            )  # fmt: skip
            self._rest_until = time.monotonic() + self._rest_seconds
            self._rest_seconds = min(2 * self._rest_seconds, _LONGEST_REST)
            self._keep(spool)
        else:
            self._rest_seconds = _FIRST_REST

    def _keep(self, record: Record | None) -> None:
        """Spools; a record for which there is no room is held, and the first time a warning says so."""
        if record is not None:
            header = {
                "kind": "run", "experiment": self._experiment_name, "run_name": self._run_name,
                "tags": self._tags, "run_id": self._run_id,
                "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(),
            }  # fmt: skip
            try:
                self._spool.append(record, header)
            except OSError as error:
                self._held.append(record)
                if not self._told_held:
                    log.warning(
                        "records cannot be kept in %s either (%s): they stay in memory until there is room, and are "
                        "lost with the process. The training goes on",
                        self._spool.path, first_line(error),
                    )  # fmt: skip
                self._told_held = True


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


def _resume_run(client: MlflowClient, run_id: str) -> bool:
    """Marks the run as running again; False if the store has no such run, or holds it as deleted."""
    if not has_run(client, run_id):
        return False
    client.update_run(run_id, status="RUNNING")
    attempt = int(client.get_run(run_id).data.tags.get("zoo.attempt", "1")) + 1
    client.set_tag(run_id, "zoo.attempt", str(attempt))
    return True


def _source_tags() -> dict[str, str]:
    """Who started the run by which command, as MLflow's own API notes it, and the commit of this package."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user id without a name, as in a container
        tags["mlflow.user"] = getpass.getuser()
    return tags | _code_tags()


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
