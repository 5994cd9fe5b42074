"""ONNX graphs in 16 and 8 bits. Parts of a network stay in float32 by name; which ones is measured, not hoped."""

from __future__ import annotations

import ast
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.exporting.half import halved
from zoo.runtimes.facts import KEY, Precision
from zoo.runtimes.needed import needed
from zoo.runtimes.onnx import Arrays

_SCOPES, _NETWORK = "pkg.torch.onnx.name_scopes", "detector.network."
_SLICE = re.compile(r"slice\([^)]*\)\.")  # what the exporter calls some of a list of layers
QUANTISED = ["Conv", "MatMul", "Gemm"]
SHARE = 8  # a part holds at most this part of a network's products, and one alone at least a quarter of that


def parts_of(whole: Any) -> dict[str, str]:
    """Node -> the part of the network that it belongs to, of a graph as the exporter made it.

    Parts are modules such as `encoder.fpn_blocks.0`: the largest that hold at most an eighth of the network's matrix
    products and convolutions. What a larger module computes beside such parts is one part, and small ones in it are
    too. Nodes before and behind the network have none.
    """
    paths = {}
    for node in whole.graph.node:
        entry = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        inside = [scope for scope in ast.literal_eval(entry) if scope.startswith(_NETWORK)]
        if inside:
            paths[node.name] = _SLICE.sub("", inside[-1].removeprefix(_NETWORK))
    weighty = [node.name for node in whole.graph.node if node.op_type in QUANTISED and node.name in paths]
    held = Counter(head for name in weighty for head in _heads(paths[name]))
    share = -(-len(weighty) // SHARE)

    def part(path: str) -> str:
        found = ""
        for head in _heads(path):
            if found and 4 * held[head] < share:
                return f"rest of {found}"
            found = head
            if held[head] <= share:
                return head
        return f"rest of {found}"

    return {name: part(path) for name, path in paths.items()}


def _heads(path: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    words = path.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def reduced(
    graph: Any, precision: Precision, exact: Collection[str], images: Iterable[Arrays], ranges: Path | None = None,
) -> Any:  # fmt: skip
    """A copy that computes in 16 or 8 bits; inputs and outputs keep their types.

    Args:
        graph: onnx.ModelProto of an export.
        precision: fp16 or int8.
        exact: names of nodes that stay in float32.
        images: inputs of the graph on which int8 learns the ranges of its values.
        ranges: file that keeps these ranges for the next call; None learns them again.
    """
    facts = [entry.value for entry in graph.metadata_props if entry.key == KEY]
    exact = list(exact)
    made = halved(graph, exact) if precision == "fp16" else _quantised(graph, exact, images, ranges)
    del made.metadata_props[:]
    entry = made.metadata_props.add()
    entry.key, entry.value = KEY, facts[0]
    return made


def _quantised(graph: Any, exact: list[str], images: Iterable[Arrays], ranges: Path | None) -> Any:
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
                before, after, Reader(), calibration_cache_path=ranges,
                quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=QUANTISED, nodes_to_exclude=exact,
                extra_options={
                    "ActivationSymmetric": False, "WeightSymmetric": True,
                    # results of products stay in float32: logits and offsets of boxes have more than 256 levels
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                },
            )  # fmt: skip
            return onnx.load(after)
    finally:
        root.setLevel(level)
