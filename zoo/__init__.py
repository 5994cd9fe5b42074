"""DETR-family detectors: trained by published schedules, loaded by name.

>>> detector = zoo.load("rt_detr_r18")
>>> detector.predict("street.jpg").to_dict()

Importing this package imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zoo import _moved

if TYPE_CHECKING:
    from zoo.detector import Detector

__all__ = ["available", "load"]

_moved.install()


def load(name: str | Path, registry: str | Path | None = None) -> Detector:
    """The detector of `NAME[@alias|:version]`, every hash checked; fetches a built-in model once.

    Args:
        name: from `available()`, a bare name for its default tag, or the user's own; or the path of a checkpoint or
            of a run's folder. A name that is both is the registry's; `./name` is the folder.
        registry: folder of the user's registry; ZOO_REGISTRY or ./mlruns/registry by default.
    """
    from zoo.runs.subject import load_detector

    return load_detector(name, registry)


def available(registry: str | Path | None = None) -> list[str]:
    """Full names of all models that `load` knows: built-in ones, then those of the user's registry."""
    from zoo.registry.store import available as names

    return names(registry)
