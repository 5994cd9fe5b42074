"""A recipe against the signatures it is written for, before anything is built.

jsonargparse would find the same faults, but says them in a page of unions. Here a fault is one line
with the dotted key and the nearest valid one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch import Trainer

from datamodules.base import DetectionDataModule
from zoo.runs import recipes, trainer_options, trust
from zoo.tracking.others import Other
from zoo.training.computing import Computing
from zoo.training.imports import refuse_imports
from zoo.training.module import DetectionModule, refuse_towers
from zoo.training.non_finite import NonFinite
from zoo.training.saving import CheckpointSaver
from zoo.training.stop_rules import Stopping

# what a recipe may name, and where: a recipe is data, not a way to import
PLACES = {"model": "zoo.architectures.", "data": "datamodules."}
KINDS: dict[str, type] = {"model": DetectionModule, "data": DetectionDataModule}
TOP = (
    "about", "seed_everything", "model", "data", "trainer", "checkpoint", "init_from", "tracking", "non_finite",
    "distributed", "stopping", "computing",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Weights to start from.

    Attributes:
        source: `none`, a name in the registry, or a checkpoint file.
        head: keep every class row, start the class tensors new, or carry rows over by class name.
    """

    source: str
    head: Literal["keep", "new", "by_class_name"] = "keep"


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The MLflow run.

    Attributes:
        experiment: made if it is missing.
        run_name: shown by MLflow.
        run_id: resume this run.
        also: trackers beside MLflow, `tensorboard` and `wandb`. They write into the run's folder, or to the account
            that W&B knows here: a recipe cannot say where to.
    """

    experiment: str
    run_name: str | None = None
    run_id: str | None = None
    also: list[Other] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """Several processes.

    Attributes:
        timeout_minutes: how long a process waits for the others, at the start and in a step, before it ends with
            an error. It must be longer than what rank zero does alone: the preflight, and writing a checkpoint.
    """

    timeout_minutes: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout_minutes < 1e6:
            raise ValueError(f"distributed.timeout_minutes is {self.timeout_minutes}; it must be above 0")


# the top-level keys that are ours
OWN = {
    "init_from": InitFrom, "tracking": Tracking, "non_finite": NonFinite, "distributed": Distributed,
    "stopping": Stopping, "computing": Computing,
}  # fmt: skip
OPTIONAL = recipes.MAY_LACK  # of them, those that a recipe may leave out


def check(recipe: Mapping[str, Any], trusted: bool = False) -> None:
    """Raises ValueError at the first fault of a recipe as read from YAML.

    That is an unknown or missing key, an option of the trainer that would not do what it says, or what only a
    trusted recipe may name (`zoo.runs.trust`).
    """
    _known(recipe, TOP, "")
    trust.refuse_resolvers(recipe)
    for key in ("model", "data", "trainer", "checkpoint", *OWN):
        if key in OPTIONAL and key not in recipe:
            continue
        if key not in recipe:
            raise ValueError(f"the recipe lacks {key!r}")
        if not isinstance(recipe[key], Mapping):
            raise ValueError(f"{key} is {recipe[key]!r:.60}; it must be a mapping")
    if not isinstance(recipe.get("about", {}), Mapping):
        raise ValueError(f"about is {recipe['about']!r:.60}; it must be a mapping")
    check_options(recipe["trainer"])
    trainer_options.check(recipe["trainer"])
    if not trusted:
        trust.refuse_strangers(recipe["trainer"])
    _known(recipe["checkpoint"], _parameters(CheckpointSaver), "checkpoint")
    for key, kind in OWN.items():
        _dataclass(recipe.get(key, {}), kind, key)
    refuse_towers(recipe["model"])
    for key in PLACES:
        _known(recipe[key], ("class_path", "init_args"), key)
        _call(recipe[key].get("init_args") or {}, load_class(key, recipe[key].get("class_path")), key)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for what is no option of Lightning's Trainer."""
    _known(options, _parameters(Trainer), "trainer")


