"""Names of models: `<family>_<backbone>[_variant].<tag>`, and how a user refers to a version.

`NAME` means the latest version, `NAME:3` a version, `NAME@champion` an alias.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# no double underscore: in names of MLflow's LoggedModel, which may have no dot, it replaces the dot
_NAME = re.compile(r"^[a-z0-9]+([_-][a-z0-9]+)*(\.[a-z0-9]+([_-][a-z0-9]+)*)?$")
_ALIAS = re.compile(r"^[a-z][a-z0-9_-]*$")
_LONGEST = 120


@dataclass(frozen=True)
class Reference:
    """A name, with at most one of a version and an alias; neither means the latest version."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}:{self.version}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


def parse_reference(text: str) -> Reference:
    """`name`, `name:3` or `name@alias`.

    Raises:
        ValueError: naming the text and the rule it breaks.
    """
    name, at, alias = text.partition("@")
    if at:
        return Reference(check_name(name), alias=check_alias(alias))
    name, colon, version = text.partition(":")
    if not colon:
        return Reference(check_name(name))
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise ValueError(f"{text!r}: a version is a number from 1, as in {name}:1; an alias is {name}@alias")
    return Reference(check_name(name), version=int(version))


def is_name(text: str) -> bool:
    """Whether `text` may name a model."""
    return _NAME.fullmatch(text) is not None and len(text) <= _LONGEST


def check_name(name: str) -> str:
    """`name`, if it may name a model."""
    if not is_name(name):
        raise ValueError(
            f"{name!r} is no model name; use lower-case letters, digits and single _ or -, with at most one "
            f".tag at the end and {_LONGEST} characters, as in rt_detr_r18.coco_72e"
        )
    return name


def shortened(name: str) -> str:
    """A name that breaks no other rule, cut to the longest that is allowed."""
    return name[:_LONGEST].rstrip("_-.")


def check_alias(alias: str) -> str:
    """`alias`, if it may be one: not a number, which would read as a version."""
    if not _ALIAS.fullmatch(alias) or len(alias) > _LONGEST or re.fullmatch(r"v\d+", alias):
        raise ValueError(
            f"{alias!r} is no alias; use lower-case letters, digits, _ and -, beginning with a letter and "
            "not like v3, as in champion"
        )
    return alias


def base_name(name: str) -> str:
    """The part before the tag."""
    return name.partition(".")[0]


def logged_model_name(name: str) -> str:
    """The name of MLflow's LoggedModel, which allows no dot."""
    return name.replace(".", "__")
