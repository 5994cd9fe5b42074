"""Where MLflow keeps runs and versions: a server, or SQLite under `mlruns/`.

MLflow's own defaults do not serve: 3.17 refuses file stores, three processes that first touch one
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

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "detr-zoo"
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
class Backend:
    """Address of a tracking store and, if it is embedded, where its artifacts go."""

    uri: str
    root: Path  # absolute; spool, locks, and the embedded store itself
    embedded: bool

    @property
    def artifact_location(self) -> str | None:
        """For new experiments; a server chooses its own."""
        return (self.root / "artifacts").as_uri() if self.embedded else None


def resolve_backend(root: str | Path | None = None, tracking_uri: str | None = None) -> Backend:
    """Argument, then MLFLOW_TRACKING_URI as it is now, then SQLite under `root` (./mlruns)."""
    folder = Path(root if root is not None else "mlruns").absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return Backend(uri, folder, embedded=False)
    return Backend(f"sqlite:///{folder / 'mlflow.db'}", folder, embedded=True)


def connect(backend: Backend) -> MlflowClient:
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
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if backend.uri.startswith("sqlite:"):
        return _open_database(backend)
    try:
        return MlflowClient(backend.uri, registry_uri=backend.uri)
    except MlflowException as error:
        raise ValueError(
            f"MLflow refuses the tracking address {backend.uri!r}: {error.message.splitlines()[0]} Unset "
            "MLFLOW_TRACKING_URI for the store under mlruns/, or name a server (http://...)."
        ) from error


def _open_database(backend: Backend) -> MlflowClient:
    """Raises OSError if the database cannot be made, read or written: a full disk, another MLflow's schema."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    backend.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(backend.root / ".mlflow.lock"):
            client = MlflowClient(backend.uri, registry_uri=backend.uri)
            client.search_experiments(max_results=1)
            if backend.embedded:
                follow_move(backend)
        return client
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"the store {backend.uri} cannot be used: {reason}") from error


def follow_move(backend: Backend) -> None:
    """Rewrites the places of artifacts in an embedded store whose folder was moved or copied.

    MLflow makes every location absolute, so without this the files of old runs are lost from it, and those
    of new ones are written below the path where the project used to be.
    """
    here = backend.root.as_uri()
    with closing(sqlite3.connect(backend.root / "mlflow.db", timeout=30)) as store:
        known = [row[0] for row in store.execute("SELECT DISTINCT artifact_location FROM experiments")]
        ending = f"/{quote(backend.root.name)}/artifacts"
        moved = {p.removesuffix("/artifacts") for p in known if p.endswith(ending)} - {here}
        if not moved:
            return
        with store:
            for old in moved:
                was, now = unquote(urlsplit(old).path), str(backend.root)
                for table, column in _PLACES:
                    _replace_start(store, table, column, old + "/", here + "/")
                    _replace_start(store, table, column, was + "/", now + "/")
                _replace_start(store, "tags", "value", was + "/", now + "/", "AND key = 'zoo.checkpoint'")


def _replace_start(
    store: sqlite3.Connection, table: str, column: str, old: str, new: str, condition: str = ""
) -> None:
    """Table, column and condition are our own words; `old` and `new` are values."""
    store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ? {condition}",
        (new, len(old) + 1, len(old), old),
    )


def experiment_id(client: MlflowClient, backend: Backend, name: str = DEFAULT_EXPERIMENT) -> str:
    """Id of the experiment, made if it is missing, by one process of this machine at a time."""
    backend.root.mkdir(parents=True, exist_ok=True)
    with FileLock(backend.root / ".experiment.lock"):
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=backend.artifact_location))
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {name!r} is deleted at {backend.uri}; restore it or choose another name"
        )
    return str(found.experiment_id)
