"""A folder of transformers as one of our models: config.json, preprocessor_config.json and the weights beside them.

Nothing in it is run. What our network or input contract cannot be is refused by the key that says it, and before a
model is taken over both networks must give the same on one image.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.registry.hugging_face.backbones import with_backbone_config
from zoo.registry.hugging_face.comparison import LIMIT, compare, drawn_image, library, model_of, quiet
from zoo.registry.hugging_face.families import FAMILIES, Arguments, Family
from zoo.registry.hugging_face.processors import contract_of
from zoo.registry.published_file import read_published
from zoo.registry.weights import Released, ready_module
from zoo.storage.places import recipe_files
from zoo.storage.plain_yaml import read_yaml

CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
)  # each may be cut into parts, which its .index.json lists
HOLE = "N/A"  # name of an index that no class has, as in the files of DETR on COCO
EXTRA = "detr_zoo"  # key of config.json under which this package keeps what transformers has no word for
_LONGEST_JSON = 4 << 20
_REFUSED = {
    "deimv2": "transformers' class of that name is another network than DEIMv2 (AP .010 with weights that give .257)"
}


@dataclass(frozen=True)
class Imported:
    """A model of transformers under our names; `recipe` says how its family is fine-tuned."""

    released: Released
    family: str
    recipe: dict[str, Any]
    weights: tuple[Path, ...]
    notes: tuple[str, ...]


def read_folder(folder: Path, shown: str) -> Imported:
    """The model in a folder.

    Args:
        folder: with config.json, preprocessor_config.json and weights.
        shown: what errors call it.

    Raises:
        FileNotFoundError: a file is missing.
        UnsafeCheckpointError: the weights are a pickle that holds code.
        ValueError: the model is none that this package has; names the file and the key.
    """
    raw = read_json(folder / CONFIG_FILE, shown)
    family, architecture = family_of(raw, f"{shown}, {CONFIG_FILE}")
    contract = _contract_in(folder, shown)
    try:
        raw = with_backbone_config(raw)
        config = _with_defaults(raw)
        known = _known(config, contract)
        labels = labels_of(config)
        named = raw.get("id2label")
        if named and raw.get("num_labels", len(named)) != len(named):  # transformers would invent the others
            raise ValueError(f"num_labels is {raw['num_labels']!r}, and id2label names {len(named)} classes")
        recipe = _recipe(family, architecture)
        arguments = recipe["model"]["init_args"]
        arguments.update(family.arguments_of(known, arguments), num_classes=labels.num_classes)
    except ValueError as error:
        raise ValueError(f"{shown}, {CONFIG_FILE}: {_one_line(error)}") from error
    notes = _suit_segments(arguments, labels)
    contract = _as_exported(config, contract)
    recipe["data"]["init_args"]["input"] = contract.to_dict()
    files = weight_files(folder, shown)
    theirs = _read_weights(files, shown)
    released = _converted(theirs, recipe["model"], labels, contract, shown)
    _prove(released, architecture, config, raw, folder, theirs, shown)
    name = recipe["model"]["class_path"].split(".")[2]
    return Imported(released, name, recipe, tuple(files), tuple(notes))


def settings_of(folder: Path, raw: Mapping[str, Any], shown: str) -> tuple[LabelMap, InputContract]:
    """What a folder says of its classes and its input, without its weights.

    Args:
        folder: with the processor's file.
        raw: its config.json.
        shown: what errors call it.

    Raises:
        FileNotFoundError, ValueError: as `read_folder`.
    """
    contract = _contract_in(folder, shown)
    try:
        config = _with_defaults(with_backbone_config(raw))
        return labels_of(config), _as_exported(config, contract)
    except ValueError as error:
        raise ValueError(f"{shown}, {CONFIG_FILE}: {_one_line(error)}") from error


def _contract_in(folder: Path, shown: str) -> InputContract:
    try:
        return contract_of(read_json(folder / PROCESSOR_FILE, shown))
    except ValueError as error:
        raise ValueError(f"{shown}, {PROCESSOR_FILE}: {error}") from error


def read_json(path: Path, shown: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError, ValueError: it is missing, too long, or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{shown} has no {path.name}; a model that transformers has saved has one")
    if path.stat().st_size > _LONGEST_JSON:
        raise ValueError(f"{shown}, {path.name}: it is longer than {_LONGEST_JSON} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown}, {path.name}: it is no JSON: {_one_line(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{shown}, {path.name}: it holds a {type(value).__name__}, not an object")
    return value


def family_of(raw: Mapping[str, Any], where: str) -> tuple[Family, str]:
    """(family, class of transformers) of a config.json.

    Raises:
        ValueError: naming the model type.
    """
    kind = raw.get("model_type")
    if "auto_map" in raw:
        raise ValueError(f"{where}: auto_map names code that the repository brings, which is never run")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        reason = _REFUSED.get(str(kind), f"known are {', '.join(FAMILIES)}")
        raise ValueError(f"{where}: model_type is {kind!r}; {reason}")
    named = raw.get("architectures") or [next(iter(family.modules))]
    architecture = str(named[0] if isinstance(named, list) else named)
    if architecture not in family.modules:
        raise ValueError(
            f"{where}: architectures is {named!r}; this package has {', '.join(family.modules)} of {kind}"
        )
    return family, architecture


def labels_of(config: Mapping[str, Any]) -> LabelMap:
    """The classes of `id2label`; ids of the source are the indices of the head, for a config tells no others.

    Raises:
        ValueError: naming the entry that is none.
    """
    given = config.get("id2label")
    try:
        named = {int(key): name for key, name in dict(given or {}).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"id2label is {given!r:.80}; its keys are the indices of the head") from error
    if sorted(named) != [*range(len(named))] or not named:
        raise ValueError(f"id2label has the indices {sorted(named)[:8]}...; they must be 0 to n - 1")
    for index, name in named.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"id2label names index {index} {name!r}; every class has a name, and a hole is {HOLE}"
            )
    heads = tuple(index for index in sorted(named) if named[index] != HOLE)
    plain = LabelMap(tuple(named[h] for h in heads), heads, heads, len(named))
    extra = config.get(EXTRA)
    if isinstance(extra, Mapping) and "label_map" in extra:
        written = LabelMap.from_dict(extra["label_map"])
        if written.difference(plain) is None:  # else it was trained on other classes since
            return written
    return plain


def weight_files(folder: Path, shown: str) -> list[Path]:
    """The files of the weights, safetensors before pickles.

    Raises:
        FileNotFoundError: there are none, or a part is missing.
        ValueError: an index that lists other things than plain file names.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = parts_of(read_json(index, shown), f"{shown}, {index.name}")
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing:
                raise FileNotFoundError(f"{shown} has no {missing[0]}, which {index.name} lists")
            return [folder / part for part in parts]
    raise FileNotFoundError(f"{shown} has neither {' nor '.join(WEIGHTS)}")


