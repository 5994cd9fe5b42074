"""What an exported file says of itself, in its own metadata: enough to use it without anything beside it.

A file may come from other people: its facts are read as a manifest's are, with limits, known keys alone, and
nothing executed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.registry.manifest import (
    Commit,
    DataBlock,
    InputBlock,
    LabelMapBlock,
    ModelBlock,
    RunId,
    Sha256,
    Thresholds,
    Words,
    refuse_unknown_classes,
)
from zoo.registry.terms import ModelTerms, check_terms

KEY = "detr_zoo"  # of the metadata entry
MOST_BYTES = 4 << 20  # of the facts; 10,000 classes have 1 MB

DETECTIONS = ("labels", "boxes", "scores")  # names of outputs
RAW = ("logits", "pred_boxes")

Precision = Literal["fp32", "fp16", "int8"]
InputName = Literal["images", "sizes", "padding"]
OutputName = Literal["labels", "boxes", "scores", "logits", "pred_boxes", "masks"]


class _Block(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Unknown keys are errors: facts of a later format must not go unread."""


DType = Literal["uint8", "int64", "bool", "float32"]


class TensorFacts(_Block, kw_only=True, frozen=True):
    """An input or output: numpy's name of its type, sides (a word is any number) and what it holds."""

    dtype: DType
    shape: list[int | Words]
    holds: Words


class Source(_Block, kw_only=True, frozen=True):
    """The weights in the file: what they were loaded from, their digest, run, commit, parent and data.

    `weights_sha256` is `zoo.registry.weights.weights_digest`, which does not depend on the file they lie in.
    """

    name: Words
    weights_sha256: Sha256
    run: RunId | None = None
    git_commit: Commit | None = None
    parent: str | None = None
    data: DataBlock | None = None


class ExportedFacts(_Block, kw_only=True, frozen=True):
    """Everything that is known of an exported file."""

    format: Literal[1]
    model: ModelBlock
    label_map: LabelMapBlock  # `labels` are its head indices
    input: InputBlock  # how images are resized; mean and std are applied in the graph
    inputs: dict[InputName, TensorFacts]
    outputs: dict[OutputName, TensorFacts]
    precision: Precision
    decoder_layers: Annotated[int, msgspec.Meta(ge=1)] | None = None  # None: all
    license: Words  # of the weights
    terms: ModelTerms | None = None
    thresholds: Thresholds | None = None  # from which detections are shown by default
    source: Source
    created: Words
    tool_versions: dict[str, str] = {}

    @property
    def raw(self) -> bool:
        """Whether the graph ends at logits and boxes, without the family's post-processing."""
        return "labels" not in self.outputs

    def labels(self) -> LabelMap:
        """The label map as a `LabelMap`."""
        return LabelMap.from_dict(msgspec.to_builtins(self.label_map))

    def contract(self) -> InputContract:
        """The input contract as an `InputContract`."""
        return InputContract.from_dict(msgspec.to_builtins(self.input))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def to_json(self) -> str:
        """The metadata entry; `parse_facts` is the inverse."""
        return msgspec.json.encode(self).decode()


def parse_facts(text: str, where: str) -> ExportedFacts:
    """The facts in a metadata entry.

    Raises:
        ValueError: naming the file and the rule it breaks.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{where}: its facts have {len(text)} characters; at most {MOST_BYTES} are read")
    try:
        facts = msgspec.json.decode(text, type=ExportedFacts)
        labels, _ = facts.labels(), facts.contract()
        refuse_unknown_classes(facts.thresholds, labels)
        if facts.terms is not None:
            check_terms(facts.terms)
        check_tensors(facts)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{where}: its facts break a rule: {reason}; export the model again") from error
    return facts


def check_tensors(facts: ExportedFacts) -> None:
    """Raises ValueError where the inputs or outputs are not those of an export."""
    detections, raw = set(DETECTIONS), set(RAW)
    outputs = set(facts.outputs)
    known = (detections, raw, detections | raw | {"masks"}, raw | {"masks"})
    if outputs not in known:
        raise ValueError(f"outputs are {', '.join(sorted(outputs)) or 'none'}, which no export has")
    expected = {"images"} if facts.raw else {"images", "sizes"}
    if set(facts.inputs) - {"padding"} != expected:
        raise ValueError(f"inputs are {', '.join(facts.inputs)}; expected {', '.join(sorted(expected))}")
    if len(facts.inputs["images"].shape) != 4:
        raise ValueError(f"images have the shape {facts.inputs['images'].shape}; it has four sides")