def load_class(key: str, path: Any) -> type:
    """The class that `model` or `data` names.

    Raises:
        ValueError: a path outside the package, or one that names nothing or a class of another kind.
    """
    place = PLACES[key]
    if not isinstance(path, str) or not re.fullmatch(re.escape(place) + r"[\w.]+", path):
        raise ValueError(f"{key}.class_path is {path!r}; it must be a class under {place}")
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):  # one that it imports
            raise ValueError(
                f"{key}.class_path {path!r}: {module_name} imports {error.name}, which is not there"
            ) from error
        raise ValueError(f"{key}.class_path {path!r}: there is no module {module_name}") from error
    except SyntaxError as error:
        raise ValueError(
            f"{key}.class_path {path!r}: {error.filename}:{error.lineno}: {error.msg}"
        ) from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        near = recipes.nearest(name, [n for n, value in vars(module).items() if inspect.isclass(value)])
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"{key}.class_path {path!r}: {module_name} has no class {name}{hint}")
    if not issubclass(found, KINDS[key]):
        raise ValueError(f"{key}.class_path {path!r} is no {KINDS[key].__name__}; name one")
    return found


def module_class(recipe: Mapping[str, Any]) -> type[DetectionModule]:
    """The family's module that a recipe names, to ask what it is like before it is built.

    Raises:
        ValueError: it names another class.
    """
    return load_class("model", recipe["model"]["class_path"])


def explain(message: str) -> str:
    """One line out of jsonargparse's nested report: which key, what was expected, what was given."""
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    reasons = [
        line.strip().removeprefix("- ")
        for line in message.splitlines()
        if not re.match(r"\s*(- )?(Parser key|Does not validate|Subtypes:|Errors:|Given value)", line)
        and "<class 'NoneType'>" not in line
    ]
    given = re.findall(r"Given value: (.{1,60})", message) if "Got value" not in message else []
    where = ".".join(dict.fromkeys(keys))
    what = "; ".join(dict.fromkeys(r for r in reasons if r)) or " ".join(message.split())[:300]
    got = f", got {given[0]}" if given and not given[0].startswith(("{", "Namespace")) else ""
    return f"{where}: {what}{got}" if where else what + got


def _parameters(target: Any) -> tuple[str, ...]:
    return tuple(p for p in inspect.signature(target).parameters if p != "self")


def _known(values: Mapping[str, Any], valid: tuple[str, ...], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r:.60}; it must be a mapping of keys to values")
    for key in values:
        if key not in valid:
            near = recipes.nearest(str(key), valid)
            dotted = f"{where}.{key}".lstrip(".").replace(".init_args", "")
            hint = f"did you mean {near!r}?" if near else f"valid: {', '.join(valid)}"
            raise ValueError(f"{dotted} is no key of a recipe; {hint}")


def _call(values: Mapping[str, Any], kind: type, where: str) -> None:
    parameters = inspect.signature(kind).parameters
    _known(values, tuple(parameters), f"{where}.init_args")
    required = [n for n, p in parameters.items() if p.default is p.empty]
    _complete(values, required, where)
    hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    for name, value in values.items():
        _value(value, hints.get(name), f"{where}.{name}")
        refuse_imports(value, hints.get(name), f"{where}.{name}")


def _dataclass(values: Mapping[str, Any], kind: type, where: str) -> None:
    fields = [f for f in dataclasses.fields(kind) if f.init]
    _known(values, tuple(f.name for f in fields), where)
    required = [
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    _complete(values, required, where)
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        _value(value, hints.get(name), f"{where}.{name}")


def _complete(values: Mapping[str, Any], required: list[str], where: str) -> None:
    lacking = [name for name in required if name not in values]
    if lacking:
        raise ValueError(
            f"the recipe lacks {', '.join(f'{where}.{name}' for name in lacking)}; it has no default"
        )


def _value(value: Any, hint: Any, where: str) -> None:
    kinds = [h for h in (hint, *typing.get_args(hint)) if inspect.isclass(h) and dataclasses.is_dataclass(h)]
    if not kinds:
        return
    items = enumerate(value) if isinstance(value, list) else [(None, value)]
    for index, item in items:
        at = where if index is None else f"{where}[{index}]"
        if isinstance(item, Mapping):
            _dataclass(item, kinds[0], at)
        elif item is not None:
            raise ValueError(f"{at} is {item!r:.60}; it must be a mapping of {kinds[0].__name__}'s keys")
