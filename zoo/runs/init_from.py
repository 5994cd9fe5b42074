"""`init_from`: the weights that a training starts from, wherever they are."""

from __future__ import annotations

import importlib
from pathlib import Path

from torch import Tensor

from zoo.contract.labels import LabelMap
from zoo.registry.published_file import read_published
from zoo.registry.pull import pull
from zoo.registry.weights import released_from_checkpoint, released_from_folder
from zoo.runs.console import Console
from zoo.runs.schema import InitFrom
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.training.module import DetectionModule
from zoo.training.transfer import load_weights

State = dict[str, Tensor]


def start_from(
    init: InitFrom,
    module: DetectionModule,
    labels: LabelMap | None,
    registry: str | Path | None,
    console: Console,
) -> None:
    """Loads what `init` names into `module` and prints what was copied, re-initialised and left out.

    `labels` are those of the data; needed where rows go by class name.
    """
    if init.source == "none":
        module.from_nothing = True
        return
    state, source_map = read_weights(init.source, module, registry)
    report = load_weights(module, state, init.head, source_map=source_map, target_map=labels)
    if init.head == "new":
        module.new_head = "init_from.head is new"
    elif init.head == "by_class_name" and not report.classes:
        module.new_head = "no class of the weights has the name of one here"
    console.say(f"weights from {init.source} (head: {init.head})")
    for line in report.lines():
        console.say(f"  {line}")


def read_weights(
    source: str, module: DetectionModule, registry: str | Path | None
) -> tuple[State, LabelMap | None]:
    """State dict in our key layout and, where it is known, the label map of its head.

    Args:
        source: a checkpoint of ours, an official checkpoint, a .safetensors file, or a registry name.
        module: of the architecture that an official file is converted for.
        registry: of the user.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors" and "zoo" in read_checkpoint(path):
            released = released_from_checkpoint(path)
            return released.state, released.label_map
        state = read_published(path)
        if state.keys() == module.network.state_dict().keys():
            return state, None
        convert = getattr(importlib.import_module(type(module).__module__), "from_published", None)
        if convert is None:
            raise ValueError(
                f"{path} has other tensors than {type(module).__name__}, which has no published files"
            )
        try:
            converted = convert(state)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is no checkpoint of this architecture: {error.args[0]}") from error
        try:
            module.check_published(state)
        except ValueError as error:
            raise ValueError(f"{path} is of another model: {error}") from error
        return converted, None
    if "/" in source or path.suffix in (".ckpt", ".pth", ".pt", ".safetensors"):
        raise FileNotFoundError(f"there is no file {source} to take weights from")
    pulled = pull(source, registry=registry)
    released = released_from_folder(pulled.folder, pulled.manifest)
    return released.state, released.label_map
