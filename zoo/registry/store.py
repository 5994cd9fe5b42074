"""The user's registry: a folder of published versions, and the manifests that come with the package.

    <root>/<name>/<version>/manifest.yaml, model.safetensors, ...
    <root>/<name>/aliases/<alias>           holds a version number

A version is staged in a hidden folder and then renamed, so that it is complete or absent, and it is
never written again. Built-in manifests are package data and read-only.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from zoo.registry.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Manifest,
    ManifestError,
    check_file_name,
    check_manifest,
    read_manifest,
)
from zoo.registry.names import Reference, base_name, check_alias, check_name, is_name, parse_reference
from zoo.storage.durable import sha256_of, sweep_temporaries, sync, write_atomically
from zoo.storage.opening import open_file
from zoo.storage.places import by_name
from zoo.storage.safetensors_file import DamagedModelError, check_safetensors
from zoo.storage.staging import staged

BUILTIN_FOLDER = Path(__file__).resolve().parents[1] / "manifests"
DEFAULT_ROOT = Path("mlruns", "registry")
_MOST_NAMES = 10  # in an error


class UnknownModelError(ValueError):
    """No manifest has the name; the message lists those that do."""


def registry_root(root: str | Path | None = None) -> Path:
    """Argument, then ZOO_REGISTRY, then ./mlruns/registry; absolute."""
    return Path(root or os.environ.get("ZOO_REGISTRY") or DEFAULT_ROOT).absolute()


@dataclass(frozen=True)
class Found:
    """The manifest that a reference names. `folder` is None for a built-in one, whose files are pulled."""

    manifest: Manifest
    kind: Literal["local", "builtin"]
    folder: Path | None = None


Alike = Callable[[Manifest, Manifest], bool]


def same_files(one: Manifest, other: Manifest) -> bool:
    """Whether two versions have the very same files."""
    return one.files == other.files


def same_weights(one: Manifest, other: Manifest) -> bool:
    """Whether two versions have the very same weights, whatever lies beside them."""
    return one.file(WEIGHTS_FILE) == other.file(WEIGHTS_FILE)


class LocalRegistry:
    """Published versions in a folder, which several machines may share: neither reading nor writing needs a lock."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = registry_root(root)

    def names(self) -> list[str]:
        """Names with at least one version."""
        if not self.root.is_dir():
            return []
        folders = sorted(p.name for p in self.root.iterdir() if is_name(p.name))
        return [name for name in folders if self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """Version numbers, ascending."""
        folder = self.root / check_name(name)
        return sorted(n for n in _numbers(folder) if (folder / str(n) / MANIFEST_FILE).is_file())

    def version_like(self, manifest: Manifest, alike: Alike) -> tuple[Path, Manifest] | None:
        """Folder and manifest of the first version of the same name that is alike, None if none is."""
        for version in self.versions(manifest.name):
            folder = self.folder(manifest.name, version)
            other = read_manifest(folder / MANIFEST_FILE)
            if alike(other, manifest):
                return folder, other
        return None

    def aliases(self, name: str) -> dict[str, int]:
        """Version of each alias."""
        folder = self.root / check_name(name) / "aliases"
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return {p.name: _alias_version(p) for p in files if not p.name.startswith(".")}

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Points `alias` to an existing version.

        Raises:
            UnknownModelError: if there is no such version.
        """
        check_alias(alias)
        if version not in self.versions(name):
            raise UnknownModelError(f"{name} has no version {version}; it has {self.versions(name)}")
        folder = self.root / name / "aliases"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / alias, f"{version}\n".encode())

    def folder(self, name: str, version: int) -> Path:
        """Where a version lies."""
        return self.root / check_name(name) / str(version)

    def manifest(self, reference: Reference) -> Manifest:
        """The manifest of a version, an alias, or the latest version.

        Raises:
            UnknownModelError: naming the versions and aliases there are.
            ManifestError: if the manifest is not of this name and version.
        """
        version = self._version(reference)
        path = self.folder(reference.name, version) / MANIFEST_FILE
        manifest = read_manifest(path)
        if (manifest.name, manifest.version) != (reference.name, version):
            raise ManifestError(f"{path} is the manifest of {manifest.name}:{manifest.version}")
        return manifest

    def add(self, make: Callable[[Path], Manifest], name: str, *, alike: Alike | None = None) -> Manifest:
        """Adds the next version of `name`: a folder that is filled aside and renamed to the first number that is free.

        Args:
            make: called with an empty folder; writes the files there and returns the manifest, which gets its version
                and is written beside them.
            name: full name.
            alike: a version that is there and alike is returned instead.

        Raises:
            ValueError: if a built-in manifest has the name, or a file and its entry differ.
        """
        refuse_builtin_name(name)
        with staged(self.root) as staging:
            manifest = make(staging)
            if manifest.name != name:
                raise ValueError(f"made {manifest.name}, expected {name}")
            parent = self.root / name
            finish_folder(staging, manifest)
            while True:
                if alike is not None and (there := self.version_like(manifest, alike)):
                    return there[1]
                # after all that are taken, also by folders without a manifest
                number = max(_numbers(parent), default=0) + 1
                manifest = msgspec.structs.replace(manifest, version=number)
                write_atomically(staging / MANIFEST_FILE, manifest.to_yaml().encode())
                parent.mkdir(exist_ok=True)
                try:
                    os.rename(staging, parent / str(manifest.version))
                except OSError:
                    if not (parent / str(manifest.version)).is_dir():
                        raise
                    continue  # another process took the number
                break
            sync(parent)
            aliases = parent / "aliases"
            if aliases.is_dir():
                sweep_temporaries(aliases)
        return manifest

    def _version(self, reference: Reference) -> int:
        versions = self.versions(reference.name)
        if not versions:
            raise UnknownModelError(f"{reference.name} is not in the registry {self.root}")
        if reference.version is not None:
            if reference.version not in versions:
                raise UnknownModelError(
                    f"{reference.name} has no version {reference.version}; it has {versions}"
                )
            return reference.version
        if reference.alias is not None:
            aliases = self.aliases(reference.name)
            if reference.alias not in aliases:
                known = ", ".join(f"@{a}" for a in aliases) or "no aliases"
                raise UnknownModelError(f"{reference.name} has no alias @{reference.alias}; it has {known}")
            return aliases[reference.alias]
        return versions[-1]


def builtin_manifests() -> dict[str, Path]:
    """File of each manifest that comes with the package or lies in a folder of ZOO_PATH, by name."""
    return by_name(BUILTIN_FOLDER, "zoo/manifests", "*.yaml", lambda path: path.stem)


def builtin_manifest(path: Path) -> Manifest:
    """A manifest that comes with the package, parsed once until its file changes: there are many."""
    facts = path.stat()
    return _parsed(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> Manifest:
    return read_manifest(path)


def available(registry: str | Path | None = None) -> list[str]:
    """Full names of all models: built-in, then the user's.

    Raises:
        ValueError: if a name is in both.
    """
    builtin, local = list(builtin_manifests()), LocalRegistry(registry).names()
    for name in local:
        refuse_builtin_name(name)
    return builtin + local


def find(text: str, registry: str | Path | None = None) -> Found:
    """The manifest that `NAME[@alias|:version]` means; a bare name means its default or only tag.

    Raises:
        UnknownModelError: no such name, version or alias; lists the names there are.
        ValueError: a name in both the package and the registry, or a bare name with several tags.
    """
    reference = parse_reference(text)
    names = available(registry)
    if reference.name not in names:
        name = _default_tag(reference.name, names, registry)
        reference = Reference(name, reference.version, reference.alias)
    builtin = builtin_manifests()
    if reference.name not in builtin:
        local = LocalRegistry(registry)
        manifest = local.manifest(reference)
        return Found(manifest, "local", local.folder(manifest.name, manifest.version))
    manifest = builtin_manifest(builtin[reference.name])
    if reference.alias is not None or reference.version not in (None, manifest.version):
        raise UnknownModelError(
            f"{reference}: {reference.name} comes with the package, in version {manifest.version} and "
            "without aliases"
        )
    return Found(manifest, "builtin")


def is_builtin_name(name: str) -> bool:
    """Whether the package has a manifest of this name, or one that `name` abbreviates."""
    return any(name in (builtin, base_name(builtin)) for builtin in builtin_manifests())


def refuse_builtin_name(name: str) -> None:
    """Raises ValueError for the name of a built-in model."""
    if is_builtin_name(name):
        raise ValueError(
            f"{name!r} is the name of a built-in model; a registry may not hold it too. Choose another, "
            f"as in {base_name(name)}.mine"
        )


def verify_folder(folder: Path, manifest: Manifest) -> None:
    """Hashes every file again, for size and time do not show that a file is damaged.

    Raises:
        DamagedModelError: naming the file, what was expected and what was found.
    """
    for entry in manifest.files:
        path = folder / check_file_name(entry.path)
        if not path.is_file() or path.is_symlink():
            raise DamagedModelError(f"{path} is missing, or is a link; publish or pull it again")
        size = path.stat().st_size
        if size != entry.size:
            raise DamagedModelError(f"{path} has {size} bytes, its manifest says {entry.size}")
        digest = sha256_of(path)
        if digest != entry.sha256:
            raise DamagedModelError(f"{path} has sha256 {digest}, its manifest says {entry.sha256}")
        if path.suffix == ".safetensors":
            check_safetensors(path)


def finish_folder(folder: Path, manifest: Manifest) -> None:
    """Checks a staged folder against its manifest, writes the manifest, makes all of it durable."""
    check_manifest(manifest)
    verify_folder(folder, manifest)
    extra = {p.name for p in folder.iterdir()} - {entry.path for entry in manifest.files}
    if extra:
        raise ValueError(f"{folder} holds {sorted(extra)}, which the manifest does not list")
    for entry in manifest.files:
        sync(folder / entry.path)
    write_atomically(folder / MANIFEST_FILE, manifest.to_yaml().encode())


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(path=check_file_name(path.name), size=path.stat().st_size, sha256=sha256_of(path))


def with_files(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with entries for the files that lie in `folder`."""
    entries = [file_entry(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST_FILE]
    return msgspec.structs.replace(manifest, files=entries)


def _default_tag(name: str, names: list[str], registry: str | Path | None) -> str:
    """The full name that a bare name means."""
    tags = [full for full in names if base_name(full) == name and full != name]
    if len(tags) == 1:
        return tags[0]
    builtin = builtin_manifests()
    defaults = [full for full in tags if full in builtin and builtin_manifest(builtin[full]).default]
    if len(defaults) == 1:
        return defaults[0]
    if tags:
        raise ValueError(f"{name!r} has several tags and no default: {', '.join(tags)}; name one")
    raise unknown(name, registry)


def unknown(name: str, registry: str | Path | None = None, others: Collection[str] = ()) -> UnknownModelError:
    """The error for a name that nobody has: the nearest ones, and where it was looked for.

    Args:
        name: as it was given.
        registry: folder of the registry.
        others: names without a manifest, beside those that there are.
    """
    local = LocalRegistry(registry)
    own, builtin = local.names(), list(builtin_manifests())
    every = {*own, *builtin, *map(base_name, builtin), *others}
    near = difflib.get_close_matches(name, sorted(every), n=3)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    holds = f"holds {', '.join(own)}" if len(own) <= _MOST_NAMES else f"holds {len(own)} others"
    return UnknownModelError(
        f"no model is called {name!r}{hint}; it is not in the zoo, nor in the registry {local.root}, which "
        f"{holds if own else 'is empty'}. `zoo list` shows both; another registry: --registry or ZOO_REGISTRY"
    )


def _numbers(folder: Path) -> list[int]:
    """Versions by their names in the folder of a model, which may not be there."""
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if re.fullmatch(r"[1-9]\d*", p.name)]


def _alias_version(path: Path) -> int:
    with open_file(path) as file:
        text = file.read(40).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise ManifestError(f"alias file {path} holds {text[:40]!r}, not a version number")
    return int(text)
