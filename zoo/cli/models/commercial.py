"""What `zoo list --commercial` leaves out: how many models for which reason, and what would clear it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from zoo.registry.terms import NOT_STATED, ModelTerms, Terms
from zoo.runs.console import Console, counted

NO_WEIGHTS = "none: no weights are published"


def left_out(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{part, licence, commercial, needs, models}] of models that are not clearly free, the most frequent first.

    A model is under every reason that it has.

    Args:
        entries: of `zoo.runs.catalogue`.
    """
    reasons: dict[tuple[str, str, str, str], list[str]] = {}
    for entry in entries:
        for reason in _reasons(entry):
            reasons.setdefault(reason, []).append(entry["name"])
    found = [
        dict(zip(("part", "licence", "commercial", "needs"), reason, strict=True), models=names)
        for reason, names in reasons.items()
    ]
    return sorted(found, key=lambda reason: -len(reason["models"]))


def show(entries: list[dict[str, Any]], console: Console) -> None:
    """The reasons as a table; `zoo list --commercial --json` names the models of each."""
    if not entries:
        return
    console.say(
        f"\nleft out: {counted(len(entries), 'model')} whose terms do not clearly allow commercial use, "
        "some for several reasons:"
    )
    rows = [
        (len(r["models"]), r["part"], r["commercial"], r["licence"], r["needs"]) for r in left_out(entries)
    ]
    console.table(("models", "part", "use is", "licence", "would be clear with"), rows)


def _reasons(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(part, licence, commercial, what would clear it) of each part that is not clearly free."""
    if "license" not in entry or "version" not in entry:
        yield "weights", NO_WEIGHTS, "unclear", "weights that are published with terms"
        return
    terms = entry["terms"]
    if terms is None:
        licence = " ".join(entry["license"].split())
        yield "all", f"{licence}, without a source", "unclear", "terms in its manifest: publish it again"
        return
    for part, one in msgspec.convert(terms, ModelTerms).parts():
        if one.commercial != "allowed":
            yield part, one.licence, one.commercial, _needs(part, one)


def _needs(part: str, one: Terms) -> str:
    if one.commercial == "forbidden":
        return "another licence from its owner"
    if part.startswith("data"):
        return "its owner's terms, with source and date, or weights that never saw it"
    if one.licence == NOT_STATED or one.source is None:
        return f"a licence of the {part} with source and date"
    return f"its authors' word that it covers the {part}"
