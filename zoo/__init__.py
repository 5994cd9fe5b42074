"""DETR-family detectors: trained by published schedules, loaded by name.

`finetune` trains on a folder of your own, `fit` trains a recipe, `evaluate` scores, `load` gives a detector,
`export` writes one for other runtimes, `publish` registers a run, and `recipe` builds module and data for a Lightning
Trainer of your own.

>>> import zoo
>>> "rt_detr_r18.coco_72e" in zoo.available()
True

Importing this package imports no torch: each name is fetched when it is used first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo import _moved

if TYPE_CHECKING:
    from zoo.detector import Detector, Prediction
    from zoo.registry.store import available
    from zoo.runs.building import Recipe, recipe
    from zoo.runs.console import Console, Silent
    from zoo.runs.evaluate import evaluate
    from zoo.runs.export import export
    from zoo.runs.finetune import finetune
    from zoo.runs.fit import fit
    from zoo.runs.run import Run, publish
    from zoo.runs.subject import load

__all__ = [
    "Console", "Detector", "Prediction", "Recipe", "Run", "Silent", "available", "evaluate", "export", "finetune",
    "fit", "load", "publish", "recipe",
]  # fmt: skip
_PLACES = {
    "Detector": "zoo.detector", "Prediction": "zoo.detector",
    "available": "zoo.registry.store",
    "Recipe": "zoo.runs.building", "recipe": "zoo.runs.building",
    "Console": "zoo.runs.console", "Silent": "zoo.runs.console",
    "evaluate": "zoo.runs.evaluate",
    "export": "zoo.runs.export",
    "finetune": "zoo.runs.finetune",
    "fit": "zoo.runs.fit",
    "publish": "zoo.runs.run",
    "Run": "zoo.runs.run",
    "load": "zoo.runs.subject",
}  # fmt: skip

_moved.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("detr-zoo")
    if name not in _PLACES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
