"""What the zoo holds, from recipes and manifests alone: for `zoo list` and `zoo info`. No torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from zoo.registry.manifest import MANIFEST_FILE, Manifest
from zoo.registry.names import Reference, base_name, parse_reference
from zoo.registry.store import LocalRegistry, builtin_manifest, builtin_manifests, unknown
from zoo.registry.terms import commercial, restriction
from zoo.runs import recipes
from zoo.storage.cache import cache_root

# keys of `about` that belong to one model's details, or to the tests alone
NOT_LISTED = ("printed", "macs_left_out")
log = logging.getLogger(__name__)
Entry = dict[str, Any]


def models() -> dict[str, Entry]:
    """Zoo name -> entry, from every recipe that comes with the package and its manifest, if it has one.

    The bare name means its default tag. Published weights of another tag are a model of their own, under
    their full name; those whose schedule is unpublished have no recipe. A family's `finetune` recipe
    trains every size of its class, so it is named with each of them.
    """
    entries: dict[str, Entry] = {}
    finetune: dict[tuple[str, str], str] = {}
    manifests = {full: builtin_manifest(path) for full, path in builtin_manifests().items()}
    headings = {key: recipes.load_heading(path) for key, path in recipes.bundled().items()}
    abouts = {key: heading.about for key, heading in headings.items()}
    classes = {key: heading.class_path for key, heading in headings.items()}
    # of several schedules the one that the published weights were trained by comes first
    for key, about in sorted(
        abouts.items(), key=lambda item: f"{item[1]['name']}.{item[1]['tag']}" not in manifests
    ):
        if about["tag"] == "finetune":
            finetune[about["family"], classes[key]] = key
            continue
        full = f"{about['name']}.{about['tag']}"
        name = full if full in manifests and not manifests[full].default else about["name"]
        entry = entries.setdefault(name, {"name": name, "full_name": full, "recipes": []})
        entry["recipes"].append(key)
        entry |= {k: v for k, v in about.items() if k not in (*entry, *NOT_LISTED)}
        if full in manifests and len(entry["recipes"]) == 1:
            entry |= _with_manifest(entry, manifests[full])
    for entry in entries.values():
        kind = (entry["family"], classes[entry["recipes"][0]])
        if entry["published"] is not None and kind in finetune:
            entry["recipes"].append(finetune[kind])
    for full, manifest in manifests.items():
        if not manifest.recipes:
            entries[full] = _without_recipe(manifest, entries.get(base_name(full), {}))
    return dict(sorted(entries.items()))


def is_finetune(key: str) -> bool:
    """Whether a recipe's key is that of a family's fine-tuning."""
    return key.rpartition("/")[2].startswith("finetune")


def finetune_recipe(family: str, class_path: str) -> recipes.Recipe | None:
    """The family's recipe for fine-tuning a model of this class, None if there is none."""
    for key, path in recipes.bundled().items():
        if key.startswith(f"{family}/") and is_finetune(key):
            if recipes.load_heading(path).class_path == class_path:
                return recipes.load(path)
    return None


def find(name: str, registry: str | Path | None = None) -> Entry:
    """The entry of a zoo name, with or without its tag.

    Raises:
        UnknownModelError: naming the nearest, and the registry, where it is not looked for.
    """
    entries = models()
    entry = _called(name, entries)
    if entry is None:
        raise unknown(name, registry, entries)
    return entry


def refuse_without_weights(name: str) -> None:
    """Raises ValueError for a model of the zoo that has no published weights."""
    entry = _called(name, models())
    if entry is not None and entry["full_name"] not in builtin_manifests():
        raise ValueError(
            f"{name} is a model of the zoo, but there are no published weights of it; train it on your images: "
            f"zoo finetune {entry['name']} --data FOLDER"
        )


def _called(name: str, entries: dict[str, Entry]) -> Entry | None:
    return next((entry for entry in entries.values() if name in (entry["name"], entry["full_name"])), None)


