"""ONNX graphs in 16 and 8 bits. Parts of a network stay in float32 by name; which ones is measured, not hoped."""

from __future__ import annotations

import ast
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.runtimes.facts import KEY, Precision
from zoo.runtimes.needed import needed
from zoo.runtimes.onnx import Arrays

_SCOPES, _NETWORK = "pkg.torch.onnx.name_scopes", "detector.network."
QUANTISED = ["Conv", "MatMul", "Gemm"]


def parts_of(whole: Any) -> dict[str, str]:
    """Node -> the part of the network that it belongs to, of a graph as the exporter made it.

    Parts are the children of the network, such as `backbone`; nodes before and behind the network have none.
    """
    found = {}
    for node in whole.graph.node:
        entry = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        inside = [scope for scope in ast.literal_eval(entry) if scope.startswith(_NETWORK)]
        if inside:
            found[node.name] = inside[-1].removeprefix(_NETWORK).split(".")[0]
    return found


def reduced(graph: Any, precision: Precision, exact: Collection[str], images: Iterable[Arrays]) -> Any:
    """A copy that computes in 16 or 8 bits; inputs and outputs keep their types.

    Args:
        graph: onnx.ModelProto of an export.
        precision: fp16 or int8.
        exact: names of nodes that stay in float32.
        images: inputs of the graph on which int8 learns the ranges of its values.
    """
    facts = [entry.value for entry in graph.metadata_props if entry.key == KEY]
    made = _halved(graph, list(exact)) if precision == "fp16" else _quantised(graph, list(exact), images)
    del made.metadata_props[:]
    entry = made.metadata_props.add()
    entry.key, entry.value = KEY, facts[0]
    return made


def _halved(graph: Any, exact: list[str]) -> Any:
    float16 = needed("onnxruntime.transformers.float16", "export in fp16")
    copied = type(graph)()
    copied.CopyFrom(graph)
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, "GridSample"]  # places are read to a fraction of a pixel
    return float16.convert_float_to_float16(
        copied, keep_io_types=True, op_block_list=blocked, node_block_list=exact, disable_shape_infer=False
    )


def _quantised(graph: Any, exact: list[str], images: Iterable[Arrays]) -> Any:
    onnx = needed("onnx", "export in int8")
    quantization = needed("onnxruntime.quantization", "export in int8")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Gives the images one after the other."""

        def __init__(self) -> None:
            self.left: Iterator[Arrays] = iter(images)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            """The next inputs; None behind the last."""
            found = next(self.left, None)
            return None if found is None else dict(found)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that the exporter has done
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(graph, before)
            quantization.quantize_static(
                before, after, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=QUANTISED, nodes_to_exclude=exact,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )  # fmt: skip
            return onnx.load(after)
    finally:
        root.setLevel(level)
