"""A folder to a repository of the hub: what is there unchanged is not sent, and said so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.registry.hugging_face.hub import Hub, HubError, HubReference, parse_hub_reference
from zoo.storage.durable import sha256_of

State = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True)
class PushedFile:
    """A file and what it is to the repository."""

    path: str
    size: int
    state: State


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be.

    Attributes:
        repo: `ORG/REPO`.
        created: whether the repository was not there, or not to be seen.
        files: all of the folder.
        commit: that holds them; None where nothing was sent.
        address: of the repository.
    """

    repo: str
    created: bool
    files: tuple[PushedFile, ...]
    commit: str | None
    address: str

    @property
    def sent(self) -> tuple[PushedFile, ...]:
        """Those that the repository did not have."""
        return tuple(file for file in self.files if file.state != "unchanged")


def repository_of(text: str) -> HubReference:
    """The repository that is pushed to.

    Raises:
        ValueError: it is none, or has a revision.
    """
    reference = parse_hub_reference(text)
    if reference.folder is not None or reference.revision is not None:
        raise ValueError(f"{text!r}: push to a repository, as hf:ORG/REPO, whose main branch gets the files")
    return reference


def push_folder(
    folder: Path, reference: HubReference, *, private: bool, message: str, dry_run: bool = False
) -> Pushed:
    """Commits the files of `folder` that the repository lacks; creates the repository if it is not there.

    Args:
        folder: its files are sent, all of them.
        reference: of `repository_of`.
        private: of a repository that is created.
        message: of the commit.
        dry_run: send nothing.

    Raises:
        HubError: HF_TOKEN is not set, or the hub does not take the files.
    """
    hub = Hub()
    if not hub.has_token and not dry_run:
        raise HubError(
            f"{reference}: HF_TOKEN is not set; set it to a token that may write there, or look first with --dry-run"
        )
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    there = _there(hub, reference, [path.name for path in paths])
    files = tuple(PushedFile(p.name, p.stat().st_size, _state(p, (there or {}).get(p.name))) for p in paths)
    address = f"{hub.endpoint}/{reference.repo}"
    waiting = [folder / file.path for file in files if file.state != "unchanged"]
    if dry_run or (not waiting and there is not None):
        return Pushed(reference.repo, there is None, files, None, address)
    commit = _send(hub, reference, waiting, private, message)
    return Pushed(reference.repo, there is None, files, commit, address)


def _there(hub: Hub, reference: HubReference, names: Sequence[str]) -> dict[str, Any] | None:
    """The repository's own files of these names; None if it is not there or not to be seen."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    with hub.asking(str(reference)):
        try:
            found = hub.api().get_paths_info(reference.repo, list(names))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        except RevisionNotFoundError:  # without any commit
            return {}
    return {file.path: file for file in found if hasattr(file, "blob_id")}


def _state(path: Path, there: Any | None) -> State:
    """A large file of the hub tells its sha256, a small one the hash that git gives it."""
    if there is None:
        return "new"
    if there.lfs is not None:
        return "unchanged" if there.lfs.sha256 == sha256_of(path) else "changed"
    content = path.read_bytes() if there.size == path.stat().st_size else b""
    named = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return "unchanged" if content and named == there.blob_id else "changed"


def _send(hub: Hub, reference: HubReference, paths: Sequence[Path], private: bool, message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    with hub.asking(str(reference)):
        hub.api().create_repo(reference.repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path.name, str(path)) for path in paths]
        done = hub.api().create_commit(reference.repo, operations, commit_message=message)
    return str(done.oid)
