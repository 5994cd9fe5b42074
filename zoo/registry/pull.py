"""From a name to checked files on this machine.

The user's own versions are hashed where they lie. Built-in models are fetched from their authors,
converted by their family's `from_published`, and kept in a cache as safetensors and manifest; the
authors' pickle is read with `weights_only=True` and thrown away.
"""

from __future__ import annotations

import datetime
import importlib
import logging
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from filelock import FileLock

from zoo.registry.download import DownloadError, Expected, Progress, WrongFileError, fetch, fetch_text
from zoo.registry.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    ManifestError,
    parse_manifest,
    read_manifest,
)
from zoo.registry.store import (
    DamagedModelError,
    LocalRegistry,
    find,
    finish_folder,
    verify_folder,
    with_files,
)

log = logging.getLogger(__name__)

_LONGEST_MANIFEST = 1 << 20


@dataclass(frozen=True)
class Pulled:
    """Files of one version, all hashes checked just now."""

    manifest: Manifest
    folder: Path
    kind: Literal["local", "builtin"]
    downloaded: bool


def cache_root() -> Path:
    """ZOO_CACHE, else detr-zoo below the user's cache folder."""
    given = os.environ.get("ZOO_CACHE")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr-zoo"


def pull(
    reference: str,
    *,
    registry: str | Path | None = None,
    source: str | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    attempts: int = 4,
) -> Pulled:
    """Makes the files of a model ready on this machine and checks every hash.

    Args:
        reference: `NAME[@alias|:version]`, or the address (http, https, file) of somebody's
            manifest.yaml, whose model is added to the registry as its next version.
        registry: folder of the user's registry; see `registry_root`.
        source: fetch from here instead of the manifest's sources: an address or a path, for a machine
            without network.
        cache: folder for built-in models; see `cache_root`.
        progress: called with (bytes so far, bytes in all or None).
        attempts: of each source.

    Raises:
        UnknownModelError: no such name, version or alias.
        DownloadError: no source can be reached.
        WrongFileError: a source gave another file than the manifest's.
        DamagedModelError: files here differ from their manifest and there is no source to mend them.
        UnsafeCheckpointError: a published checkpoint holds code.
    """
    fetcher = _Fetcher(progress, attempts)
    if urllib.parse.urlsplit(reference).scheme in ("http", "https", "file"):
        return _pull_manifest(reference, LocalRegistry(registry), fetcher)
    found = find(reference, registry)
    sources = [source] if source is not None else found.manifest.sources
    if found.folder is None:
        root = Path(cache).absolute() if cache is not None else cache_root()
        return _pull_builtin(found.manifest, sources, root, fetcher)
    try:
        verify_folder(found.folder, found.manifest)
    except DamagedModelError:
        if not sources:
            raise
        with LocalRegistry(registry).lock(found.manifest.name):
            _mend(found.folder, found.manifest, sources, fetcher)
        return Pulled(found.manifest, found.folder, "local", True)
    return Pulled(found.manifest, found.folder, "local", False)


@dataclass(frozen=True)
class _Fetcher:
    """How to fetch; tries addresses in turn."""

    progress: Progress | None
    attempts: int

    def first(self, addresses: Sequence[str], target: Path, expected: Expected) -> str:
        """The sha256 of what the first working address gave.

        Raises:
            DownloadError, WrongFileError: the last address failed too; lists every reason.
        """
        reasons: list[str] = []
        wrong = False
        for address in addresses:
            try:
                return fetch(address, target, expected, progress=self.progress, attempts=self.attempts)
            except DownloadError as error:
                reasons.append(str(error))
            except WrongFileError as error:
                reasons.append(str(error))
                wrong = True
        text = "; ".join(reasons)
        if wrong:
            raise WrongFileError(text)
        raise DownloadError(
            f"{text}. Without network, fetch the file on another machine and give its path with --source; a "
            "download that was cut goes on where it ended when you run this again."
        )


