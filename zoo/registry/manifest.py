"""The manifest: all facts about published weights, in one reviewed YAML file.

It may come from other people, so reading one executes nothing, has limits, and checks everything: keys
are known keys, file names are plain, model classes live under `zoo.architectures.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import yaml

from zoo.contract.labels import LabelMap
from zoo.registry.names import check_name
from zoo.registry.terms import ModelTerms, check_terms
from zoo.storage.plain_yaml import PlainYamlError, parse_yaml, read_yaml

MANIFEST_FILE = "manifest.yaml"
WEIGHTS_FILE = "model.safetensors"
_FILE_TYPES = (".safetensors", ".json", ".yaml", ".md", ".txt")
_CLASS_PATH = re.compile(r"^zoo\.architectures\.[a-z][a-z0-9_]*\.[A-Z][A-Za-z0-9]*$")

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
Commit = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]
Words = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
METRICS_OF_MASKS = (
    "segm_AP", "segm_AP50", "segm_AP75", "segm_APs", "segm_APm", "segm_APl",
    "PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st",
)  # fmt: skip
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


class ManifestError(ValueError):
    """A manifest breaks a rule; the message names the file, the key and the rule."""


class _Block(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Unknown keys are errors: a typo must not become an unread fact."""


class FileEntry(_Block, kw_only=True, frozen=True):
    """One file beside the manifest."""

    path: Words
    size: Count
    sha256: Sha256


class Origin(_Block, kw_only=True, frozen=True):
    """Where the weights come from.

    `converted` weights are made at the first pull from `file`, the published checkpoint, which is then
    deleted. Few authors publish a hash; `sha256` is then null until the first pull notes what it
    got (trust on first use), and later pulls must get the same.
    """

    kind: Literal["trained", "converted"]
    file: str | None = None
    converter: str | None = None
    size: Count | None = None
    sha256: Sha256 | None = None
    pinned: Literal["published", "first_use"] | None = None
    note: str = ""


class TrainedBy(_Block, kw_only=True, frozen=True):
    """The code that made the weights, and how its schedule differs from the recipes named here."""

    code: Words
    differs: list[Words] = []


class ModelBlock(_Block, kw_only=True, frozen=True):
    """Equals the recipe's `model:` block."""

    class_path: str
    init_args: dict[str, Any]


class ClassRow(_Block, kw_only=True, frozen=True, omit_defaults=True):
    """One class in its three identities; with panoptic data whether it is a thing, and its colour."""

    name: Words
    source_id: int
    head_index: Count
    is_thing: bool | None = None
    color: tuple[Count, Count, Count] | None = None


class LabelMapBlock(_Block, kw_only=True, frozen=True):
    """`zoo.contract.labels.LabelMap.to_dict`."""

    num_classes: Count
    classes: list[ClassRow]


class TilesBlock(_Block, kw_only=True, frozen=True):
    """`zoo.contract.tiles.Tiles`."""

    size: tuple[Count, Count]
    overlap: Fraction


class InputBlock(_Block, kw_only=True, frozen=True):
    """`zoo.contract.preprocess.InputContract.to_dict`, checked here without importing torch."""

    resize: Literal["stretch", "shortest"]
    size: tuple[int, int]
    mean: list[float] = []
    std: list[float] = []
    backend: Literal["fast", "pil"] = "fast"
    padding: Literal["batch", "step"] = "batch"
    tiles: TilesBlock | msgspec.UnsetType = msgspec.UNSET  # None and unset are the same: images are not cut
    channels: int | msgspec.UnsetType = msgspec.UNSET  # 3
    scale: list[tuple[float, float]] | msgspec.UnsetType = msgspec.UNSET  # none


class PublishedScores(_Block, kw_only=True, frozen=True):
    """The scores that the authors publish, in their unit; not checked here.

    Scores of masks are given only where there are some: AP of masks, and panoptic quality of all classes, of
    things (`_th`) and of stuff (`_st`).
    """

    source: Words
    dataset: Words
    unit: Literal["percent"] = "percent"
    AP: Percent
    AP50: Percent | None = None
    AP75: Percent | None = None
    APs: Percent | None = None
    APm: Percent | None = None
    APl: Percent | None = None
    segm_AP: Percent | msgspec.UnsetType | None = msgspec.UNSET
    segm_AP50: Percent | msgspec.UnsetType | None = msgspec.UNSET
    segm_AP75: Percent | msgspec.UnsetType | None = msgspec.UNSET
    segm_APs: Percent | msgspec.UnsetType | None = msgspec.UNSET
    segm_APm: Percent | msgspec.UnsetType | None = msgspec.UNSET
    segm_APl: Percent | msgspec.UnsetType | None = msgspec.UNSET
    PQ: Percent | msgspec.UnsetType | None = msgspec.UNSET
    SQ: Percent | msgspec.UnsetType | None = msgspec.UNSET
    RQ: Percent | msgspec.UnsetType | None = msgspec.UNSET
    PQ_th: Percent | msgspec.UnsetType | None = msgspec.UNSET
    SQ_th: Percent | msgspec.UnsetType | None = msgspec.UNSET
    RQ_th: Percent | msgspec.UnsetType | None = msgspec.UNSET
    PQ_st: Percent | msgspec.UnsetType | None = msgspec.UNSET
    SQ_st: Percent | msgspec.UnsetType | None = msgspec.UNSET
    RQ_st: Percent | msgspec.UnsetType | None = msgspec.UNSET
    note: str = ""


