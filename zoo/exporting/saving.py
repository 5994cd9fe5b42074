"""An export's graph on disk in the form and precision that are asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from zoo.exporting.openvino import converted
from zoo.exporting.openvino import save as save_openvino
from zoo.exporting.reduced import QUANTISED, parts_of, reduced
from zoo.exporting.search import Certify, fewest_kept
from zoo.runtimes import onnx, openvino
from zoo.runtimes.facts import KEY, ExportedFacts, Precision, parse_facts
from zoo.runtimes.onnx import Arrays
from zoo.runtimes.openvino import files_of
from zoo.storage.durable import written

Form = Literal["onnx", "openvino"]
FILES = {"onnx": onnx.GRAPH_FILE, "openvino": openvino.GRAPH_FILE}


def save(
    graph: Any, to: Form, folder: Path, precision: Precision, exact: Collection[str] = (),
    images: Sequence[Arrays] = (), ranges: Path | None = None,
) -> Path:  # fmt: skip
    """Writes onnx.ModelProto into a folder in the form that is asked for; returns the file to open.

    Args:
        graph: in float32.
        to: the form.
        folder: what it holds of the same name is overwritten.
        precision: of the file.
        exact: names of nodes that stay in float32.
        images: on which int8 learns the ranges of its values.
        ranges: file that keeps these ranges from one call to the next.
    """
    path = folder / FILES["onnx"]
    if learns(to, precision):
        graph = reduced(graph, precision, exact, images, ranges)
    with written(path):
        path.write_bytes(graph.SerializeToString())
    if to == "onnx":
        return path
    saved = save_openvino(converted(path), folder, half=precision == "fp16")
    path.unlink()
    return saved


def learns(to: str, precision: Precision) -> bool:
    """Whether a form and precision are learned from images: ranges of values, or which parts stay in float32.

    OpenVINO in 16 bits has weights of 16 bits, and computes in float32 on a CPU.
    """
    return precision == "int8" or (to, precision) == ("onnx", "fp16")


def facts_of_graph(graph: Any) -> ExportedFacts:
    """The facts in the metadata of onnx.ModelProto."""
    return parse_facts(next(entry.value for entry in graph.metadata_props if entry.key == KEY), "the graph")


def measured(
    whole: Any, graph: Any, to: Form, precision: Precision, images: Sequence[Arrays], folder: Path,
    certify: Certify, cost: Callable[[Path], float], say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """A reduced file in a folder and its certificate; see `fewest_kept`.

    Args:
        whole: graph as the exporter made it, which knows the parts.
        graph: to write.
        to: the form.
        precision: fp16 or int8.
        images: on which int8 learns the ranges of its values.
        folder: of the file.
        certify: of a file.
        cost: of a file.
        say: for the user.
    """
    part_of = parts_of(whole)
    nodes = [node.name for node in graph.graph.node]
    counted = [
        n.name
        for n in graph.graph.node
        if n.name in part_of and (precision != "int8" or n.op_type in QUANTISED)
    ]
    with tempfile.TemporaryDirectory() as memory:

        def make(parts: Collection[str]) -> Path:
            exact = [name for name in nodes if part_of.get(name) not in parts]
            trial = Path(tempfile.mkdtemp(dir=memory))
            return save(graph, to, trial, precision, exact, images, Path(memory) / "ranges.json")

        path, document = fewest_kept(sorted({part_of[name] for name in counted}), make, certify, cost, say)
        for file in files_of(path):
            shutil.move(file, folder)
        return folder / path.name, document