def _mend(folder: Path, manifest: Manifest, sources: Sequence[str], fetcher: _Fetcher) -> None:
    """Fetches the files of a version that are missing or damaged; the others stay."""
    for entry in manifest.files:
        one = msgspec.structs.replace(manifest, files=[entry])
        try:
            verify_folder(folder, one)
            continue
        except DamagedModelError as error:
            log.warning("%s; fetching it again", error)
        fetcher.first(
            _addresses(sources, entry.path), folder / entry.path, Expected(entry.size, entry.sha256)
        )
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
    # outside the version's folder, so that a cut download is resumed by the next call
    downloads = store.root / ".downloads" / manifest.name
    downloads.mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / ".downloads" / f"{manifest.name}.lock"):
        for version in store.versions(manifest.name):
            here = read_manifest(store.folder(manifest.name, version) / MANIFEST_FILE)
            if here.files == manifest.files:
                verify_folder(store.folder(manifest.name, version), here)
                return Pulled(here, store.folder(manifest.name, version), "local", False)
        for entry in manifest.files:
            target = downloads / entry.path
            fetcher.first(_addresses(sources, entry.path), target, Expected(entry.size, entry.sha256))

        def make(version: int, folder: Path) -> Manifest:
            for entry in manifest.files:
                os.replace(downloads / entry.path, folder / entry.path)
            return msgspec.structs.replace(manifest, version=version, sources=sources)

        added = store.add(make, manifest.name)
        shutil.rmtree(downloads)
    return Pulled(added, store.folder(added.name, added.version), "local", True)


def _pull_builtin(manifest: Manifest, sources: Sequence[str], cache: Path, fetcher: _Fetcher) -> Pulled:
    """Fetches and converts a built-in model once, however many processes ask."""
    parent = cache / manifest.name
    folder = parent / str(manifest.version)
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / ".lock"):
        pinned: str | None = None
        if (folder / MANIFEST_FILE).is_file():
            here = read_manifest(folder / MANIFEST_FILE)
            try:
                if not here.files:
                    raise DamagedModelError(f"{folder / MANIFEST_FILE} lists no files")
                verify_folder(folder, here)
                return Pulled(here, folder, "builtin", False)
            except DamagedModelError as error:
                log.warning("%s; fetching and converting it again", error)
                pinned = here.origin.sha256
        made = _convert(manifest, sources, folder, pinned, fetcher)
    return Pulled(made, folder, "builtin", True)


def _convert(
    manifest: Manifest, sources: Sequence[str], folder: Path, pinned: str | None, fetcher: _Fetcher
) -> Manifest:
    origin = manifest.origin
    assert origin.file is not None
    # a name of its own: the authors' file name is theirs, and only the converted file is kept
    download = folder.parent / f".{folder.name}.download"
    digest = fetcher.first(sources, download, Expected(origin.size, origin.sha256 or pinned))
    if origin.sha256 is None and pinned is None:
        log.warning(
            "%s: its authors publish no hash. Noted sha256 %s at this first pull; later pulls on this "
            "machine are held to it.",
            manifest.name,
            digest,
        )
    staging = folder.parent / f".staging-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        size = download.stat().st_size
        _write_converted(download, staging / WEIGHTS_FILE, manifest)
        noted = msgspec.structs.replace(
            origin, sha256=digest, size=size, pinned="published" if origin.sha256 else "first_use"
        )
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        made = with_files(msgspec.structs.replace(manifest, origin=noted, created=now), staging)
        finish_folder(staging, made)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(staging, folder)
    finally:
        # a file that does not convert is no use; one that does has served
        download.unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
    return made


def _write_converted(download: Path, target: Path, manifest: Manifest) -> None:
    """The authors' checkpoint as safetensors in our key layout, proven to load strictly."""
    from zoo.checkpoint_io import read_checkpoint
    from zoo.module import build_module
    from zoo.registry.weights import load_strictly, save_weights

    assert manifest.origin.converter is not None
    module_name, _, function = manifest.origin.converter.rpartition(".")
    convert: Callable[[Any], Any] = getattr(importlib.import_module(module_name), function)
    state = published_state(read_checkpoint(download))
    try:
        converted = convert(state)
    except KeyError as error:
        raise ValueError(f"the file is no checkpoint of {manifest.family}: {error.args[0]}") from error
    block = manifest.to_dict()["model"]
    module = build_module(block, backbone_weights="random")
    load_strictly(module, converted)
    save_weights(module.network.state_dict(), target)


def published_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state dict to release of an authors' checkpoint: averaged weights if it has them.

    Raises:
        ValueError: naming the keys found, if neither layout fits.
    """
    ema = checkpoint.get("ema")
    state = ema.get("module") if isinstance(ema, dict) else checkpoint.get("model")
    if not isinstance(state, dict) or not state:
        raise ValueError(
            f"the file has neither ema.module nor model; its keys are {sorted(map(str, checkpoint))[:10]}"
        )
    return state
