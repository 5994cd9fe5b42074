"""MLflow's database as it is after its creation, which takes more than a CPU second: made once, and copied.

A test whose subject is the creation takes `made_by_mlflow`.
"""

import functools
import tempfile
from pathlib import Path

from zoo.tracking import backend

made_by_mlflow = backend._touch


@functools.cache
def empty_database() -> bytes:
    """The file's content."""
    with tempfile.TemporaryDirectory() as folder:
        made_by_mlflow(f"sqlite:///{folder}/mlflow.db")
        return Path(folder, "mlflow.db").read_bytes()


def copied(uri: str) -> object:
    """What `zoo.tracking.backend` asks of MLflow; a new database is a copy."""
    if "/.new-store-" in uri:
        return Path(uri.removeprefix("sqlite:///")).write_bytes(empty_database())
    return made_by_mlflow(uri)


def put_empty_store(root: Path) -> None:
    """A store that holds nothing in the folder `root`, usually ./mlruns."""
    root.mkdir(parents=True)
    (root / "mlflow.db").write_bytes(empty_database())
