"""The ways to run a model that `zoo bench` times, and one run: from the bytes of images to detections."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.contract.batch import Batch, Predictions, Targets, unlabelled
from zoo.detector import DEFAULT_THRESHOLD, Detector, queries_above
from zoo.exporting import openvino
from zoo.exporting.onnx import exported
from zoo.prediction.image_input import read_input, size_of
from zoo.prediction.masks import sizes_without_padding
from zoo.runs.console import counted
from zoo.runs.timing import Laps
from zoo.runtimes import onnx
from zoo.runtimes.module import ExportedNetwork
from zoo.training.module import DetectionModule

RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STAGES = ("decode", "resize", "normalise", "network", "post-processing")
Network = Callable[[Batch], Predictions]


@dataclass
class Case:
    """One way to run a model.

    Attributes:
        model: its name.
        detector: the model, or the file that was made of it.
        runtime: for the user.
        layers: of the decoder; None where all run that there are.
        network: of a batch as the runtime takes it.
        laps: where the times of its runs go, and the device.
    """

    model: str
    detector: Detector
    runtime: str
    precision: str
    layers: int | None
    batch_size: int
    network: Network
    laps: Laps

    @property
    def label(self) -> str:
        """What tells it from the same model's others."""
        layers = "" if self.layers is None else f", {counted(self.layers, 'decoder layer')}"
        return f"{self.runtime}, {self.precision}{layers}, batch {self.batch_size}"

    def run(self, encoded: Iterator[bytes]) -> None:
        """The next images, timed stage by stage."""
        detector, laps = self.detector, self.laps
        contents = list(itertools.islice(encoded, self.batch_size))
        self.set_layers()
        laps.begin()
        pictures = [read_input(content, detector.input) for content in contents]
        laps.end("decode")
        resized = [detector.input.resize_image(picture) for picture in pictures]
        laps.end("resize")
        batch = detector.module.normalized(unlabelled(resized, [*map(size_of, pictures)]).to(laps.device))
        laps.end("normalise")
        with autocast(laps.device, self.precision):
            found = self.network(batch)
        laps.end("network")
        finish(detector.module, found, batch)
        laps.end("post-processing")

    def set_layers(self) -> None:
        """The model evaluates with this case's layers from now on; a file has those it was made with."""
        if self.layers is not None and self.detector.runtime == "pytorch":
            self.detector.module.set_decoder_layers(self.layers)

    def row(self) -> dict[str, Any]:
        """What was measured; times are of a whole batch."""
        whole, network = self.laps.together().summary(), self.laps.stages["network"]
        return {
            "model": self.model, "runtime": self.runtime, "precision": self.precision,
            "decoder_layers": self.layers, "batch_size": self.batch_size, "runs": len(network.wall),
            "network": network.summary(), "pipeline": whole,
            "images_per_second": 1000 * self.batch_size / whole["median_ms"],
            "stages_ms": {name: statistics.median(self.laps.stages[name].wall) for name in STAGES},
        }  # fmt: skip


def cases_of(
    detector: Detector, batch_sizes: Sequence[int], precisions: Sequence[str], layers: Sequence[int | None],
    compiled: bool, device: torch.device,
) -> Iterator[Case]:  # fmt: skip
    """Every way in PyTorch."""
    networks: list[tuple[str, Network]] = [("PyTorch", detector.module.predictions)]
    if compiled:
        # where images keep their aspect, the second size is compiled for all sizes
        dynamic = False if detector.input.resize == "stretch" else None
        networks.append(("PyTorch, compiled", compiled_network(detector.module, dynamic=dynamic)))
    for count, precision, size in itertools.product(layers, precisions, batch_sizes):
        for runtime, network in networks:
            yield Case(detector.name, detector, runtime, precision, count, size, network, Laps(device))


def cases_of_file(name: str, detector: Detector, batch_sizes: Sequence[int]) -> Iterator[Case]:
    """An exported file, on the CPU, in the precision and with the layers that it has."""
    network = detector.module.network
    assert isinstance(network, ExportedNetwork)
    facts, runtime = network.session.facts, RUNTIMES.get(detector.runtime, detector.runtime)
    for size in batch_sizes:
        run, laps = detector.module.predictions, Laps(torch.device("cpu"))
        yield Case(name, detector, runtime, facts.precision, facts.decoder_layers, size, run, laps)


def exported_for_bench(detector: Detector, layers: int | None, runtimes: Sequence[str]) -> list[Detector]:
    """The model with its first decoder layers as a file for each of the runtimes; the files are gone once read."""
    module = detector.module
    device, before = module.device, None if layers is None else module.set_decoder_layers(layers)
    try:
        _, graph = exported(detector.to("cpu"), detector.input, decoder_layers=layers)
    finally:
        if before is not None:
            module.set_decoder_layers(before)
        detector.to(device)
    files = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{onnx.SUFFIX}"
        path.write_bytes(graph.SerializeToString())
        if "onnxruntime" in runtimes:
            files.append(Detector.from_exported(path))
        if "openvino" in runtimes:
            files.append(
                Detector.from_exported(openvino.save(openvino.converted(path), path.parent, half=False))
            )
    return files


def compiled_network(module: DetectionModule, **options: Any) -> Network:
    """The network as one graph, captured and compiled at the first batch; `options` are those of `torch.compile`."""
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), ())

    def forward(images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        found = module.evaluation_network(Batch(images, padding, nothing, (), ())).final
        return found.logits, found.boxes

    graph = torch.compile(forward, fullgraph=True, **options)

    @torch.no_grad()  # as `predictions`: another mode would compile again
    def network(batch: Batch) -> Predictions:
        return Predictions(*graph(batch.images, batch.padding))

    return network


def finish(module: DetectionModule, found: Predictions, batch: Batch) -> None:
    """What `zoo predict` makes of raw predictions, but for names: detections on the CPU, masks, segments."""
    if module.instances is None:
        module.postprocess(found, batch.original_sizes)
        return
    sizes = sizes_without_padding(batch)
    module.instances(queries_above(found, DEFAULT_THRESHOLD), sizes, batch.original_sizes)
    if module.panoptic is not None:
        things = frozenset[int]() if module.label_map is None else module.label_map.things
        module.panoptic(found, sizes, batch.original_sizes, things)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Runs a network in this precision while entered."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
