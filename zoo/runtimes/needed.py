"""Libraries of the extra `export`, imported only where an exported file is written or read."""

from __future__ import annotations

import importlib
from typing import Any


def needed(library: str, what: str) -> Any:
    """The imported library.

    Args:
        library: its name.
        what: needs it, for the message.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ValueError(f"{what} needs {library} ({error}): pip install 'detr-zoo[export]'") from error