def with_details(entry: Entry) -> Entry:
    """The entry with the schedule and input of its first recipe and what the authors print beside it.

    Without a recipe the schedule is None and the input is the manifest's.
    """
    schedule, contract = _schedule_and_input(entry)
    published = entry["published"]
    if published is not None:
        printed = _printed(entry)
        flops, macs_per_flop = published.get("gflops"), printed.get("macs_per_flop")
        published = {
            **published,
            "params": printed.get("params"),
            "AR": printed.get("AR"),
            "gflops_convention": printed.get("counting"),
            "gmacs": None if flops is None or macs_per_flop is None else flops * macs_per_flop,
            "speed_device": printed.get("speed_on"),
            "file": (entry.get("origin") or {}).get("file"),
            "file_size": printed.get("file_size"),
        }
    folder = cache_root() / entry["full_name"] / str(entry.get("version"))
    return {
        **entry,
        "published": published,
        "other_schedules": {
            key: recipes.load_heading(recipes.resolve(key)).about["published"]
            for key in entry["recipes"][1:]
            if not is_finetune(key)
        },
        "schedule": schedule,
        "input": contract,
        "pulled": str(folder) if (folder / MANIFEST_FILE).is_file() else None,
    }


def registered(registry: Path | None) -> list[Entry]:
    """The newest version of each model in the user's registry; empty if there is none yet.

    One that cannot be read is left out with a warning.
    """
    local, entries = LocalRegistry(registry), []
    for name in local.names():
        try:
            entries.append(_of_registry(local, local.manifest(Reference(name))))
        except (ValueError, OSError, LookupError) as error:
            log.warning("left out of the list: %s", error)
    return entries


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


def manifest_of(entry: Entry) -> dict[str, Any]:
    """The manifest of a model of the zoo that has one, as plain values."""
    return builtin_manifest(builtin_manifests()[entry["full_name"]]).to_dict()


def _printed(entry: Entry) -> dict[str, Any]:
    """What the authors print beside the scores, from the recipe of the published weights; empty without one."""
    if not entry["recipes"]:
        return {}
    printed: dict[str, Any] = recipes.load_heading(recipes.resolve(entry["recipes"][0])).about.get(
        "printed", {}
    )
    return printed


def _schedule_and_input(entry: Entry) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if not entry["recipes"]:
        return None, manifest_of(entry)["input"]
    recipe = recipes.load(recipes.resolve(entry["recipes"][0]))
    arguments = recipe["model"]["init_args"]
    schedule = {
        "epochs": recipe["trainer"].get("max_epochs"),
        "learning_rate": arguments["schedule"]["lr"],
        "drop_epochs": arguments["schedule"]["drop_epochs"],
        "global_batch_size": arguments["schedule"]["global_batch_size"],
        "moving_average": arguments.get("ema"),
    }
    return schedule, recipe["data"]["init_args"]["input"]


def _without_recipe(manifest: Manifest, same_network: Entry) -> Entry:
    """The entry of weights whose schedule is unpublished; the paper is that of the network."""
    name, family = manifest.name, manifest.family
    entry = {"name": name, "full_name": name, "recipes": [], "tag": name.partition(".")[2], "family": family}
    entry |= {key: same_network[key] for key in ("paper",) if key in same_network}
    return entry | _with_manifest({"published": None}, manifest)


def _with_manifest(entry: Entry, manifest: Manifest) -> Entry:
    """The manifest's facts on the recipe's; the recipe alone knows speed and scores with fewer layers."""
    plain = manifest.to_dict()
    published = {**(entry["published"] or {}), **(plain["published"] or {})}
    keep = (
        "version",
        "license",
        "terms",
        "sources",
        "params",
        "macs",
        "counted",
        "measured",
        "trained_by",
        "origin",
    )
    return {**{key: plain[key] for key in keep}, "published": published or None, **_of_terms(manifest)}


def _of_terms(manifest: Manifest) -> dict[str, Any]:
    """What the terms of a model say of its commercial use: `allowed`, or `unclear` or `forbidden` and why."""
    return {
        "commercial": commercial(manifest.terms),
        "restriction": restriction(manifest.terms, manifest.license),
    }


def _of_registry(local: LocalRegistry, manifest: Manifest) -> Entry:
    plain = manifest.to_dict()
    left_out = ("model", "label_map", "tool_versions", "default")
    classes = [row["name"] for row in plain["label_map"]["classes"]]
    versions = local.aliases(manifest.name)
    return {
        **{key: value for key, value in plain.items() if key not in left_out},
        **_of_terms(manifest),
        "aliases": [alias for alias, version in versions.items() if version == manifest.version],
        "aliases_of_all_versions": versions,
        "classes": classes,
        "folder": str(local.folder(manifest.name, manifest.version)),
    }
