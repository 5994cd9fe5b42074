"""MLflow's database as it is after its creation, which takes more than a CPU second: made once, and copied."""

import functools
import tempfile
from pathlib import Path

from zoo.tracking.backend import connect, resolve_store


@functools.cache
def empty_database() -> bytes:
    """The file's content."""
    with tempfile.TemporaryDirectory() as folder:
        connect(resolve_store(folder))
        return Path(folder, "mlflow.db").read_bytes()


def put_empty_store(root: Path) -> None:
    """A store that holds nothing in the folder `root`, usually ./mlruns."""
    root.mkdir(parents=True)
    (root / "mlflow.db").write_bytes(empty_database())
