"""From a name to checked files on this machine.

The user's own versions are hashed where they lie. Built-in models are fetched from their authors,
converted by their family's `from_published`, and kept in a cache as safetensors and manifest; the
authors' pickle is read with `weights_only=True` and deleted.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from zoo.registry.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    ManifestError,
    Origin,
    parse_manifest,
    read_manifest,
)
from zoo.registry.published_file import read_published
from zoo.registry.store import (
    LocalRegistry,
    find,
    finish_folder,
    same_files,
    verify_folder,
    with_files,
)
from zoo.storage.cache import cache_root
from zoo.storage.fetch import ByteMeter, DownloadError, Expected, WrongFileError, fetch, fetch_text
from zoo.storage.safetensors_file import DamagedModelError
from zoo.storage.staging import one_at_a_time, put_in_place, resumable, staged

log = logging.getLogger(__name__)

_LONGEST_MANIFEST = 1 << 20
DOWNLOADS = ".downloads"  # folder of a registry
HUGGING_FACE, GOOGLE_DRIVE = "huggingface.co", "drive.google.com"
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")  # a repository has one or both
HUGGING_FACE_TYPES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Pulled:
    """Files of one version, all hashes checked just now."""

    manifest: Manifest
    folder: Path
    kind: Literal["local", "builtin"]
    downloaded: bool
    notes: tuple[str, ...] = ()


def pull(
    reference: str,
    *,
    registry: str | Path | None = None,
    source: str | None = None,
    cache: str | Path | None = None,
    progress: ByteMeter | None = None,
    attempts: int = 4,
    name: str | None = None,
) -> Pulled:
    """Makes the files of a model ready on this machine and checks every hash.

    Args:
        reference: `NAME[@alias|:version]`, or the address (http, https, file) of somebody's
            manifest.yaml, whose model is added to the registry as its next version; or `hf:ORG/REPO[@REVISION]`, or
            `hf:` and the path of a folder, a model of transformers that is added under `name`.
        registry: folder of the user's registry; see `registry_root`.
        source: fetch from here instead of the manifest's sources: an address or a path, for a machine
            without network.
        cache: folder for built-in models; see `zoo.storage.cache.cache_root`.
        progress: called with (bytes so far, bytes in all or None).
        attempts: of each source.
        name: of a model of transformers; None is family and repository.

    Raises:
        UnknownModelError: no such name, version or alias.
        DownloadError: no source can be reached.
        WrongFileError: a source gave another file than the manifest's.
        DamagedModelError: files here differ from their manifest, and it names no source to fetch them from again.
        UnsafeCheckpointError: a published checkpoint holds code.
    """
    fetcher = _Fetcher(progress, attempts)
    if reference.startswith("hf:"):
        return _pull_transformers(reference, LocalRegistry(registry), name, source)
    if name is not None:
        raise ValueError(f"{reference} has its name already; --name is for hf:ORG/REPO")
    if urllib.parse.urlsplit(reference).scheme in ("http", "https", "file"):
        return _pull_manifest(reference, LocalRegistry(registry), fetcher)
    found = find(reference, registry)
    sources = [source] if source is not None else found.manifest.sources
    if found.folder is None:
        root = Path(cache).absolute() if cache is not None else cache_root()
        return _pull_builtin(found.manifest, sources, root, fetcher)
    try:
        verify_folder(found.folder, found.manifest)
    except DamagedModelError as error:
        if not sources:
            raise DamagedModelError(f"{error}{_made_again(found.manifest)}") from error
        _mend(found.folder, found.manifest, sources, fetcher, LocalRegistry(registry).root / DOWNLOADS)
        return Pulled(found.manifest, found.folder, "local", True)
    return Pulled(found.manifest, found.folder, "local", False)


def _pull_transformers(reference: str, store: LocalRegistry, name: str | None, source: str | None) -> Pulled:
    from zoo.registry.hugging_face.importing import import_model

    added = import_model(reference, store, store.root / DOWNLOADS, name, source)
    return Pulled(added.manifest, added.folder, "local", added.new, added.notes)


def _made_again(manifest: Manifest) -> str:
    """The command that makes a version of a repository of the hub again."""
    parent = manifest.lineage.parent or ""
    return f"; zoo pull {parent} --name {manifest.name} makes it again" if parent.startswith("hf:") else ""


@dataclass(frozen=True)
class Option:
    """An address to fetch a file from, the path to write, and the size and hash that are known."""

    address: str
    target: Path
    expected: Expected


@dataclass(frozen=True)
class Fetched:
    """The option that worked and the sha256 of its file."""

    option: Option
    digest: str


@dataclass(frozen=True)
class _Fetcher:
    """Fetches a file from the first of several addresses that works."""

    progress: ByteMeter | None
    attempts: int

    def first(self, options: Sequence[Option], advice: str) -> Fetched:
        """The file of the first address that works.

        Raises:
            DownloadError, WrongFileError: the last address failed too; lists every reason.
        """
        reasons: list[str] = []
        wrong = False
        for option in options:
            try:
                digest = fetch(
                    option.address,
                    option.target,
                    option.expected,
                    progress=self.progress,
                    attempts=self.attempts,
                )
                return Fetched(option, digest)
            except DownloadError as error:
                reasons.append(str(error))
            except WrongFileError as error:
                reasons.append(str(error))
                wrong = True
        if not options:
            raise DownloadError(advice)
        text = "; ".join(reasons)
        if wrong:
            raise WrongFileError(f"{text.rstrip('.')}. {advice}")
        raise DownloadError(
            f"{text}. {advice}; a download that was cut goes on where it ended when you run this again."
        )


def _mend(
    folder: Path, manifest: Manifest, sources: Sequence[str], fetcher: _Fetcher, downloads: Path
) -> None:
    """Fetches the files of a version that are missing or damaged; the others stay."""
    for entry in manifest.files:
        one = msgspec.structs.replace(manifest, files=[entry])
        try:
            verify_folder(folder, one)
            continue
        except DamagedModelError as error:
            log.warning("%s; fetching it again", error)
        expected = Expected(entry.size, entry.sha256)
        with resumable(downloads, manifest.name) as place:
            file = place / entry.path
            advice = (
                f"Without network, fetch {entry.path} on another machine, and name the folder that it is in: "
                f"`zoo pull {manifest.name}:{manifest.version} --source FOLDER/`"
            )
            fetcher.first([Option(a, file, expected) for a in _addresses(sources, entry.path)], advice)
            os.replace(file, folder / entry.path)
    verify_folder(folder, manifest)


def _addresses(sources: Sequence[str], file: str) -> list[str]:
    """Where a file may be: sources that end in its name, and folders (that end in /)."""
    paths = [(source, urllib.parse.urldefrag(source)[0]) for source in sources]
    direct = [source for source, path in paths if path.rsplit("/", 1)[-1] == file]
    below = [f"{path}{urllib.parse.quote(file)}" for _, path in paths if path.endswith("/")]
    if not direct + below:
        raise DownloadError(
            f"none of the sources {list(sources)} is {file} or a folder (ending in /) with it"
        )
    return direct + below


def _pull_manifest(address: str, store: LocalRegistry, fetcher: _Fetcher) -> Pulled:
    """Adds somebody's published version to the user's registry, unless exactly it is there."""
    manifest = parse_manifest(fetch_text(address, _LONGEST_MANIFEST), address)
    if manifest.origin.kind == "converted" and not manifest.files:
        raise ManifestError(f"{address} lists no files; only built-in manifests are converted")
    folder_address = urllib.parse.urljoin(address, ".")
    sources = [*manifest.sources, folder_address]
    downloads = store.root / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(downloads / f"{manifest.name}.lock"):
        same = store.version_like(manifest, same_files)
        if same is not None:
            folder, here = same
            verify_folder(folder, here)
            return Pulled(here, folder, "local", False)
        # outside the version's folder, so that a cut download is resumed by the next call
        with resumable(downloads, manifest.name) as place:
            advice = (
                f"Without network, fetch {MANIFEST_FILE} and the files that it lists into one folder on another "
                f"machine, and `zoo pull file:///FOLDER/{MANIFEST_FILE}`"
            )
            for entry in manifest.files:
                target, expected = place / entry.path, Expected(entry.size, entry.sha256)
                fetcher.first([Option(a, target, expected) for a in _addresses(sources, entry.path)], advice)

            def make(folder: Path) -> Manifest:
                for entry in manifest.files:
                    os.replace(place / entry.path, folder / entry.path)
                return msgspec.structs.replace(manifest, sources=sources)

            added = store.add(make, manifest.name, alike=same_files)
    return Pulled(added, store.folder(added.name, added.version), "local", True)


def _pull_builtin(manifest: Manifest, sources: Sequence[str], cache: Path, fetcher: _Fetcher) -> Pulled:
    """Fetches and converts a built-in model once, however many processes ask."""
    parent = cache / manifest.name
    folder = parent / str(manifest.version)
    parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(parent / ".lock"):
        pinned: Origin | None = None
        if (folder / MANIFEST_FILE).is_file():
            here = read_manifest(folder / MANIFEST_FILE)
            try:
                if not here.files:
                    raise DamagedModelError(f"{folder / MANIFEST_FILE} lists no files")
                verify_folder(folder, here)
                return Pulled(here, folder, "builtin", False)
            except DamagedModelError as error:
                log.warning("%s; fetching and converting it again", error)
                pinned = here.origin
        with resumable(parent, f".{manifest.version}") as place:
            made = _convert(manifest, sources, folder, place, pinned, fetcher)
    return Pulled(made, folder, "builtin", True)


def _convert(
    manifest: Manifest, sources: Sequence[str], folder: Path, place: Path, pinned: Origin | None,
    fetcher: _Fetcher,
) -> Manifest:  # fmt: skip
    origin = manifest.origin
    options = _options(origin, sources, place, pinned)
    fetched = fetcher.first(options, _advice(manifest, sources))
    download = fetched.option.target
    try:
        with staged(folder.parent) as staging:
            size = download.stat().st_size
            try:
                _write_converted(download, staging / WEIGHTS_FILE, manifest)
            except ValueError as error:  # names what was fetched from, not where it lay meanwhile
                kind = type(error) if len(error.args) == 1 else ValueError
                raise kind(str(error).replace(str(download), fetched.option.address)) from error
            noted = msgspec.structs.replace(
                origin,
                file=file_of(fetched.option.address),
                sha256=fetched.digest,
                size=size,
                pinned="published" if origin.sha256 else "first_use",
            )
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            made = with_files(msgspec.structs.replace(manifest, origin=noted, created=now), staging)
            finish_folder(staging, made)
            put_in_place(staging, folder, _is_whole)
    finally:
        download.unlink(missing_ok=True)  # no longer needed, converted or not
    if origin.sha256 is None and pinned is None:
        _log_trust(manifest.name, fetched)
    return read_manifest(folder / MANIFEST_FILE)


def _is_whole(folder: Path) -> bool:
    try:
        here = read_manifest(folder / MANIFEST_FILE)
        verify_folder(folder, here)
    except (DamagedModelError, ManifestError, OSError):
        return False
    return bool(here.files)


def _options(origin: Origin, sources: Sequence[str], downloads: Path, pinned: Origin | None) -> list[Option]:
    """The places of the authors' file with its expected hash, each with a local path so that each can be resumed.

    If files of an earlier pull are damaged, every source must give the same file as then, and its source comes first.
    """
    assert origin.file is not None
    options = []
    for address in (a for source in sources for a in addresses_of(source)):
        name = file_of(address)
        theirs = name == origin.file or not name.endswith(HUGGING_FACE_TYPES)
        expected = Expected(origin.size, published_hash(origin)) if theirs else Expected()
        if pinned is not None:
            expected = Expected(pinned.size, pinned.sha256)
        place = hashlib.sha256(address.encode()).hexdigest()[:8]
        options.append(Option(address, downloads / f"{place}.download", expected))
    if pinned is not None:
        options.sort(key=lambda option: file_of(option.address) != pinned.file)
    return options


def addresses_of(source: str) -> list[str]:
    """The addresses that a source of a manifest stands for.

    A Hugging Face repository, or a file of its weights, stands for both of their usual files, below
    HF_ENDPOINT where that is set. Google Drive has none: it answers a program with a page.
    """
    parts = urllib.parse.urlsplit(source)
    if parts.hostname == GOOGLE_DRIVE:
        return []
    if parts.hostname != HUGGING_FACE:
        return [source]
    endpoint = (os.environ.get("HF_ENDPOINT") or f"https://{HUGGING_FACE}").rstrip("/")
    owner, repository, *rest = parts.path.strip("/").split("/")
    revision = rest[1] if len(rest) > 1 and rest[0] in ("resolve", "blob", "tree") else "main"
    files = list(HUGGING_FACE_FILES)
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    if len(rest) > 2:
        named = "/".join(rest[2:])
        files = [named + fragment, *(f for f in files if f != named and named in files and not fragment)]
    return [f"{endpoint}/{owner}/{repository}/resolve/{revision}/{file}" for file in files]


def file_of(address: str) -> str:
    """Name of the file at an address or path."""
    return urllib.parse.unquote(urllib.parse.urldefrag(address)[0]).rsplit("/", 1)[-1]


def published_hash(origin: Origin) -> str | None:
    """The sha256 that the authors publish, or its beginning, which torch.hub reads from the file's name."""
    if origin.sha256 is not None:
        return origin.sha256
    match = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", origin.file or "")
    return match[1] if match else None


