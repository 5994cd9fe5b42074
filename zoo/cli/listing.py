"""`zoo list` and `zoo info`: recipes and manifests, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.cli import catalogue
from zoo.cli.console import Console


def list_models(registry: Path | None, console: Console) -> None:
    """One row per model of the zoo, then those of the user's registry."""
    models = list(catalogue.models().values())
    registered = catalogue.registered(registry)
    console.result(models + registered)
    if console.as_json:
        return
    rows = [
        (e["name"], _millions(e["params"]), _score(e["published"], "AP"), _score(e["published"], "AP50"),
         _score(e["measured"], "AP") or "not yet", e["recipes"][0])
        for e in models
    ]  # fmt: skip
    console.table(("model", "params", "published AP", "AP50", "measured AP", "recipe"), rows)
    if registered:
        console.say("\nin your registry:")
        own = [(e["name"], e["version"], _score(e["measured"], "AP") or "not yet") for e in registered]
        console.table(("model", "version", "measured AP"), own)
    console.say("\nzoo info NAME tells more; zoo finetune NAME --data FOLDER trains it on your images")


def info(name: str, registry: Path | None, console: Console) -> None:
    """All facts of one model."""
    entry = catalogue.find_registered(name, registry) or catalogue.find(name)
    console.result(entry)
    if console.as_json:
        return
    for key, value in entry.items():
        if key == "measured" and value is None:
            value = "not yet"
        for line in _lines(value):
            console.say(f"{key:<12} {line}")
            key = ""


def _lines(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(v) for v in value] or ["-"]
    if isinstance(value, dict):
        return [f"{k}: {v}" for k, v in value.items()]
    return [
        f"{value:,}".replace(",", " ") if isinstance(value, int) else "-" if value is None else str(value)
    ]


def _millions(params: int | None) -> str:
    return "-" if params is None else f"{params / 1e6:.1f} M"


def _score(scores: dict[str, Any] | None, key: str) -> str:
    value = (scores or {}).get(key)
    return "" if value is None else f"{value:.1f}" if value > 1 else f"{value:.3f}"
