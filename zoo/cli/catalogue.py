"""What the zoo holds, from recipes and manifests alone: for `zoo list` and `zoo info`. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.cli import recipes
from zoo.registry.manifest import Manifest, read_manifest
from zoo.registry.names import Reference, parse_reference
from zoo.registry.store import LocalRegistry, builtin_manifests

Entry = dict[str, Any]


def models() -> dict[str, Entry]:
    """Zoo name -> entry, from every recipe that comes with the package and its manifest, if it has one.

    A family's `finetune` recipe trains every size, so it is named with each of them.
    """
    entries: dict[str, Entry] = {}
    finetune: dict[str, str] = {}
    manifests = builtin_manifests()
    for key, path in recipes.bundled().items():
        about = recipes.load(path)["about"]
        if about["tag"] == "finetune":
            finetune[about["family"]] = key
            continue
        entry = entries.setdefault(about["name"], {"name": about["name"], "recipes": []})
        entry["recipes"].append(key)
        entry |= {k: v for k, v in about.items() if k not in entry}
        full = f"{about['name']}.{about['tag']}"
        if full in manifests:
            entry |= _with_manifest(entry, read_manifest(manifests[full]))
    for entry in entries.values():
        if entry["published"] is not None and entry["family"] in finetune:
            entry["recipes"].append(finetune[entry["family"]])
    return entries


def find(name: str) -> Entry:
    """The entry of a zoo name, with or without its tag.

    Raises:
        ValueError: naming what there is, and the nearest name.
    """
    entries = models()
    for bare, entry in entries.items():
        if name in (bare, f"{bare}.{entry['tag']}"):
            return entry
    near = recipes.nearest(name, entries)
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"no model {name!r}; `zoo list` shows {', '.join(entries)}{hint}")


def registered(registry: Path | None) -> list[Entry]:
    """The newest version of each model in the user's registry; empty if there is none yet."""
    local = LocalRegistry(registry)
    return [_of_registry(local, local.manifest(Reference(name))) for name in local.names()]


def find_registered(name: str, registry: Path | None) -> Entry | None:
    """The entry of `NAME[@alias|:version]` in the user's registry, None if it is not there.

    Raises:
        UnknownModelError: the name is there, the version or alias is not.
        ValueError: no name at all.
    """
    local, reference = LocalRegistry(registry), parse_reference(name)
    if reference.name not in local.names():
        return None
    return _of_registry(local, local.manifest(reference))


def _with_manifest(entry: Entry, manifest: Manifest) -> Entry:
    """The manifest's facts on the recipe's; the recipe alone knows speed and scores with fewer layers."""
    plain = manifest.to_dict()
    published = {**(entry["published"] or {}), **(plain["published"] or {})}
    keep = ("version", "license", "sources", "params", "macs", "counted", "measured", "trained_by", "origin")
    return {**{key: plain[key] for key in keep}, "published": published or None}


def _of_registry(local: LocalRegistry, manifest: Manifest) -> Entry:
    plain = manifest.to_dict()
    left_out = ("model", "label_map", "tool_versions", "default")
    classes = [row["name"] for row in plain["label_map"]["classes"]]
    versions = local.aliases(manifest.name)
    return {
        **{key: value for key, value in plain.items() if key not in left_out},
        "aliases": [alias for alias, version in versions.items() if version == manifest.version],
        "classes": classes,
        "folder": str(local.folder(manifest.name, manifest.version)),
    }
