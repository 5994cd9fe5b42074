"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.runtimes.facts import KEY, ExportedFacts, parse_facts
from zoo.runtimes.naming import ONNX_GRAPH, ONNX_SUFFIX
from zoo.runtimes.needed import needed

SUFFIX, GRAPH_FILE = ONNX_SUFFIX, ONNX_GRAPH
OPSETS = (20, 21)
LARGEST = (1 << 31) - 1  # bytes of a protobuf
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def read_graph(path: Path) -> tuple[Any, ExportedFacts]:
    """(onnx.ModelProto, facts) of a file; nothing of it is executed, and no other file is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, no export of the zoo, or refers to files outside.
    """
    onnx = needed("onnx", str(path))
    if not path.is_file():
        raise FileNotFoundError(f"exported file {path} does not exist")
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size} bytes; an ONNX file has less than 2 GiB")
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # protobuf's implementations raise errors of their own
        raise ValueError(f"{path} is no ONNX file, or is cut off: {str(error)[:120]}") from error
    entries = [entry.value for entry in model.metadata_props if entry.key == KEY]
    if len(entries) != 1:
        raise ValueError(
            f"{path} does not say what it is: it has no metadata entry {KEY!r}, so it was not written by zoo export, "
            "or is cut off"
        )
    facts = parse_facts(entries[0], str(path))
    refuse_other_opsets(model, path)
    outside = next(outside_files(model), None)
    if outside is not None:
        raise ValueError(
            f"{path} takes the tensor {outside[:80]!r} from another file; an export is one file, and no other is read"
        )
    return model, facts


def refuse_other_opsets(model: Any, path: Path) -> None:
    """Raises ValueError if a graph is of other operators than exports are."""
    for entry in model.opset_import:
        standard = entry.domain in ("", "ai.onnx")
        if standard and entry.version not in OPSETS:
            raise ValueError(
                f"{path} has opset {entry.version}; exports have {' or '.join(map(str, OPSETS))}; export it again"
            )
        if not standard and any(node.domain == entry.domain for node in model.graph.node):
            raise ValueError(f"{path} uses operators of {entry.domain[:60]!r}, which no export does")


def outside_files(model: Any) -> Iterator[str]:
    """Names of tensors whose values lie in another file."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from (t.name for t in graph.initializer if _is_outside(t))
            for sparse in graph.sparse_initializer:
                yield from (t.name for t in (sparse.values, sparse.indices) if _is_outside(t))
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            sparse_tensors = [attribute.sparse_tensor, *attribute.sparse_tensors]
            parts = [t for sparse in sparse_tensors for t in (sparse.values, sparse.indices)]
            tensors = [attribute.t, *attribute.tensors, *parts]
            yield from (t.name or attribute.name for t in tensors if _is_outside(t))
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs


def _is_outside(tensor: Any) -> bool:
    return tensor.data_location == tensor.EXTERNAL or len(tensor.external_data) > 0


class OnnxSession:
    """A graph in ONNX Runtime on the CPU, with as many threads as torch has.

    Attributes:
        facts: of the file.
        name: of the runtime.
        path: of the file.
    """

    name = "onnxruntime"

    def __init__(self, path: Path) -> None:
        self.path = path / GRAPH_FILE if path.is_dir() else path
        model, self.facts = read_graph(self.path)
        self.session = self._opened(model)
        for what, told, found in (
            ("inputs", self.facts.inputs, self.session.get_inputs()),
            ("outputs", self.facts.outputs, self.session.get_outputs()),
        ):
            there = {tensor.name: _dtype(tensor.type) for tensor in found}
            if there != {name: tensor.dtype for name, tensor in told.items()}:
                raise ValueError(
                    f"{self.path}: the graph's {what} are {there}, not those that its facts tell"
                )

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for inputs by name.

        Raises:
            ValueError: inputs of a shape that the graph does not take.
        """
        return self._computed(self.session, list(self.facts.outputs), inputs)

    def inner_names(self) -> list[str]:
        """Names of all values inside the graph, in the order in which they are computed."""
        model, _ = read_graph(self.path)
        return [name for node in model.graph.node for name in node.output if name]

    def inner(self, names: Sequence[str]) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
        """A function as `run` for values inside the graph."""
        model, _ = read_graph(self.path)
        del model.graph.output[:]
        for name in names:  # the runtime knows the types
            model.graph.output.add(name=name)
        session = self._opened(model)
        return lambda inputs: self._computed(session, list(names), inputs)

    def _opened(self, model: Any) -> Any:
        runtime = needed("onnxruntime", str(self.path))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised
        content = model.SerializeToString()
        try:
            return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, one an error code
            raise ValueError(f"{self.path} cannot be run by onnxruntime: {_line(error)}") from error

    def _computed(self, session: Any, names: list[str], inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        taken = {entry.name for entry in session.get_inputs()}
        try:
            values = session.run(names, {name: value for name, value in inputs.items() if name in taken})
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise ValueError(f"onnxruntime does not compute {shapes}: {_line(error)}") from error
        return dict(zip(names, values, strict=True))


def _dtype(name: str) -> str:
    """The name that numpy has for ONNX Runtime's `tensor(...)`."""
    inner = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32"}.get(inner, inner)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
