"""From a folder or repository of transformers to a version in the user's registry."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import yaml

from zoo.registry.hugging_face.folder import (
    CONFIG_FILE,
    PROCESSOR_FILE,
    WEIGHTS,
    Imported,
    family_of,
    parts_of,
    read_folder,
    read_json,
)
from zoo.registry.hugging_face.hub import Hub, HubError, HubReference, parse_hub_reference
from zoo.registry.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    DataBlock,
    InputBlock,
    LabelMapBlock,
    Lineage,
    Manifest,
    ModelBlock,
    Origin,
    TrainedBy,
    read_manifest,
)
from zoo.registry.names import check_name, parse_reference, shortened
from zoo.registry.store import LocalRegistry, verify_folder, with_files
from zoo.registry.terms import ModelTerms, Terms, not_stated, told
from zoo.registry.weights import count, ready_module, save_weights
from zoo.storage.durable import sha256_of
from zoo.storage.plain_yaml import PlainYamlError, parse_yaml
from zoo.storage.safetensors_file import DamagedModelError
from zoo.storage.staging import one_at_a_time, resumable, staged
from zoo.tracking.lineage import DISTRIBUTION

CARD, RECIPE_FILE = "README.md", "recipe.yaml"
NOT_KNOWN = "not known"
_LONGEST_CARD = 1 << 20
_TOOLS = ("torch", "torchvision", "transformers", "timm", DISTRIBUTION)


@dataclass(frozen=True)
class Added:
    """The version that a folder or repository became, or already was."""

    manifest: Manifest
    folder: Path
    new: bool
    notes: tuple[str, ...] = ()


def import_model(
    text: str, store: LocalRegistry, downloads: Path, name: str | None = None, source: str | None = None
) -> Added:
    """Adds the model that `hf:...` names to the registry, unless exactly it is there.

    Args:
        text: `hf:ORG/REPO[@REVISION]` or `hf:` and a path.
        store: the registry.
        downloads: folder for parts of downloads.
        name: under which it is registered; None: family and repository.
        source: folder with the repository's files, for a machine without network.

    Raises:
        HubError: the repository cannot be had.
        FileNotFoundError: a file is missing.
        ValueError: it is no model that this package has; names the file and key.
    """
    reference = parse_hub_reference(text)
    if name is not None:
        check_name(name)
    if source is not None:
        if reference.folder is not None:
            raise ValueError(f"{text} is a folder itself; --source is for a repository of the hub")
        return _add(_folder(Path(source)), reference, store, name, lineage=str(reference))
    if reference.folder is not None:
        return _add(_folder(reference.folder), reference, store, name, lineage=None)
    if reference.commit and (found := _there(store, str(reference), name)):
        return found
    hub = Hub()
    commit, files = hub.resolve(reference)
    exact = HubReference(reference.repo, commit)
    if found := _there(store, str(exact), name):
        return found
    downloads.mkdir(parents=True, exist_ok=True)
    place = re.sub(r"\W", "-", f"{reference.repo}-{commit}")
    with one_at_a_time(downloads / f"{place}.lock"), resumable(downloads, place) as folder:
        _fetch(hub, exact, files, folder)
        return _add(folder, exact, store, name, lineage=str(exact))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is no folder; a model of transformers is a folder with {CONFIG_FILE}"
        )
    return path.absolute()


def _there(store: LocalRegistry, lineage: str, name: str | None) -> Added | None:
    """The version that was made of this commit, if it is whole."""
    for known in [name] if name is not None else store.names():
        for version in store.versions(known):
            folder = store.folder(known, version)
            manifest = read_manifest(folder / MANIFEST_FILE)
            if manifest.lineage.parent == lineage and manifest.origin.note.startswith(_NOTE):
                try:
                    verify_folder(folder, manifest)
                except DamagedModelError:
                    continue
                return Added(manifest, folder, False)
    return None


_NOTE = "made of a model of transformers"


def _fetch(hub: Hub, exact: HubReference, files: Sequence[str], folder: Path) -> None:
    """The files that are read, and no others: what else lies in a repository may be code."""
    assert exact.revision is not None
    small = [name for name in (CONFIG_FILE, PROCESSOR_FILE, CARD) if name in files]
    if CONFIG_FILE not in small and MANIFEST_FILE in files:
        address = f"{hub.endpoint}/{exact.repo}/resolve/{exact.revision}/{MANIFEST_FILE}"
        raise HubError(f"{exact} is a model of this package: zoo pull {address}")
    if CONFIG_FILE not in small:
        raise HubError(f"{exact} has no {CONFIG_FILE}; a model that transformers has saved has one")
    hub.fetch(exact.repo, exact.revision, small, folder)
    family_of(read_json(folder / CONFIG_FILE, str(exact)), f"{exact}, {CONFIG_FILE}")  # before what is large
    for name in WEIGHTS:
        index = f"{name}.index.json"
        if name in files:
            return hub.fetch(exact.repo, exact.revision, [name], folder)
        if index in files:
            hub.fetch(exact.repo, exact.revision, [index], folder)
            parts = parts_of(read_json(folder / index, str(exact)), f"{exact}, {index}")
            return hub.fetch(exact.repo, exact.revision, parts, folder)
    raise HubError(f"{exact} has neither {' nor '.join(WEIGHTS)}")


def _add(
    folder: Path, reference: HubReference, store: LocalRegistry, name: str | None, lineage: str | None
) -> Added:
    shown = str(reference)
    imported = read_folder(folder, shown)
    card = card_metadata(folder / CARD)
    name = name or default_name(imported.family, reference.repo.rpartition("/")[2] or folder.name)
    _refuse_another(store, name, reference, lineage)
    manifest = _manifest(imported, name, card, folder, lineage)

    def make(staging: Path) -> Manifest:
        save_weights(imported.released.state, staging / WEIGHTS_FILE)
        text = yaml.safe_dump(imported.recipe, sort_keys=False, allow_unicode=True)
        (staging / RECIPE_FILE).write_text(text, encoding="utf-8")
        return with_files(manifest, staging)

    with staged(store.root) as staging:
        same = _same(store, make(staging))
        if same is not None:
            restored = _restore(same, staging, store)
            return Added(same, store.folder(name, same.version), restored, imported.notes)
    added = store.add(make, name)
    return Added(added, store.folder(name, added.version), True, imported.notes)


def _same(store: LocalRegistry, made: Manifest) -> Manifest | None:
    """The version that is this model of this commit; equal weights may have other classes, or another licence."""
    facts = ("files", "model", "label_map", "input", "license", "lineage")
    for version in store.versions(made.name):
        known = read_manifest(store.folder(made.name, version) / MANIFEST_FILE)
        if all(getattr(known, fact) == getattr(made, fact) for fact in facts):
            return known
    return None


def _restore(manifest: Manifest, made: Path, store: LocalRegistry) -> bool:
    """Whether files of a version were damaged; they are written anew."""
    folder = store.folder(manifest.name, manifest.version)
    try:
        verify_folder(folder, manifest)
        return False
    except DamagedModelError:
        for entry in manifest.files:
            os.replace(made / entry.path, folder / entry.path)
        return True


def _refuse_another(store: LocalRegistry, name: str, reference: HubReference, lineage: str | None) -> None:
    """Versions of a name come from one place."""
    versions = store.versions(name)
    if not versions:
        return
    before = store.manifest(parse_reference(name)).lineage.parent
    repo = (before or "").partition("@")[0]
    if repo != (lineage or "").partition("@")[0]:
        origin = f"comes from {before}" if before else "does not come from the hub"
        raise ValueError(f"{name} is in the registry and {origin}; give {reference} another name with --name")


def default_name(family: str, repository: str) -> str:
    """`<family>.<repository>`, in the letters that a name may have."""
    tag = re.sub(r"[^a-z0-9]+", "-", repository.lower()).strip("-") or "model"
    return shortened(f"{family}.{tag}")


def card_metadata(path: Path) -> dict[str, Any]:
    """The metadata block of a model card; empty without one, and where it cannot be read."""
    if not path.is_file() or path.stat().st_size > _LONGEST_CARD:
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
    try:
        found = parse_yaml(match[1], str(path), aliases=False) if match else {}
    except PlainYamlError:
        return {}
    return found if isinstance(found, dict) else {}


def _terms(card: Mapping[str, Any], data: str, lineage: str | None) -> ModelTerms:
    """What the card says of the weights; nobody says more."""
    licence = card.get("license")
    if licence == "other" and isinstance(card.get("license_name"), str):
        licence = card["license_name"]
    where = f"told by the card of {lineage or 'the folder'}"
    weights: Terms = not_stated("the card tells no licence")
    if isinstance(licence, str) and licence.strip():
        weights = told(" ".join(licence.split()), where)
    return ModelTerms(
        code=not_stated("what trained them is not told"), weights=weights, data={data: not_stated()}
    )


def _manifest(
    imported: Imported, name: str, card: Mapping[str, Any], folder: Path, lineage: str | None
) -> Manifest:
    released = imported.released
    params, macs, counted = count(ready_module(released), released.input)
    datasets = card.get("datasets")
    named = [d for d in datasets if isinstance(d, str) and d] if isinstance(datasets, list) else []
    data = ", ".join(named) or NOT_KNOWN
    terms = _terms(card, data, lineage)
    version = read_json(folder / CONFIG_FILE, CONFIG_FILE).get("transformers_version")
    first = imported.weights[0]
    parts = "" if len(imported.weights) == 1 else f", the first of {len(imported.weights)} parts"
    converter = f"{released.model['class_path'].rpartition('.')[0]}.from_published"
    return Manifest(
        name=name,
        version=1,
        family=imported.family,
        license=terms.weights.licence,
        terms=terms,
        model=msgspec.convert(released.model, ModelBlock),
        label_map=msgspec.convert(released.label_map.to_dict(), LabelMapBlock),
        input=msgspec.convert(released.input.to_dict(), InputBlock),
        files=[],
        origin=Origin(
            kind="trained", file=first.name, converter=converter, size=first.stat().st_size, sha256=sha256_of(first),
            pinned="first_use", note=f"{_NOTE}{parts}",
        ),
        trained_by=TrainedBy(code=f"transformers {version or NOT_KNOWN}", differs=["how it was trained is not told"]),
        data=DataBlock(name=data, split=NOT_KNOWN),
        lineage=Lineage(parent=lineage),
        params=params,
        macs=macs,
        counted=counted,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tool_versions={tool: metadata.version(tool) for tool in _TOOLS},
    )  # fmt: skip
