"""Checks that a command can write its output, and that this is not inside the data set it reads."""

from __future__ import annotations

import tempfile
from pathlib import Path


def require_apart(source: Path | str, output: Path) -> None:
    """Refuses an output inside the folder that is read: the next reading would take it for data.

    Args:
        source: the folder; an address has nothing inside.
        output: the folder to be made.

    Raises:
        ValueError: naming both.
    """
    if isinstance(source, str):
        return
    folder, target = source.expanduser().resolve(), output.expanduser().resolve()
    if target.is_relative_to(folder):
        raise ValueError(
            f"the output {target} lies inside the source {folder}, which is only read and would hold its own "
            "copy; give an --output outside it"
        )


def require_writable(path: Path, option: str) -> None:
    """Refuses, before any work, a file or folder that cannot be written; makes nothing.

    Args:
        path: of the file or folder to be made; folders above it may be missing.
        option: that named it.

    Raises:
        ValueError: naming both and the reason.
    """
    place = path.expanduser().absolute()
    try:
        if place.exists() and not place.is_dir():
            with open(place, "ab"):
                return
        above = next(folder for folder in place.parents if folder.exists())
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written: {error.strerror or error}; name another place"
        ) from error
