"""What the zoo holds, from recipes and manifests alone: for `zoo list` and `zoo info`. No torch."""

from __future__ import annotations

from typing import Any

from zoo.cli import recipes

FIELDS = ("name", "tag", "family", "params", "macs", "published", "measured", "license", "paper", "sources",
          "trained_by", "recipes")  # fmt: skip


def models() -> dict[str, dict[str, Any]]:
    """Zoo name -> entry, from the `about` block of every recipe that comes with the package.

    A family's `finetune` recipe trains every size, so it is named with each of them.
    """
    entries: dict[str, dict[str, Any]] = {}
    finetune: dict[str, str] = {}
    for key, path in recipes.bundled().items():
        about = recipes.load(path)["about"]
        if about["tag"] == "finetune":
            finetune[about["family"]] = key
            continue
        entry = entries.setdefault(
            about["name"], {field: about.get(field) for field in FIELDS} | {"recipes": []}
        )
        entry["recipes"].append(key)
    for entry in entries.values():
        if entry["published"] is not None and entry["family"] in finetune:
            entry["recipes"].append(finetune[entry["family"]])
    return entries


def find(name: str) -> dict[str, Any]:
    """The entry of a zoo name, with or without its default tag.

    Raises:
        ValueError: naming what there is, and the nearest name.
    """
    entries = models()
    for bare, entry in entries.items():
        if name in (bare, f"{bare}.{entry['tag']}"):
            return entry
    near = recipes.nearest(name, entries)
    raise ValueError(
        f"no model {name!r}; `zoo list` shows {', '.join(entries)}"
        + (f"; did you mean {near!r}?" if near else "")
    )


def registered(registry: Any = None) -> list[dict[str, Any]]:
    """Entries of the user's local registry, newest version of each name; empty if there is none yet."""
    return []