def parts_of(index: Mapping[str, Any], where: str) -> list[str]:
    """The file names that an index lists."""
    table = index.get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names or not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*\.(safetensors|bin)", name) for name in names):
        raise ValueError(f"{where}: weight_map lists {names[:3]}; parts are plain file names")
    return names


def _read_weights(files: Sequence[Path], shown: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= read_published(file)
        except ValueError as error:
            raise type(error)(str(error).replace(str(file), f"{shown}, {file.name}")) from error
    return state


def _with_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what this version of transformers takes for keys that are not there."""
    configs = library().AutoConfig
    given = {key: value for key, value in raw.items() if key != "model_type"}
    try:
        with quiet():
            return dict(configs.for_model(raw["model_type"], **given).to_dict())
    except Exception as error:  # its validation raises what its library does
        raise ValueError(f"transformers does not take it: {_one_line(error)}") from error


def _known(config: dict[str, Any], contract: InputContract) -> dict[str, Any]:
    """The config without what is the same function here: anchors made in advance for the size of the input."""
    if contract.resize == "stretch" and list(config.get("anchor_image_size") or []) == list(contract.size):
        return config | {"anchor_image_size": None}
    return config


def _recipe(family: Family, architecture: str) -> dict[str, Any]:
    class_path, name = family.modules[architecture]
    recipe: dict[str, Any] = read_yaml(recipe_files()[name])
    assert recipe["model"]["class_path"] == class_path
    return recipe


def _suit_segments(arguments: Arguments, labels: LabelMap) -> list[str]:
    """Panoptic segments need to know which classes are things, which only our own exports say."""
    if arguments.get("panoptic") is None or labels.is_thing is not None:
        return []
    arguments["panoptic"] = None
    return [
        "which classes are things and which stuff is not told: it gives masks of instances, no panoptic segments"
    ]


def _as_exported(config: Mapping[str, Any], contract: InputContract) -> InputContract:
    """The contract with the resize backend and padding that our own export notes; transformers has no key for them."""
    extra = config.get(EXTRA)
    if not isinstance(extra, Mapping) or not isinstance(extra.get("input"), dict):
        return contract
    written = InputContract.from_dict(extra["input"])
    same = all(getattr(written, key) == getattr(contract, key) for key in ("resize", "size", "mean", "std"))
    return written if same else contract


def _converted(
    theirs: Mapping[str, Tensor], block: dict[str, Any], labels: LabelMap, contract: InputContract, shown: str
) -> Released:
    convert = importlib.import_module(block["class_path"].rpartition(".")[0]).from_published
    try:
        state = convert(theirs)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{shown}: the weights are of another network: {error.args[0]}") from error
    if block["init_args"]["backbone"]["frozen_norm"]:  # which count no batches
        state = {
            k: v
            for k, v in state.items()
            if not (k.startswith("backbone.") and k.endswith("num_batches_tracked"))
        }
    released = Released(state, block, labels, contract, {})
    try:
        module = ready_module(released)
        module.check_published(theirs)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    return Released(module.network.state_dict(), module.model_block(), labels, contract, {})


def _prove(
    released: Released, architecture: str, config: dict[str, Any], raw: Mapping[str, Any], folder: Path,
    state: Mapping[str, Tensor], shown: str,
) -> None:  # fmt: skip
    """Both networks on one image: a key that no table here knows shows as other numbers."""
    transformers = library()
    pil = "Pil" if released.input.backend == "pil" else ""
    kind = FAMILIES[raw["model_type"]].processor + pil
    try:
        given = {
            k: v for k, v in read_json(folder / PROCESSOR_FILE, shown).items() if not k.endswith("_type")
        }
        with quiet():
            processor = getattr(transformers, kind)(**given)
        theirs, told = model_of(architecture, transformers.AutoConfig.for_model(**raw), state)
        difference = compare(ready_module(released), theirs, processor, [drawn_image()])
    except Exception as error:
        raise ValueError(f"{shown}: transformers itself cannot run it: {_one_line(error)}") from error
    apart = difference.above(LIMIT)
    if apart is not None:
        lacking = sorted(told["missing_keys"])
        why = (
            f"for which the weights lack {lacking[0]}"
            if lacking
            else "so it is another network or another input"
        )
        raise ValueError(
            f"{shown}: {apart} between transformers {transformers.__version__} and this package, {why}"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
