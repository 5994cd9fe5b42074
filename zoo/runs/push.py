"""`zoo push`: a registered version to a repository of the hub, with a model card made of its manifest."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from zoo.detector import Detector
from zoo.exporting.certificate import write_certificate
from zoo.exporting.transformers import export_transformers
from zoo.registry.hugging_face.card import model_card
from zoo.registry.hugging_face.hub import HubReference
from zoo.registry.hugging_face.push import Pushed, push_folder, repository_of
from zoo.registry.manifest import MANIFEST_FILE, Manifest
from zoo.registry.pull import Pulled, pull
from zoo.registry.terms import restriction
from zoo.runs.certify import certified
from zoo.runs.console import Console
from zoo.runs.export_images import export_images
from zoo.storage.plain_yaml import read_yaml

CARD, RECIPE_FILE = "README.md", "recipe.yaml"


def push(
    name: str,
    to: str,
    *,
    private: bool = False,
    form: Literal["zoo", "transformers"] = "zoo",
    dry_run: bool = False,
    registry: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Sends a version's files, or its export to transformers, to `hf:ORG/REPO`; what was sent, as plain values.

    Args:
        name: of the version, as `zoo.load` takes it from a registry.
        to: `hf:ORG/REPO`.
        private: of a repository that is created.
        form: which files.
        dry_run: send nothing, and say what would be.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        console: for the user.

    Raises:
        ValueError: no such version or repository, or transformers has no such network.
        OSError: HF_TOKEN is not set, or the hub does not answer.
    """
    console = console or Console()
    if form not in ("zoo", "transformers"):
        raise ValueError(f"--as {form!r:.40}: it is zoo or transformers")
    reference = repository_of(to)
    pulled = pull(name, registry=registry)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if form == "transformers":
            _write_transformers(pulled, folder, console)
        else:
            _copy_version(pulled, folder, reference)
        version = f"{pulled.manifest.name}:{pulled.manifest.version}"
        pushed = push_folder(
            folder, reference, private=private, message=f"detr-zoo: {version}", dry_run=dry_run
        )
    _say(pushed, pulled, form, dry_run, console)
    return {
        "name": pulled.manifest.name,
        "version": pulled.manifest.version,
        "repo": pushed.repo,
        "address": pushed.address,
        "created": pushed.created,
        "dry_run": dry_run,
        "commit": pushed.commit,
        "files": [{"path": f.path, "size": f.size, "state": f.state} for f in pushed.files],
    }


def _write_transformers(pulled: Pulled, folder: Path, console: Console) -> None:
    """The export, if its certificate passes.

    Raises:
        ValueError: the two differ.
    """
    detector = Detector.from_pulled(pulled)
    export_transformers(detector, folder)
    images = export_images(detector, None, detector.input, learns=False)
    document = certified(detector, folder, images, console)
    if not document["passed"]:
        raise ValueError(
            f"{pulled.manifest.name}: nothing was sent, for its export differs: {document['failures'][0]}"
        )
    write_certificate(document, folder)


def _copy_version(pulled: Pulled, folder: Path, reference: HubReference) -> None:
    """The version as it lies in the registry, with a card."""
    manifest = pulled.manifest
    for name in (MANIFEST_FILE, *(entry.path for entry in manifest.files)):
        shutil.copyfile(pulled.folder / name, folder / name)
    usage = (
        f"# zoo pull https://huggingface.co/{reference.repo}/resolve/main/{MANIFEST_FILE}\n"
        f'import zoo\n\nzoo.load("{manifest.name}").predict("photo.jpg")'
    )
    card = model_card(
        manifest.name, manifest.labels(), _contract(manifest), manifest,
        masks="panoptic" in manifest.model.init_args, usage=usage, library="detr-zoo",
    )  # fmt: skip
    (folder / CARD).write_text(card, encoding="utf-8")


def _contract(manifest: Manifest) -> Any:
    from zoo.contract.preprocess import InputContract

    return InputContract.from_dict(manifest.to_dict()["input"])


def _say(pushed: Pushed, pulled: Pulled, form: str, dry_run: bool, console: Console) -> None:
    """What was sent, and what its readers should know."""
    manifest = pulled.manifest
    what = "would send" if dry_run else "sent"
    if not pushed.sent:
        console.say(
            f"{pushed.address} has all {len(pushed.files)} files of {manifest.name} unchanged; nothing is sent"
        )
    else:
        where = "a new repository, " if pushed.created else ""
        console.say(f"{what} {len(pushed.sent)} of {len(pushed.files)} files to {where}{pushed.address}")
    for file in pushed.files:
        console.say(f"  {file.path}  {file.size} bytes  {file.state}")
    if pushed.commit is not None:
        console.say(f"  commit {pushed.commit}")
    restricted = restriction(manifest.terms, manifest.license)
    if restricted:
        console.say(f"note  {restricted}; the card says so")
    if form == "zoo" and (root := _data_folder(pulled.folder)):
        console.say(f"note  {RECIPE_FILE} names the folder of your data, {root}")


def _data_folder(folder: Path) -> str | None:
    """The absolute path in a version's recipe, which everybody can read then."""
    if not (folder / RECIPE_FILE).is_file():
        return None
    try:
        root = str(read_yaml(folder / RECIPE_FILE)["data"]["init_args"]["root"])
    except (KeyError, TypeError):
        return None
    return root if Path(root).is_absolute() else None
