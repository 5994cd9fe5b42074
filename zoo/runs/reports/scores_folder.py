"""Where scores and pages of a model go unless `--output` says."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from zoo.runs.run_folder import RUNS

SCORES = Path("mlruns", "scores")
_LONGEST = 100  # bytes of a name; a file system takes 255, and a comparison has two


def scores_folder(models: list[str], split: str) -> Path:
    """`mlruns/scores/MODEL.SPLIT`, of two `FIRST.and.SECOND.SPLIT`; equal names in two folders are two.

    Args:
        models: registered names, or paths, of which all folders count: every export is called model.onnx.
        split: `val` or `test`.
    """
    return SCORES / f"{'.and.'.join(map(_short, models))}.{split}"


def _short(model: str) -> str:
    path = Path(os.path.abspath(os.path.expanduser(model)))
    above = next((folder for folder in (RUNS.absolute(), Path.cwd()) if folder in path.parents), path.anchor)
    name = ".".join(path.relative_to(above).parts).replace(":", ".").replace("@", ".")
    content = name.encode(errors="surrogateescape")
    if len(content) <= _LONGEST:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{digest}-{content[-_LONGEST:].decode(errors='ignore')}"
