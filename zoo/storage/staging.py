"""Folders that are filled out of sight and appear by one rename; no lock protects anything here.

On a network folder a lock may not reach the other machine, and one that is a file outlives its holder. A rename is
whole everywhere. So every process fills a folder of its own, whose name tells who fills it, and only those of
processes that have ended are removed, or filled further.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = ".staging-"
_FREE = "free"  # stands in place of an owner: anyone may go on with it
_SILENT_SECONDS = 3600.0  # without a change in the folder, after which a process of another machine has ended
_LONGEST_WAIT = 600.0  # seconds; nothing but time is lost by going on


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, for the caller to rename; what is left of it goes at the end.

    Those that ended processes left are removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left_over in parent.glob(f"{_PREFIX}*"):
        if _has_ended(left_over.name.removeprefix(_PREFIX), left_over):
            shutil.rmtree(left_over, ignore_errors=True)
    folder = parent / f"{_PREFIX}{_owner()}.{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(staging: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    """Renames a staged folder to `folder`, unless one is there and is whole; one that is not makes room."""
    try:
        os.rename(staging, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if is_whole(folder):  # of another machine that did the same
            return
        aside = staging.with_name(f"{staging.name}.old")
        os.rename(folder, aside)
        os.rename(staging, folder)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def resumable(parent: Path, name: str) -> Iterator[Path]:
    """A folder for parts that take long to fetch: with those of an earlier attempt that failed or was killed.

    It is gone after success, and kept for the next attempt otherwise.

    Args:
        parent: made if it is missing.
        name: of what is fetched; without `@`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    mine = parent / f"{name}@{_owner()}.{secrets.token_hex(4)}"
    for left_over in sorted(parent.glob(f"{name}@*")):
        if not _has_ended(left_over.name.removeprefix(f"{name}@"), left_over):
            continue
        if mine.exists():
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(left_over, mine)
    mine.mkdir(exist_ok=True)
    try:
        yield mine
    except BaseException:
        with contextlib.suppress(OSError):
            if any(mine.iterdir()):
                os.rename(mine, parent / f"{name}@{_FREE}.{secrets.token_hex(4)}")
            else:
                mine.rmdir()
        raise
    shutil.rmtree(mine, ignore_errors=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits for another process of this machine that does the same, to save its work; nothing depends on it."""
    lock = FileLock(path)
    with contextlib.suppress(
        Timeout, OSError, NotImplementedError
    ):  # a file system without locks, or read-only
        lock.acquire(timeout=_LONGEST_WAIT)
    try:
        yield
    finally:
        lock.release()


def _owner() -> str:
    """Names this process, so that any process of this machine can tell whether it still runs."""
    return f"{_machine()}-{os.getpid()}-{_start_of(os.getpid())}"


def _has_ended(owner: str, folder: Path) -> bool:
    """Whether nobody fills the folder any more; of another machine's process, its silence tells."""
    if owner.startswith(f"{_FREE}."):
        return True
    match = re.fullmatch(r"(?P<machine>.+)-(?P<pid>\d+)-(?P<start>\d*)\.[0-9a-f]{8}(\.old)?", owner)
    if match is not None and match["machine"] == _machine():
        return _start_of(int(match["pid"])) != match["start"]
    try:
        last = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except (OSError, ValueError):
        return False  # it is being renamed or removed just now
    return time.time() - last > _SILENT_SECONDS


def _machine() -> str:
    """Names this start of the machine, and the space of its process numbers: containers have their own."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())


def _start_of(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None if it does not run."""
    try:
        # the name in brackets may hold anything
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
