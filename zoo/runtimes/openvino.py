"""OpenVINO models: a folder with model.xml and model.bin."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.runtimes.facts import KEY, parse_facts
from zoo.runtimes.naming import OPENVINO_GRAPH, OPENVINO_SUFFIX
from zoo.runtimes.needed import needed
from zoo.runtimes.onnx import Arrays

SUFFIX, GRAPH_FILE = OPENVINO_SUFFIX, OPENVINO_GRAPH
LARGEST_GRAPH = 64 << 20  # bytes; the largest network of the zoo has 2 MB
# OpenVINO computes in bfloat16 on processors that have it, which moves boxes by pixels
EXACT = "f32"


def files_of(path: Path) -> list[Path]:
    """The files of an export: the one that is opened, and OpenVINO's weights beside its graph."""
    return [path, path.with_suffix(".bin")] if path.suffix == SUFFIX else [path]


class OpenVinoSession:
    """A graph in OpenVINO on the CPU, in float32 and with as many threads as torch has.

    Attributes:
        facts: of the file.
        name: of the runtime.
        path: of the graph, `model.xml`.
    """

    name = "openvino"

    def __init__(self, path: Path) -> None:
        self.path = path / GRAPH_FILE if path.is_dir() else path
        model = self._read()
        try:
            entry = model.get_rt_info([KEY]).astype(str)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} does not say what it is: it has no entry {KEY!r}, so it was not written by zoo export"
            ) from error
        self.facts = parse_facts(entry, str(self.path))
        self.compiled = self._compiled(model)
        for what, told, found in (
            ("inputs", self.facts.inputs, self.compiled.inputs),
            ("outputs", self.facts.outputs, self.compiled.outputs),
        ):
            there = {port.get_any_name(): str(port.get_element_type().to_dtype()) for port in found}
            if there != {name: tensor.dtype for name, tensor in told.items()}:
                raise ValueError(
                    f"{self.path}: the graph's {what} are {there}, not those that its facts tell"
                )

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for inputs by name.

        Raises:
            ValueError: inputs of a shape that the graph does not take.
        """
        return self._computed(self.compiled, list(self.facts.outputs), inputs)

    def inner_names(self) -> list[str]:
        """Names of all values inside the graph, in the order in which they are computed."""
        ports = [port for operation in self._read().get_ordered_ops() for port in operation.outputs()]
        return [name for port in ports for name in sorted(port.get_names())]

    def inner(self, names: Sequence[str]) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
        """A function as `run` for values inside the graph."""
        model = self._read()
        there = {name for port in model.outputs for name in port.get_names()}
        added = [name for name in names if name not in there]
        if added:
            model.add_outputs(added)
        compiled = self._compiled(model)
        return lambda inputs: self._computed(compiled, list(names), inputs)

    def _read(self) -> Any:
        openvino = needed("openvino", str(self.path))
        for file in files_of(self.path):
            if not file.is_file():
                raise FileNotFoundError(f"exported file {file} does not exist")
        if self.path.stat().st_size > LARGEST_GRAPH:
            raise ValueError(f"{self.path} has more than {LARGEST_GRAPH} bytes; no export has such a graph")
        with open(self.path, "rb") as file_:
            if not file_.read(16).lstrip().startswith(b"<"):
                raise ValueError(f"{self.path} is no OpenVINO graph; it is not XML")
        try:
            return openvino.Core().read_model(self.path)
        except Exception as error:  # a RuntimeError of several lines, or one of pybind's
            raise ValueError(f"{self.path} cannot be read by openvino: {_line(error)}") from error

    def _compiled(self, model: Any) -> Any:
        openvino = needed("openvino", str(self.path))
        options = {"INFERENCE_PRECISION_HINT": EXACT, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            with signal_stack_kept():
                return openvino.Core().compile_model(model, "CPU", options)
        except Exception as error:
            raise ValueError(f"{self.path} cannot be run by openvino: {_line(error)}") from error

    def _computed(self, compiled: Any, names: list[str], inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        taken = {name for port in compiled.inputs for name in port.get_names()}
        try:
            results = compiled({name: value for name, value in inputs.items() if name in taken})
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise ValueError(f"openvino does not compute {shapes}: {_line(error)}") from error
        return {name: np.array(results[name]) for name in names}  # its memory is used again


class _SignalStack(ctypes.Structure):
    """stack_t of <signal.h> on Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Inside, OpenVINO loads its CPU plug-in, which gives this thread a signal stack of its own and may free it later.

    The next signal that Python handles, e.g. of a data worker that has ended, would then end the process silently.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "src/" not in line]
    return " ".join(lines)[:300]
