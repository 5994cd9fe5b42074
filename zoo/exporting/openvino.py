"""A detector's graph as an OpenVINO folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.runtimes.facts import KEY
from zoo.runtimes.needed import needed
from zoo.runtimes.openvino import GRAPH_FILE
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


def save(model: Any, folder: Path, half: bool) -> Path:
    """Writes model.xml and model.bin; returns the first.

    Args:
        model: openvino.Model.
        folder: that exists.
        half: weights in 16 bits, which its own writer takes unless told otherwise.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / GRAPH_FILE
    openvino = needed("openvino", "export to OpenVINO")
    with written(path):
        try:
            openvino.save_model(model, path, compress_to_fp16=half)
        except RuntimeError as error:  # its streams do not say why
            raise OSError(f"openvino cannot write {path} ({error}); is the disk full?") from error
    return path
