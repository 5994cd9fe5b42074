"""An export's graph on disk in the form and precision that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.exporting.differences import mean_difference
from zoo.exporting.openvino import converted, quantised
from zoo.exporting.openvino import save as save_openvino
from zoo.exporting.reduced import parts_of, reduced
from zoo.runtimes.facts import KEY, RAW, ExportedFacts, Precision, parse_facts
from zoo.runtimes.module import open_session
from zoo.runtimes.onnx import SUFFIX, Arrays
from zoo.runtimes.openvino import GRAPH_FILE
from zoo.storage.durable import written

Form = Literal["onnx", "openvino"]
FILES = {"onnx": f"model{SUFFIX}", "openvino": GRAPH_FILE}


def save(
    graph: Any, to: Form, folder: Path, precision: Precision, exact: Collection[str] = (),
    images: Sequence[Arrays] = (),
) -> Path:  # fmt: skip
    """Writes onnx.ModelProto into a folder in the form that is asked for; returns the file to open.

    Args:
        graph: in float32.
        to: the form.
        folder: what it holds of the same name is overwritten.
        precision: of the file.
        exact: names of nodes that stay in float32.
        images: on which int8 learns the ranges of its values.
    """
    path = folder / FILES["onnx"]
    if to == "onnx" and precision != "fp32":
        graph = reduced(graph, precision, exact, images)
    with written(path):
        path.write_bytes(graph.SerializeToString())
    if to == "onnx":
        return path
    model = converted(path)
    if precision == "int8":
        model = quantised(model, exact, images)
    saved = save_openvino(model, folder, half=precision == "fp16")
    path.unlink()
    return saved


def facts_of_graph(graph: Any) -> ExportedFacts:
    """The facts in the metadata of onnx.ModelProto."""
    return parse_facts(next(entry.value for entry in graph.metadata_props if entry.key == KEY), "the graph")


def measured(
    whole: Any, graph: Any, to: Form, precision: Precision, images: list[dict[str, Any]], folder: Path,
    certify: Callable[..., dict[str, Any]], say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Reduces all parts of the network, and gives the most sensitive back to float32 until the certificate passes.

    Returns:
        The file and its certificate, which has failed where no part is left.
    """
    part_of = parts_of(whole)
    nodes = [node.name for node in graph.graph.node]

    def saved(reduced_parts: Collection[str]) -> Path:
        exact = [name for name in nodes if part_of.get(name) not in reduced_parts]
        return save(graph, to, folder, precision, exact, images)

    left = sorted(set(part_of.values()))
    path = saved(left)
    document = certify(path)
    sensitive: list[str] = []
    if not document["passed"]:
        exact = outputs_of(save(graph, to, folder, "fp32"), images)
        costs = {part: apart_from(exact, outputs_of(saved([part]), images)) for part in left}
        sensitive = sorted(left, key=lambda part: costs[part])
        told = ", ".join(f"{part} {costs[part]:.3g}" for part in reversed(sensitive))
        say(f"measured    mean difference with one part alone in {precision}: {told}")
    while not document["passed"] and len(left) > 1:
        left.remove(sensitive.pop())
        kept = sorted(set(part_of.values()) - set(left))
        say(f"kept        {', '.join(kept)} in float32, for {document['failures'][0]}")
        path = saved(left)
        document = certify(path, kept=kept)
    return path, document


def outputs_of(path: Path, images: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Logits and boxes of all queries, of single images."""
    run = open_session(path).inner(RAW)
    return [run(inputs) for inputs in images]


def apart_from(exact: list[dict[str, Any]], found: list[dict[str, Any]]) -> float:
    """Mean difference over images, see `mean_difference`."""
    each = [
        mean_difference(*((a[name][0], b[name][0].astype(np.float32)) for name in RAW))
        for a, b in zip(exact, found, strict=True)
    ]
    return float(np.mean(each))
