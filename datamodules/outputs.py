"""Where a command may write: not into the data set it reads."""

from __future__ import annotations

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
