"""Every network of the zoo at a size that takes milliseconds.

A family is found by its recipes; `tests/tiny/<family>.yaml` makes its networks small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from zoo.runs import recipes

ROOT = Path(__file__).resolve().parents[2]


def trained_recipes() -> list[str]:
    """All recipes but those that only say how a family is fine-tuned."""
    return [key for key in recipes.bundled() if not key.rpartition("/")[2].startswith("finetune")]


def overlay(family: str) -> dict[str, Any]:
    """What makes the family's networks small; a family whose recipes are small already has none."""
    path = ROOT / "tests" / "tiny" / f"{family}.yaml"
    return dict(yaml.safe_load(path.read_text())) if path.is_file() else {}


def small_arguments(key: str) -> dict[str, Any]:
    """The model's arguments with the family's overlay; one that the class does not take fails when it is built."""
    recipe = recipes.load(recipes.resolve(key))
    arguments: dict[str, Any] = {**recipe["model"]["init_args"]}
    for name, changes in overlay(recipe["about"]["family"]).items():
        if name in arguments:
            arguments[name] = arguments[name] | changes if isinstance(changes, dict) else changes
    return arguments


def distinct(num_classes: int) -> list[str]:
    """The first recipe of each network and each set of rules: sizes are overlaid, epochs play no part."""
    seen: dict[str, str] = {}
    for key in trained_recipes():
        model = recipes.load(recipes.resolve(key))["model"]
        arguments = small_arguments(key)
        arguments["schedule"] = arguments["schedule"]["rules"]
        described = [model["class_path"], arguments | {"num_classes": num_classes}]
        seen.setdefault(json.dumps(described, sort_keys=True), key)
    return list(seen.values())


def first_of_each_class() -> list[str]:
    """A recipe of each class of module: of each family, with and without masks."""
    seen: dict[str, str] = {}
    for key in trained_recipes():
        seen.setdefault(recipes.load(recipes.resolve(key))["model"]["class_path"], key)
    return list(seen.values())
