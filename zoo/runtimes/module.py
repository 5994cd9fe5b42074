"""A detection module whose network another runtime computes: prediction, evaluation and masks work on it unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoo.contract.batch import Batch, Detections, Outputs, Predictions
from zoo.registry.manifest import ModelBlock
from zoo.runtimes import onnx, openvino, transformers
from zoo.runtimes.facts import DETECTIONS, ExportedFacts
from zoo.runtimes.naming import CONFIG_FILE, exports_in
from zoo.runtimes.onnx import Arrays, OnnxSession
from zoo.runtimes.openvino import OpenVinoSession
from zoo.runtimes.transformers import TransformersSession
from zoo.training.module import DetectionModule, build_module


class Session(Protocol):
    """An exported file that is ready to run."""

    name: str  # of the runtime
    facts: ExportedFacts

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for inputs by name, both as the facts tell."""
        ...

    def inner_names(self) -> list[str]:
        """Names of values inside the graph, in the order in which they are computed."""
        ...

    def inner(self, names: Sequence[str]) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
        """A function as `run` for values inside the graph."""
        ...


class ExportedNetwork(nn.Module):
    """Runs a session: uint8 images to outputs on the device of the images."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    @property
    def takes_any_number(self) -> bool:
        """Of images, whose number is not fixed in the graph."""
        return not isinstance(self.session.facts.inputs["images"].shape[0], int)

    def forward(self, batch: Batch) -> Outputs:
        """Logits and boxes where the graph gives them; detections, where it makes them, as extras.

        Raises:
            ValueError: images of a size that the graph does not take, or padding without an input for it.
        """
        device = batch.images.device
        computed = self.session.run(inputs_of(self.session.facts, batch))
        found = {name: torch.from_numpy(value).to(device) for name, value in computed.items()}
        detections: dict[str, Tensor] = {name: found[name] for name in DETECTIONS if name in found}
        images = len(batch)
        logits = found.get("logits", torch.empty(images, 0, 0, device=device))
        boxes = found.get("pred_boxes", torch.empty(images, 0, 4, device=device))
        masks = found.get("masks")

        def of_queries(image: Tensor, query: Tensor) -> Tensor:
            assert masks is not None
            return masks[image, query]

        return Outputs(Predictions(logits, boxes, detections, None if masks is None else of_queries))


def inputs_of(facts: ExportedFacts, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    """What a graph takes, of a batch of uint8 images.

    Raises:
        ValueError: images of a size that the graph does not take, or padding without an input for it.
    """
    sides, shape = facts.inputs["images"].shape, batch.images.shape
    if any(isinstance(side, int) and side != given for side, given in zip(sides, shape, strict=True)):
        raise ValueError(f"the graph takes images of {sides}, not {list(shape)}")
    inputs = {"images": batch.images.cpu().numpy()}
    if "sizes" in facts.inputs:
        inputs["sizes"] = np.array(batch.original_sizes, dtype=np.int64).reshape(-1, 2)
    if "padding" in facts.inputs:
        inputs["padding"] = batch.padding.cpu().numpy()
    elif bool(batch.padding.any()):
        raise ValueError("the graph has no input for padding, and the batch has images of several sizes")
    return inputs


@dataclass(frozen=True)
class GraphDetections:
    """The post-processing of a graph that has done it."""

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An exported file is not exported again.

        Raises:
            ValueError: always.
        """
        raise ValueError("this is an exported file; export the model that it was made of")

    def __call__(
        self, predictions: Predictions, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image on the CPU, best first; the graph was given the sizes."""
        labels, boxes, scores = (predictions.extras[name].cpu() for name in DETECTIONS)
        return [Detections(*image) for image in zip(scores, labels, boxes, strict=True)]


def open_session(path: Path) -> Session:
    """The session of an exported file, or of the folder that holds it.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or no export of the zoo; a folder holds several.
    """
    several = exports_in(path)
    if len(several) > 1:
        raise ValueError(f"{path} holds {' and '.join(several)}; give the whole path of one of them")
    if path.suffix == onnx.SUFFIX or (path / onnx.GRAPH_FILE).is_file():
        return OnnxSession(path)
    return TransformersSession(path) if (path / CONFIG_FILE).is_file() else OpenVinoSession(path)


def files_of(path: Path) -> list[Path]:
    """The files of an export: the one that is opened, and those beside it that belong to it."""
    if path.is_dir():
        return [path / name for name in transformers.FILES if (path / name).is_file()]
    return openvino.files_of(path)


def exported_module(session: Session) -> DetectionModule:
    """The family's module with the session in place of its network.

    Raises:
        ValueError: its facts fit no architecture of this version.
    """
    facts = session.facts
    with torch.device("meta"):  # its weights are in the file
        module = build_module(plain_block(facts.model), backbone_weights="random")
    module.ema = None
    module.network = ExportedNetwork(session)
    module.to_empty(device="cpu").to("cpu")  # the metrics, which are empty; the second tells Lightning
    module.runtime = session.name
    if not facts.raw:
        module.postprocess = GraphDetections()
    if "masks" not in facts.outputs:
        module.instances = module.panoptic = None
    module.adopt(facts.labels(), facts.contract())
    return module.eval()


def plain_block(block: ModelBlock) -> dict[str, Any]:
    """The block as plain values."""
    return {"class_path": block.class_path, "init_args": block.init_args}
