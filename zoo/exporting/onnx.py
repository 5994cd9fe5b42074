"""A detector's graph as one ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.facts import facts_of
from zoo.exporting.graph import DetectionGraph, recorded
from zoo.runtimes.facts import KEY, ExportedFacts, Precision
from zoo.runtimes.needed import needed
from zoo.runtimes.onnx import OPSETS

OPSET = OPSETS[0]
LARGEST_BATCH = 64  # that the exporter is told of; the file takes larger ones
_EXAMPLE = (96, 128)  # (H, W) of the images that a graph without sides of its own is traced with


class _Traced(nn.Module):
    """The graph's tensors by name, with those of blocks inside behind them."""

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        self.detector = graph

    def forward(self, images: Tensor, sizes: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        with recorded(self.detector) as blocks:
            found = self.detector(images, sizes, padding)
        return found | blocks


def traced(graph: DetectionGraph, sides: tuple[int, int] | None, padded: bool) -> Any:
    """onnx.ModelProto of a graph whose outputs are all its tensors, those of blocks inside as `block.<name>`.

    Args:
        graph: in evaluation mode, on the CPU.
        sides: (H, W) of all images; None for any.
        padded: whether padding is an input.

    Raises:
        ValueError: the network cannot be captured.
    """
    needed("onnx", "export to ONNX")
    needed("onnxscript", "export to ONNX")
    height, width = sides or _EXAMPLE
    images = torch.zeros(2, graph.contract.channels, height, width, dtype=torch.uint8)
    inputs: dict[str, Tensor] = {"images": images, "sizes": torch.tensor([[480, 640], [427, 640]])}
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    shapes: dict[str, dict[int, Any]] = {"images": {0: batch}, "sizes": {0: batch}}
    if sides is None:
        rows, columns = (torch.export.Dim(name, min=65, max=8192) for name in ("height", "width"))
        shapes["images"] |= {2: rows, 3: columns}
    if padded:
        inputs["padding"] = torch.zeros(2, height, width, dtype=torch.bool)
        inputs["padding"][1, -8:] = True
        shapes["padding"] = {0: batch} if sides else {0: batch, 1: rows, 2: columns}
    module = _Traced(graph).eval()
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
            exporter: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, external_data=False, verbose=False
            )
        except Exception as error:  # torch.export and the converter raise errors of many classes
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"the network cannot be captured as a graph: {reason}") from error
    outputs = exporter.model.graph.outputs
    names = program.call_spec.out_spec.unflatten(outputs)
    for name, value in names.items():
        value.name = name
    model: Any = exporter.model_proto
    refuse_opset(model)
    name_sides(model)
    return model


def refuse_opset(model: Any) -> None:
    """Raises ValueError if the exporter took another opset than it was asked for, which it does without a word."""
    found = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    if found != {OPSET}:
        raise ValueError(
            f"the exporter wrote opset {found}, not {OPSET}; use another release of torch or onnxscript"
        )


def name_sides(model: Any) -> None:
    """Gives the exporter's symbols for sides that any number may stand for their meaning."""
    images = next(entry for entry in model.graph.input if entry.name == "images")
    sides = zip(images.type.tensor_type.shape.dim, ("batch", "channels", "height", "width"), strict=True)
    words = {side.dim_param: word for side, word in sides if side.dim_param}
    for entry in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for side in entry.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = re.sub(r"\w+", lambda found: words.get(found[0], found[0]), side.dim_param)


def finished(model: Any, facts: ExportedFacts) -> Any:
    """A copy whose outputs are those of the facts, with the facts in its metadata."""
    copied = type(model)()
    copied.CopyFrom(model)
    known = {entry.name: entry for entry in model.graph.output}
    del copied.graph.output[:]
    copied.graph.output.extend(known[name] for name in facts.outputs)
    remove_unused(copied)
    del copied.metadata_props[:]
    entry = copied.metadata_props.add()
    entry.key, entry.value = KEY, facts.to_json()
    for node in copied.graph.node:  # where in the exporter's code a node comes from: paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    return copied


def remove_unused(model: Any) -> None:
    """Leaves out nodes, weights and inputs that no output needs. Graphs of exports have none inside of nodes."""
    wanted, used = {entry.name for entry in model.graph.output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted.update(node.input)
            used.append(node)
    used = [type(node).FromString(node.SerializeToString()) for node in reversed(used)]
    del model.graph.node[:]
    model.graph.node.extend(used)
    for entries in (model.graph.initializer, model.graph.input):
        for entry in [entry for entry in entries if entry.name not in wanted]:
            entries.remove(entry)


@contextlib.contextmanager
def quiet() -> Any:
    """Without what the exporter prints, logs and warns of."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def exported(
    detector: Detector, contract: InputContract, *, raw: bool = False, precision: Precision = "fp32",
    decoder_layers: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """A detector's whole graph as of `traced`, and the one to write as of `finished`.

    Args:
        detector: computed by PyTorch, on the CPU.
        contract: of the exported input; the detector's, or another size.
        raw: without the family's post-processing.
        precision: that the file will have, for the facts.
        decoder_layers: that the module evaluates now, for the facts; None for all.

    Raises:
        ValueError: it cannot be captured.
    """
    graph = DetectionGraph(detector.module, contract).eval()
    keeps_aspect = contract.resize == "shortest"
    whole = traced(graph, None if keeps_aspect else contract.size, padded=keeps_aspect)
    facts = facts_of(
        detector, whole, contract, raw=raw, precision=precision, decoder_layers=decoder_layers
    )  # fmt: skip
    return whole, finished(whole, facts)
