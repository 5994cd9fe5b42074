"""What a file that is written says of itself."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import msgspec

from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.registry.manifest import DataBlock, InputBlock, LabelMapBlock, ModelBlock
from zoo.registry.terms import NOT_STATED
from zoo.registry.weights import weights_digest
from zoo.runtimes.facts import DETECTIONS, RAW, DType, ExportedFacts, Precision, Source, TensorFacts
from zoo.tracking.lineage import installed

LIBRARIES = ("detr-zoo", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")
_HOLDS = {
    "images": "RGB levels 0 to 255, resized as `input` says; smaller images of a batch have zeros at the bottom and "
    "right. Normalisation is in the graph",
    "sizes": "(height, width) of each original image, to which boxes are scaled",
    "padding": "true where an image has none of its own pixels",
    "labels": "head index of each detection; `label_map` has its name and source id",
    "boxes": "(x0, y0, x1, y1) in pixels of the original image, not clipped to it",
    "scores": "of each detection in [0, 1], best first",
    "logits": "of every query, before the sigmoid; with softmax families the last is `no object`",
    "pred_boxes": "(centre x, centre y, width, height) of every query in [0, 1] of the image without its padding",
    "masks": "logits of every query over the padded image, at a fraction of its size",
}  # fmt: skip


_LEVELS = "levels 0 to 255 of each channel, made of its values as `input.scale` says"


def facts_of(
    detector: Detector, model: Any, contract: InputContract, *, raw: bool, precision: Precision,
    decoder_layers: int | None,
) -> ExportedFacts:  # fmt: skip
    """The facts of a file.

    Args:
        detector: that is exported.
        model: onnx.ModelProto of its whole graph.
        contract: of the exported input.
        raw: without the family's post-processing.
        precision: of the file.
        decoder_layers: that are evaluated; None for all.
    """
    module = detector.module
    names = RAW if raw else DETECTIONS if module.instances is None else (*DETECTIONS, *RAW)
    masks = () if module.instances is None else ("masks",)
    there = {entry.name: entry for entry in (*model.graph.input, *model.graph.output)}
    inputs = [entry.name for entry in model.graph.input if not (raw and entry.name == "sizes")]
    given, found = (
        {name: _tensor(there[name], contract) for name in part} for part in (inputs, (*names, *masks))
    )
    return _facts(detector, contract, given, found, precision, decoder_layers)


def facts_of_folder(detector: Detector) -> ExportedFacts:
    """The facts of a folder of transformers, whose processor and network together take what a graph takes."""
    module, contract = detector.module, detector.input
    stretch = contract.resize == "stretch"
    sides: list[int | str] = list(contract.size) if stretch else ["height", "width"]
    queries: list[int | str] = ["batch", "queries"]
    boxes: list[int | str] = ["batch", "detections"]
    inputs: dict[str, tuple[DType, list[int | str]]] = {
        "images": ("uint8", ["batch", 3, *sides]), "sizes": ("int64", ["batch", 2])
    }  # fmt: skip
    if not stretch:
        inputs["padding"] = ("bool", ["batch", *sides])
    outputs: dict[str, tuple[DType, list[int | str]]] = {
        "labels": ("int64", boxes), "boxes": ("float32", [*boxes, 4]), "scores": ("float32", boxes)
    }  # fmt: skip
    if module.instances is not None:
        outputs |= {
            "logits": ("float32", [*queries, module.num_classes + 1]),
            "pred_boxes": ("float32", [*queries, 4]),
        }
        outputs["masks"] = ("float32", [*queries, "height of a mask", "width of a mask"])
    given, found = (
        {
            name: TensorFacts(dtype=dtype, shape=shape, holds=_HOLDS[name])
            for name, (dtype, shape) in part.items()
        }
        for part in (inputs, outputs)
    )
    return _facts(detector, contract, given, found, "fp32", None)


def _facts(
    detector: Detector, contract: InputContract, inputs: dict[Any, TensorFacts], outputs: dict[Any, TensorFacts],
    precision: Precision, decoder_layers: int | None,
) -> ExportedFacts:  # fmt: skip
    module, manifest = detector.module, detector.manifest
    lineage = None if manifest is None else manifest.lineage
    data = None if manifest is None else manifest.data
    if data is None and module.data_digest is not None:
        data = DataBlock(name="not stated", split="train", digest=module.data_digest)
    return ExportedFacts(
        format=1,
        model=ModelBlock(**module.model_block()),
        label_map=msgspec.convert(detector.label_map.to_dict(), LabelMapBlock),
        input=msgspec.convert(contract.to_dict(), InputBlock),
        inputs=inputs,
        outputs=outputs,
        precision=precision,
        decoder_layers=decoder_layers,
        license=NOT_STATED if manifest is None else manifest.license,
        terms=None if manifest is None else manifest.terms,
        thresholds=detector.thresholds,
        source=Source(
            name=detector.name,
            weights_sha256=weights_digest(module.evaluation_network.state_dict()),
            run=None if lineage is None else lineage.run,
            git_commit=None if lineage is None else lineage.git_commit,
            parent=None if lineage is None else lineage.parent,
            data=data,
        ),
        created=datetime.date.today().isoformat(),
        tool_versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of Python and the libraries that have a part in an export; those that are not installed are left out."""
    return {"python": platform.python_version(), **installed(LIBRARIES)}


def _tensor(entry: Any, contract: InputContract) -> TensorFacts:
    kind, holds = entry.type.tensor_type, _HOLDS[entry.name]
    if entry.name == "images" and not contract.is_rgb:
        holds = holds.replace("RGB levels 0 to 255", _LEVELS)
    shape = [side.dim_value or side.dim_param or "any" for side in kind.shape.dim]
    return TensorFacts(dtype=_DTYPES[kind.elem_type], shape=shape, holds=holds)


_DTYPES: dict[int, Any] = {1: "float32", 2: "uint8", 7: "int64", 9: "bool"}  # of onnx.TensorProto