def _advice(manifest: Manifest, sources: Sequence[str]) -> str:
    """What a user can do by hand, whichever command it was that needs the file."""
    file, give = manifest.origin.file, f"give its path: `zoo pull {manifest.name} --source FILE`"
    drive = [source for source in sources if urllib.parse.urlsplit(source).hostname == GOOGLE_DRIVE]
    if drive and len(drive) == len(sources):
        return (
            f"Google Drive gives no file to a program: fetch {file} from {drive[0]} in a browser and {give}"
        )
    page = f" from {drive[0]} in a browser (Google Drive gives no file to a program)" if drive else ""
    return f"Without network, fetch {file}{page} on another machine and {give}"


def _log_trust(name: str, fetched: Fetched) -> None:
    prefix = fetched.option.expected.sha256
    known = (
        f"the sha256 begins with {prefix}, as its authors publish"
        if prefix
        else f"nobody publishes a hash of {file_of(fetched.option.address)}"
    )
    log.warning(
        "%s: %s. Noted sha256 %s at this first pull; later pulls on this machine are held to it.",
        name,
        known,
        fetched.digest,
    )


def _write_converted(download: Path, target: Path, manifest: Manifest) -> None:
    """Writes the authors' checkpoint as safetensors under the keys of `network`, after loading it strictly."""
    from zoo.registry.weights import load_strictly, save_weights
    from zoo.training.module import build_module

    assert manifest.origin.converter is not None
    module_name, _, function = manifest.origin.converter.rpartition(".")
    convert: Callable[[Any], Any] = getattr(importlib.import_module(module_name), function)
    state = read_published(download)
    try:
        converted = convert(state)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"the file fetched for {manifest.name} is no checkpoint of {manifest.family}: {error.args[0]}"
        ) from error
    block = manifest.to_dict()["model"]
    module = build_module(block, backbone_weights="random")
    try:
        module.check_published(state)
        load_strictly(module, converted)
    except ValueError as error:
        raise ValueError(f"the file fetched for {manifest.name} is of another model: {error}") from error
    save_weights(module.network.state_dict(), target)
