"""`zoo pull`, and the registration that ends a fine-tuning."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.runs.console import Console, is_rank_zero
from zoo.storage.durable import write_atomically

if TYPE_CHECKING:
    from zoo.runs.train import TrainedRun


def pull(
    name: str, output: Path | None, source: str | None, registry: Path | None, console: Console,
    called: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Makes the files ready and hashes every one of them; where they are.

    Args:
        name: of the model, or where it is from.
        output: folder that gets a copy of the files.
        source: of the files, instead of where they are from.
        registry: of the user.
        console: prints the files.
        called: name in the registry of a model of transformers.
    """
    from zoo.registry.pull import pull as pull_version
    from zoo.registry.store import UnknownModelError
    from zoo.registry.terms import commercial, restriction
    from zoo.runs import catalogue

    try:
        pulled = pull_version(name, registry=registry, source=source, name=called)
    except UnknownModelError:
        catalogue.refuse_without_weights(name)
        raise
    folder = pulled.folder
    if output is not None:
        copy_whole(folder, output)
        folder = output
    manifest = pulled.manifest
    how = "fetched" if pulled.downloaded else "here already"
    console.say(f"{manifest.name}:{manifest.version}  {folder}  ({how})")
    for entry in manifest.files:
        console.say(f"  {entry.path}  {entry.size} bytes  sha256 {entry.sha256[:16]}... checked")
    restricted = restriction(manifest.terms, manifest.license)
    for note in (restricted, *pulled.notes):
        if note:
            console.say(f"  {note}")
    return {
        "name": manifest.name,
        "version": manifest.version,
        "folder": str(folder),
        "kind": pulled.kind,
        "downloaded": pulled.downloaded,
        "license": manifest.license,
        "commercial": commercial(manifest.terms),
        "restriction": restricted,
        "notes": list(pulled.notes),
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files],
    }


def copy_whole(source: Path, target: Path) -> None:
    """Copies the files of a folder into another, each of which is the old one or the new one at any moment.

    Raises:
        OSError: the disk is full or read-only; names the file.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "rb") as content:
            write_atomically(place, functools.partial(shutil.copyfileobj, content))


def register(
    run: TrainedRun,
    document: dict[str, Any],
    split: str,
    name: str,
    registry: str | Path | None,
    parent: str | None,
    console: Console,
) -> str | None:
    """Publishes the best checkpoint of a finished run under `name`; `name:version`, or None off rank zero.

    A run that is gone on with and whose best is what it has published before has that version.
    """
    from zoo.registry.publish import publish as publish_version
    from zoo.runs.report import measured
    from zoo.tracking.lineage import git_state

    if not is_rank_zero():
        return None
    run_id = document["run"]
    # a manifest holds a score only with the run and the commit that account for it
    accountable = run_id is not None and git_state() is not None
    published = publish_version(
        run.checkpoint,
        name,
        registry=registry,
        run_id=run_id,
        measured=_without_step(measured(document, split)) if accountable else None,
        thresholds=document["thresholds"],
        parent=parent if run.recipe["init_from"]["source"] == parent else None,
        data_name=Path(run.recipe["data"]["init_args"]["root"]).name,
        once=run.module.begun.step > 0,  # of a run that is gone on with, which may have come to this before
    )
    reference = published.reference
    console.say(f"registered  {reference}  {published.folder}")
    if not published.is_new:
        console.say("note        these very weights were registered before, so that there is no new version")
    elif not accountable:
        console.say("note        without a git commit and an MLflow run the manifest holds no measured score")
    if published.note:
        console.say(f"note        {published.note}")
    return reference


def set_alias(reference: str, alias: str, registry: Path | None, console: Console) -> dict[str, Any]:
    """Points an alias to a version that there is, in the registry and in MLflow."""
    from zoo.registry.publish import alias_in_mlflow
    from zoo.registry.store import LocalRegistry, find

    found = find(reference, registry)
    if found.folder is None:
        raise ValueError(f"{reference} comes with the package, in one version and without aliases")
    manifest, store = found.manifest, LocalRegistry(registry)
    before = store.aliases(manifest.name).get(alias)
    store.set_alias(manifest.name, alias, manifest.version)
    moved = "" if before in (None, manifest.version) else f"  (was version {before})"
    console.say(f"alias       {manifest.name}@{alias} is {manifest.name}:{manifest.version}{moved}")
    note = alias_in_mlflow(manifest, alias)
    if note:
        console.say(f"note        {note}")
    return {
        "name": manifest.name,
        "version": manifest.version,
        "alias": alias,
        "before": before,
        "note": note,
    }


def _without_step(scores: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in scores.items() if key != "step"}
