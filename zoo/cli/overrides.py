"""Dotted overrides of a recipe on the command line: `--model.schedule.lr 1e-4`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_OVERRIDE = re.compile(r"^--(?P<key>[A-Za-z_]\w*(\.\w+)+\+?)(=(?P<value>.*))?$", re.DOTALL)
# commands whose data are an option, and no key of a recipe unless one is given
_WITH_DATA = ("finetune", "validate", "test", "predict", "evaluate", "bench", "export")
_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates `--a.b.c value` and `--a.b.c=value` from the other arguments; the last of one key counts.

    Raises:
        ValueError: an override has no value, or one that is no YAML.
    """
    plain: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        match = _OVERRIDE.match(token)
        if match is None:
            plain.append(token)
            continue
        text = match["value"]
        if text is None:
            if not rest or _OVERRIDE.match(rest[0]):
                raise ValueError(f"{token} needs a value: {token} VALUE or {token}=VALUE")
            text = rest.pop(0)
        overrides[match["key"]] = parse_value(text)
    return plain, overrides


def with_data_option(argv: Sequence[str]) -> list[str]:
    """`--data.root DIR` as `--data DIR` where no recipe is given that has such a key."""
    given = {token.partition("=")[0] for token in argv}
    if not argv or argv[0] not in _WITH_DATA or given & {"-c", "--config"}:
        return list(argv)
    return [re.sub(r"^--data\.root(?==|$)", "--data", token) for token in argv]


def parse_value(text: str) -> Any:
    """The value of an override, as YAML; `1e-4` is a number here, as on every command line."""
    if _FLOAT.match(text) and not re.match(r"^[-+]?\d+$", text):
        return float(text)
    from zoo.storage.plain_yaml import PlainYamlError, parse_yaml

    try:
        return parse_yaml(text, "value")
    except PlainYamlError as error:
        raise ValueError(f"{text[:60]!r} is not a value: {error}") from error
