"""The folder of everything that is kept between runs and may be removed at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """ZOO_CACHE, else detr-zoo below the user's cache folder; absolute, need not exist."""
    given = os.environ.get("ZOO_CACHE")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "detr-zoo"
