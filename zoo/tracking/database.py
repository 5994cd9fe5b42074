"""MLflow's SQLite database: there whole or not at all, and looked at before MLflow touches it.

MLflow makes its tables in dozens of transactions, where the file lies. A process that is ended among them leaves one
that no MLflow opens again, and a database of another version is migrated, or refused, in words about its internals.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from zoo.storage.durable import sweep_temporaries, write_atomically

log = logging.getLogger(__name__)

_NEW = ".new-store-"  # folders in which a database is made
_OWN_ROWS = {"alembic_version", "workspaces"}  # tables that have rows in a store without a run
_COMPANIONS = ("-journal", "-wal", "-shm")  # SQLite's files beside a database


def prepare(path: Path, make: Callable[[str], object]) -> None:
    """Makes the database if there is none, or half of one that holds nothing. To be called under a lock.

    Args:
        path: of the database.
        make: lets MLflow make one at the address that it is given.

    Raises:
        ConnectionError: another version of MLflow made it; says what to do.
        sqlite3.Error: it is no database, or cannot be read.
    """
    for left_over in path.parent.glob(f"{_NEW}*"):  # of a killed process, for this one holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    sweep_temporaries(path.parent)
    if path.exists():
        found, holds_something = _revision(path)
        if found == _latest_revision():
            return
        if holds_something or not _is_known(found):
            raise ConnectionError(_of_another_version(path, found))
        log.warning("%s was half made when a process was ended; it held no run and is made anew", path)
    folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=path.parent))
    try:
        make(f"sqlite:///{folder / path.name}")
        content = (folder / path.name).read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for ending in _COMPANIONS:  # SQLite would take an old journal for the new file's
        path.with_name(path.name + ending).unlink(missing_ok=True)
    write_atomically(path, content)


def _revision(path: Path) -> tuple[str | None, bool]:
    """(revision of the schema, None if none was noted; whether any table holds what a user has put there)."""
    with closing(sqlite3.connect(path, timeout=30)) as database:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        noted = None
        if "alembic_version" in tables:
            noted = database.execute("SELECT version_num FROM alembic_version").fetchone()
        count = {
            name: int(database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0])
            for name in tables - _OWN_ROWS
        }
    # the experiment `Default` is there before any run
    return noted[0] if noted else None, count.pop("experiments", 0) > 1 or any(count.values())


def _latest_revision() -> str | None:
    return _migrations().get_current_head()


def _is_known(revision: str | None) -> bool:
    return revision is None or revision in {script.revision for script in _migrations().walk_revisions()}


def _migrations():  # type: ignore[no-untyped-def]
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _of_another_version(path: Path, found: str | None) -> str:
    import mlflow

    this = f"this is MLflow {mlflow.__version__}"
    if not _is_known(found):
        return (
            f"{path} was written by a newer MLflow (schema {found}; {this}): pip install --upgrade mlflow, or name "
            "another store with MLFLOW_TRACKING_URI"
        )
    old, kept = shlex.quote(str(path)), shlex.quote(f"{path}.before")
    return (
        f"{path} was written by an older MLflow (schema {found}; {this}): cp {old} {kept} && mlflow db upgrade "
        f"{shlex.quote(f'sqlite:///{path}')}"
    )
