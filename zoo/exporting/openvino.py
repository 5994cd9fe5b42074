"""A detector's graph as an OpenVINO folder."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from zoo.runtimes.facts import KEY
from zoo.runtimes.needed import needed
from zoo.runtimes.onnx import Arrays
from zoo.runtimes.openvino import GRAPH_FILE, signal_stack_kept
from zoo.storage.durable import written


def converted(graph: Path) -> Any:
    """openvino.Model of an ONNX file of an export, with its facts.

    Raises:
        ValueError: OpenVINO cannot convert it.
    """
    openvino, onnx = needed("openvino", "export to OpenVINO"), needed("onnx", "export to OpenVINO")
    try:
        model: Any = openvino.convert_model(graph)
    except Exception as error:
        raise ValueError(
            f"openvino cannot convert the graph: {' '.join(str(error).split())[:300]}"
        ) from error
    entries = onnx.load(graph, load_external_data=False).metadata_props
    model.set_rt_info(next(entry.value for entry in entries if entry.key == KEY), [KEY])
    return model


def quantised(model: Any, exact: Collection[str], images: Sequence[Arrays]) -> Any:
    """openvino.Model in 8 bits.

    Args:
        model: openvino.Model of an export.
        exact: names of nodes that stay in float32.
        images: inputs of the graph on which the ranges of values are learned.
    """
    nncf = needed("nncf", "export to OpenVINO in int8")
    entry = model.get_rt_info([KEY]).astype(str)
    nncf.set_log_level(logging.ERROR)
    there = {operation.get_friendly_name() for operation in model.get_ordered_ops()}
    ignored = nncf.IgnoredScope(names=sorted(there & set(exact)), validate=False)
    with signal_stack_kept(), contextlib.redirect_stdout(io.StringIO()):  # its bars
        made: Any = nncf.quantize(
            model, nncf.Dataset([dict(inputs) for inputs in images]), model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images), ignored_scope=ignored,
        )  # fmt: skip
    made.set_rt_info(entry, [KEY])
    return made


def save(model: Any, folder: Path, half: bool) -> Path:
    """Writes model.xml and model.bin; returns the first.

    Args:
        model: openvino.Model.
        folder: that exists.
        half: weights in 16 bits, which its own writer takes unless told otherwise.
    """
    path = folder / GRAPH_FILE
    with written(path):
        needed("openvino", "export to OpenVINO").save_model(model, path, compress_to_fp16=half)
    return path
