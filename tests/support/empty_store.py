"""MLflow's database as it is after its creation, which takes more than a CPU second: made once, and copied."""

import functools
import tempfile
from pathlib import Path

from zoo.tracking.backend import connect, resolve_store


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        connect(resolve_store(folder))
        return Path(folder, "mlflow.db").read_bytes()


def put_empty_store(root: Path) -> None:
    """A store that holds nothing in the folder `root`, usually ./mlruns."""
    root.mkdir(parents=True)
    (root / "mlflow.db").write_bytes(_empty_database())
