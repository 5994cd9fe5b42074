"""Where MLflow keeps runs and versions: a server, or SQLite under `mlruns/`.

MLflow's own defaults do not serve: 3.17 refuses file stores, three processes that first touch one
fresh database crash each other in its migration, and a call to a dead server blocks for minutes.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # MLflow puts its own handlers and levels in place when imported
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if not backend.uri.startswith("sqlite:"):
            return MlflowClient(backend.uri, registry_uri=backend.uri)
        backend.root.mkdir(parents=True, exist_ok=True)
        with FileLock(backend.root / ".mlflow.lock"):
            client = MlflowClient(backend.uri, registry_uri=backend.uri)
            client.search_experiments(max_results=1)
        return client
    except MlflowException as error:
        raise ValueError(
            f"MLflow refuses the tracking address {backend.uri!r}: {error.message.splitlines()[0]} Unset "
            "MLFLOW_TRACKING_URI for the store under mlruns/, or name a server (http://...)."
        ) from error


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
