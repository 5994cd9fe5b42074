"""A tiny RT-DETR as an ONNX file, captured once a process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from registry_case import LABELS, tiny_module

from zoo.contract.preprocess import InputContract
from zoo.detector import Detector

CONTRACT = InputContract(resize="stretch", size=(64, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def detector() -> Detector:
    module = tiny_module()
    module.adopt(LABELS, CONTRACT)
    return Detector(module, "tiny")


@functools.cache
def graphs() -> tuple[Any, Any]:
    """The whole graph, and the one to write; not to be changed."""
    from zoo.exporting.onnx import exported

    return exported(detector(), CONTRACT)


def copied(graph: Any) -> Any:
    """A copy that may be changed."""
    copy = type(graph)()
    copy.CopyFrom(graph)
    return copy


def written(path: Path, graph: Any = None) -> Path:
    """The file of the tiny model, or of another graph."""
    path.write_bytes((graphs()[1] if graph is None else graph).SerializeToString())
    return path
