"""Where MLflow keeps runs and versions: a server, or SQLite under `mlruns/`.

MLflow's own defaults do not work here: 3.17 refuses file stores, three processes that first touch one
fresh database crash each other in its migration, and a call to a dead server blocks for minutes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from zoo.tracking import database

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "detr-zoo"
# of a new experiment: MLflow's page shows it as one of model training; it takes it for one of language models else
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# set only where the user has set nothing; read by MLflow at each call
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    # the defaults block one failing call for 247 s
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
}

# where MLflow's tables hold places of files
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True)
class TrackingStore:
    """Address of a tracking store and, if it is embedded, where its artifacts go."""

    uri: str
    root: Path  # absolute; spool, locks, and the embedded store itself
    embedded: bool

    @property
    def artifact_location(self) -> str | None:
        """For new experiments; a server chooses its own."""
        return (self.root / "artifacts").as_uri() if self.embedded else None


def resolve_store(root: str | Path | None = None, tracking_uri: str | None = None) -> TrackingStore:
    """Argument, then MLFLOW_TRACKING_URI as it is now, then SQLite under `root` (./mlruns)."""
    folder = Path(root if root is not None else "mlruns").absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return TrackingStore(uri, folder, embedded=False)
    return TrackingStore(f"sqlite:///{folder / 'mlflow.db'}", folder, embedded=True)


def connect(store: TrackingStore) -> MlflowClient:
    """A quiet client with short timeouts; the embedded database is created under a lock.

    Raises:
        ValueError: if MLflow refuses the address itself (a file store, an unknown scheme).
        OSError: if the database cannot be made, read or written.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # MLflow puts its own handlers and levels in place when imported
    for name in ("alembic", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # it prints a traceback of each database that is locked or full, beside raising it
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every retry
    if store.uri.startswith("sqlite:"):
        return _open_database(store)
    try:
        return MlflowClient(store.uri, registry_uri=store.uri)
    except MlflowException as error:
        raise ValueError(
            f"MLflow refuses the tracking address {store.uri!r}: {error.message.splitlines()[0]} Unset "
            "MLFLOW_TRACKING_URI for the store under mlruns/, or name a server (http://...)."
        ) from error


def _open_database(store: TrackingStore) -> MlflowClient:
    """Raises OSError if the database cannot be made, read or written: a full disk, another MLflow's schema."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    store.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(store.root / ".mlflow.lock"):
            file = make_url(store.uri).database
            if file and file != ":memory:":
                Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
                database.prepare(Path(file).absolute(), _touch)
            client = _touch(store.uri)
            if store.embedded:
                follow_move(store)
        return client
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"the store {store.uri} cannot be used: {reason}") from error


def _touch(uri: str) -> MlflowClient:
    """A client of a database, which MLflow makes if it is not there."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def follow_move(store: TrackingStore) -> None:
    """Rewrites the places of artifacts in an embedded store whose folder was moved or copied.

    MLflow makes every location absolute, so without this the files of old runs are lost from it, and those
    of new ones are written below the path where the project used to be.
    """
    here = store.root.as_uri()
    with closing(sqlite3.connect(store.root / "mlflow.db", timeout=30)) as tables:
        known = [row[0] for row in tables.execute("SELECT DISTINCT artifact_location FROM experiments")]
        ending = f"/{quote(store.root.name)}/artifacts"
        moved = {p.removesuffix("/artifacts") for p in known if p.endswith(ending)} - {here}
        if not moved:
            return
        with tables:
            for old in moved:
                was, now = unquote(urlsplit(old).path), str(store.root)
                for table, column in _PLACES:
                    _replace_start(tables, table, column, old + "/", here + "/")
                    _replace_start(tables, table, column, was + "/", now + "/")
                _replace_start(tables, "tags", "value", was + "/", now + "/", "AND key = 'zoo.checkpoint'")


def _replace_start(
    tables: sqlite3.Connection, table: str, column: str, old: str, new: str, condition: str = ""
) -> None:
    """Table, column and condition come from this file; `old` and `new` are values."""
    tables.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ? {condition}",
        (new, len(old) + 1, len(old), old),
    )


def experiment_id(client: MlflowClient, store: TrackingStore, name: str = DEFAULT_EXPERIMENT) -> str:
    """Id of the experiment, made if it is missing, by one process of this machine at a time."""
    store.root.mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / ".experiment.lock"):
        found = client.get_experiment_by_name(name)
        if found is None:
            place = store.artifact_location
            return str(client.create_experiment(name, artifact_location=place, tags=_EXPERIMENT_TAGS))
    if found.lifecycle_stage == "deleted":
        raise ValueError(f"experiment {name!r} is deleted at {store.uri}; restore it or choose another name")
    return str(found.experiment_id)