class MeasuredScores(_Block, kw_only=True, frozen=True):
    """Scores that a run of this project measured on these weights; they need the run and its commit."""

    run: RunId
    git_commit: Commit
    date: Words
    dataset: Words
    split: Words
    unit: Literal["fraction"] = "fraction"
    AP: Fraction
    AP50: Fraction | None = None
    AP75: Fraction | None = None
    APs: float | None = None  # COCO's -1 where no object has that size
    APm: float | None = None
    APl: float | None = None
    AR1: float | None = None
    AR10: float | None = None
    AR100: float | None = None
    segm_AP: float | msgspec.UnsetType | None = msgspec.UNSET
    segm_AP50: float | msgspec.UnsetType | None = msgspec.UNSET
    segm_AP75: float | msgspec.UnsetType | None = msgspec.UNSET
    segm_APs: float | msgspec.UnsetType | None = msgspec.UNSET
    segm_APm: float | msgspec.UnsetType | None = msgspec.UNSET
    segm_APl: float | msgspec.UnsetType | None = msgspec.UNSET
    PQ: float | msgspec.UnsetType | None = msgspec.UNSET
    SQ: float | msgspec.UnsetType | None = msgspec.UNSET
    RQ: float | msgspec.UnsetType | None = msgspec.UNSET
    PQ_th: float | msgspec.UnsetType | None = msgspec.UNSET
    SQ_th: float | msgspec.UnsetType | None = msgspec.UNSET
    RQ_th: float | msgspec.UnsetType | None = msgspec.UNSET
    PQ_st: float | msgspec.UnsetType | None = msgspec.UNSET
    SQ_st: float | msgspec.UnsetType | None = msgspec.UNSET
    RQ_st: float | msgspec.UnsetType | None = msgspec.UNSET
    interval: dict[str, tuple[float | None, float | None]] | None = None  # null: nothing to score
    protocol: dict[str, Any] | None = None
    hardware: str = ""


class Thresholds(_Block, kw_only=True, frozen=True):
    """Scores from which detections are shown unless a person asks for others, chosen on images with known objects.

    `classes` has those of classes with enough objects to choose by; of the others `all` holds. `precision` and `recall`
    are those of all classes at `all`, on the images that it was chosen on.
    """

    chosen_for: Words  # e.g. `best F1`
    split: Words  # of the data that they were chosen on
    iou: Fraction = 0.5  # of a right detection
    all: Fraction
    precision: Fraction | msgspec.UnsetType = msgspec.UNSET
    recall: Fraction | msgspec.UnsetType = msgspec.UNSET
    classes: dict[str, Fraction] = {}


