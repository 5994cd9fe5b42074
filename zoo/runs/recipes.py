"""Recipes by name or path, dotted overrides, and the nearest key to a mistyped one. Imports no torch."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.registry.store import builtin_manifest, builtin_manifests
from zoo.storage.places import recipe_files
from zoo.storage.plain_yaml import described, read_yaml

Recipe = dict[str, Any]  # its values; `zoo.runs.building.Recipe` builds from them
Given = str | Path | Mapping[str, Any] | Sequence[str | Path]  # names, paths, several to merge, or the values
# blocks that a recipe leaves out as long as it has nothing to say there
MAY_LACK = ("non_finite", "distributed", "stopping", "computing")
# what `about` of a recipe that is listed has
ABOUT = ("name", "tag", "family", "license", "params", "macs", "published", "measured", "sources")


def bundled() -> dict[str, Path]:
    """`<family>/<recipe>` -> file, for every recipe that comes with the package or lies in a folder of ZOO_PATH."""
    return recipe_files()


def resolve(name: str) -> Path:
    """The file of a recipe given as path, as `<family>/<recipe>`, or as zoo name with or without its tag.

    Raises:
        FileNotFoundError: naming the recipes that come nearest.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    files = bundled()
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    if key in files:
        return files[key]
    fitting: list[tuple[int, Path]] = []
    for recipe in files.values():
        about = load_heading(recipe).about
        full = f"{about.get('name')}.{about.get('tag')}"
        if key in (about.get("name"), full) and about.get("tag") != "finetune":
            fitting.append((_rank(full), recipe))
    if fitting:  # of several schedules the one that the published weights were trained by
        return min(fitting)[1]
    near = nearest(key, [*files, *(k.split("/")[1] for k in files)])
    raise FileNotFoundError(
        f"no recipe {name!r}"
        + (f" (did you mean {near!r}?)" if near else "")
        + f": neither a file nor one of {', '.join(files)}"
    )


def _rank(full: str) -> int:
    """0 for the model that the bare name means, 1 for other published weights, 2 for none."""
    manifests = builtin_manifests()
    return 2 if full not in manifests else 0 if builtin_manifest(manifests[full]).default else 1


def load(path: Path) -> Recipe:
    """One recipe file as a plain dict.

    Raises:
        ValueError: if it is no plain YAML (`zoo.storage.plain_yaml`), or no mapping.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds {described(recipe)}; a recipe is a mapping of keys to values")
    return recipe


class Heading(NamedTuple):
    """What a list of recipes tells of one."""

    about: dict[str, Any]
    class_path: str


def load_heading(path: Path) -> Heading:
    """The heading of a recipe of `bundled`, parsed once until its file changes: there are many.

    Raises:
        ValueError: naming the file and what of it a list of recipes needs.
    """
    facts = path.stat()
    return copy.deepcopy(_heading(path, facts.st_mtime_ns, facts.st_size))


@functools.lru_cache(maxsize=256)
def _heading(path: Path, changed: int, size: int) -> Heading:
    recipe = load(path)
    about: Any = recipe.get("about")
    model = recipe.get("model")
    for key in ABOUT:
        if not isinstance(about, dict) or key not in about:
            raise ValueError(
                f"{path} lacks about.{key}; the recipes that `zoo list` shows have {', '.join(ABOUT)}"
            )
    for key in ("published", "measured"):
        if about[key] is not None and not (isinstance(about[key], dict) and "AP" in about[key]):
            raise ValueError(
                f"{path}: about.{key} is {about[key]!r:.60}; it is null, or scores with AP among them"
            )
    if not isinstance(model, dict) or not isinstance(model.get("class_path"), str):
        raise ValueError(f"{path} lacks model.class_path")
    return Heading(about, model["class_path"])


def apply_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> None:
    """Writes each dotted key's value into the recipe; `model.x` and `model.init_args.x` mean the same.

    The last part of a key may be new: arguments with a default are not in every recipe. Whether it is
    one, the signatures tell (`zoo.runs.schema`). `key+` appends to a list.

    Raises:
        ValueError: for a part that leads nowhere, naming the nearest one.
    """
    for key, value in overrides.items():
        node: Any = recipe
        *parents, last = key.split(".")
        if parents[0] in ("model", "data") and parents[1:2] != ["init_args"] and last != "class_path":
            parents.insert(1, "init_args")
        if parents[0] in MAY_LACK:
            recipe.setdefault(parents[0], {})
        for depth, parent in enumerate(parents):
            if not isinstance(node, dict) or not isinstance(node.get(parent), dict):
                raise unknown_key(key, parent, node, parents[:depth])
            node = node[parent]
        node.update(merge(node, {last: _plain(value)}) if last.endswith("+") else {last: _plain(value)})


def _plain(value: Any) -> Any:
    """Paths and tuples as a recipe has them; the caller's lists and mappings are copied."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def unknown_key(key: str, part: str, node: Any, parents: Sequence[str]) -> ValueError:
    """The error for an override whose `part` is no key of `node`."""
    valid = [str(k) for k in node] if isinstance(node, Mapping) else []
    near = nearest(part, valid)
    hint = f"; did you mean {'.'.join([*parents, near]).replace('.init_args', '')!r}?" if near else ""
    return ValueError(
        f"the recipe has no key {key!r}{hint or f'; valid here: {chr(44).join(valid) or None}'}"
    )


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid word that looks most like `word`, or None if none does."""
    found = difflib.get_close_matches(word, sorted(set(valid)), n=1, cutoff=0.6)
    return found[0] if found else None


def dump(recipe: Recipe) -> str:
    """A recipe as YAML in its own key order, short lists on one line."""
    return yaml.dump(recipe, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    pass


def _list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    flow = all(isinstance(v, (int, float, str)) for v in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _list)


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every value by its dotted key, as an override names it; lists whole. Without `about`, which trains nothing."""
    found: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], before: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, before if key == "init_args" else f"{before}{key}.")
            else:
                found[f"{before}{key}"] = value

    walk({key: value for key, value in recipe.items() if key != "about"}, "")
    return found


def merge(base: Recipe, over: Recipe) -> Recipe:
    """`over` on `base`, key by key; lists are replaced, `key+` appends.

    Another class_path drops the arguments of the old one.
    """
    merged = dict(base)
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in over.items():
        name = key.removesuffix("+")
        old = merged.get(name)
        if key != name:
            merged[name] = [*(old or []), *(value if isinstance(value, list) else [value])]
        elif isinstance(value, dict):
            merged[name] = merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def read(given: Given, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """One complete recipe, the caller's own copy: several are merged in order, then come the overrides.

    Raises:
        ValueError: if none is given.
    """
    if isinstance(given, Mapping):
        recipe: Recipe = merge({}, _plain(given))
    else:
        names = [given] if isinstance(given, (str, Path)) else given
        if not names:
            raise ValueError(
                "--config is missing: a recipe's path or name, as in --config rt_detr/r18_coco_72e"
            )
        recipe = {}
        for name in names:
            recipe = merge(recipe, load(resolve(str(name))))
    apply_overrides(recipe, overrides or {})
    return recipe