def thresholds_of(given: Mapping[str, Any]) -> Thresholds:
    """The block, as a run's metrics.json and a manifest have it.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.convert(dict(given), Thresholds)
    except msgspec.ValidationError as error:
        raise ValueError(f"thresholds: {error}") from error


def refuse_unknown_classes(thresholds: Thresholds | None, labels: LabelMap) -> None:
    """Raises ValueError if a class has a threshold and is not in the label map."""
    unknown = sorted((thresholds.classes if thresholds else {}).keys() - {*labels.names})
    if unknown:
        raise ValueError(f"thresholds.classes names {unknown[0]!r}, which is no class of label_map")


class DataBlock(_Block, kw_only=True, frozen=True):
    """The training data."""

    name: Words
    split: Words
    digest: str | None = None


class Lineage(_Block, kw_only=True, frozen=True):
    """The run and code that made the weights, null where others made them; the model they started from."""

    run: RunId | None = None
    git_commit: Commit | None = None
    dirty: bool | None = None
    parent: str | None = None


class Manifest(_Block, kw_only=True, frozen=True):
    """One version of one published model. `default` marks the tag that the bare name means."""

    name: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    family: Words
    default: bool = False
    license: Words  # of the weights
    terms: ModelTerms | None = None  # None: `license` is a statement without a source
    model: ModelBlock
    label_map: LabelMapBlock
    input: InputBlock
    files: list[FileEntry]
    sources: list[Words] = []
    origin: Origin
    recipes: list[Words] = []
    trained_by: TrainedBy
    data: DataBlock
    lineage: Lineage = Lineage()
    published: PublishedScores | None = None
    measured: MeasuredScores | None = None
    thresholds: Thresholds | msgspec.UnsetType = msgspec.UNSET
    params: Count | None = None
    macs: Count | None = None
    counted: str = ""  # how params and macs were counted
    created: Words
    tool_versions: dict[str, str] = {}

    def labels(self) -> LabelMap:
        """The label map as a `LabelMap`."""
        return LabelMap.from_dict(msgspec.to_builtins(self.label_map))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def to_yaml(self) -> str:
        """The file's text; `parse_manifest` is the inverse."""
        plain = msgspec.json.decode(msgspec.json.encode(self))
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)

    def file(self, path: str) -> FileEntry | None:
        """The entry of a file, None if it has none."""
        return next((entry for entry in self.files if entry.path == path), None)


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        ManifestError: naming the file and the rule it breaks.
    """
    return _manifest_of(lambda: read_yaml(path, aliases=False), str(path))


def parse_manifest(text: str | bytes, where: str = "manifest") -> Manifest:
    """The manifest in a YAML text; `where` names it in errors."""
    return _manifest_of(lambda: parse_yaml(text, where, aliases=False), where)


def _manifest_of(read: Callable[[], Any], where: str) -> Manifest:
    try:
        manifest = msgspec.convert(read(), Manifest)
        check_manifest(manifest)
    except PlainYamlError as error:  # says where itself
        raise ManifestError(str(error)) from error
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Rules that go across fields.

    Raises:
        ValueError: naming the value and the rule.
    """
    check_name(manifest.name)
    if not _CLASS_PATH.fullmatch(manifest.model.class_path):
        raise ValueError(
            f"model.class_path {manifest.model.class_path!r} is not a class in a module of "
            "zoo.architectures; nothing else is imported for a manifest"
        )
    if manifest.terms is not None:
        check_terms(manifest.terms)
        if manifest.terms.weights.licence != manifest.license:
            raise ValueError(
                f"license is {manifest.license!r}, terms.weights.licence is {manifest.terms.weights.licence!r}; "
                "both are that of the weights"
            )
    for entry in manifest.files:
        check_file_name(entry.path)
    paths = [entry.path for entry in manifest.files]
    if len(set(paths)) < len(paths):
        raise ValueError(f"files lists a path twice: {sorted(paths)}")
    if manifest.origin.kind == "trained" and WEIGHTS_FILE not in paths:
        raise ValueError(f"files has no {WEIGHTS_FILE}, and weights of origin `trained` have no other source")
    if manifest.origin.kind == "converted" and not (manifest.sources and manifest.origin.converter):
        raise ValueError("weights of origin `converted` need sources and origin.converter")
    converter = manifest.origin.converter
    if converter is not None and not re.fullmatch(r"zoo\.architectures\.[a-z0-9_]+\.[a-z0-9_]+", converter):
        raise ValueError(f"origin.converter {converter!r} is not a function in a module of zoo.architectures")
    labels, width = manifest.labels(), manifest.model.init_args.get("num_classes")
    if width is not None and width != labels.num_classes:
        raise ValueError(f"model.init_args.num_classes is {width}, label_map is for {labels.num_classes}")
    if not isinstance(manifest.thresholds, msgspec.UnsetType):
        refuse_unknown_classes(manifest.thresholds, labels)
    channels = 3 if isinstance(manifest.input.channels, msgspec.UnsetType) else manifest.input.channels
    if len(manifest.input.mean) != len(manifest.input.std) or len(manifest.input.mean) not in (0, channels):
        number = "three" if channels == 3 else str(channels)
        raise ValueError(f"input.mean and input.std must both have {number} values, or none")


def check_file_name(name: str) -> str:
    """`name`, if it is plain: one path component of a type that runs no code when read."""
    plain = PurePosixPath(name).name == name and not re.search(r"[\\/:\x00-\x1f]", name)
    if not plain or name.startswith("."):
        raise ValueError(f"file name {name!r} is not plain; no folders, no separators, no leading dot")
    if not name.endswith(_FILE_TYPES):
        raise ValueError(
            f"file {name!r} is of no allowed type ({', '.join(_FILE_TYPES)}); a pickle (.pt, .pth, .ckpt, "
            ".bin, .pkl) runs code when it is read and is never part of a published model"
        )
    return name
