"""Which code made a run: the commit of this package, if it can be known."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
DISTRIBUTION = "detr-zoo"
_TOOLS = ("torch", "torchvision", "lightning", "timm", DISTRIBUTION)


@dataclass(frozen=True)
class GitState:
    """A commit (40 hex digits) and whether tracked files differed from it."""

    commit: str
    dirty: bool


def git_state(package: Path = _PACKAGE) -> GitState | None:
    """The commit of the zoo code that is running; None outside git and outside a VCS install.

    A virtual environment inside somebody's repository is not that repository's code: the package's
    own files must be tracked.
    """
    commit = _git(package, "rev-parse", "HEAD")
    if commit and _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        # a failed `status` counts as dirty
        status = _git(package, "status", "--porcelain", "--untracked-files=no")
        return GitState(commit, dirty=status is None or bool(status))
    return _installed_commit() if package == _PACKAGE else None


def tool_versions() -> dict[str, str]:
    """Versions of the packages that compute, and of this one."""
    return {tool: metadata.version(tool) for tool in _TOOLS}


def installed(libraries: Sequence[str]) -> dict[str, str]:
    """Versions of those of the libraries that are installed."""
    found = {}
    for library in libraries:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None if it failed or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed_commit() -> GitState | None:
    """What pip noted of `pip install git+https://...` (PEP 610)."""
    try:
        note = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(note).get("vcs_info", {}).get("commit_id") if note else None
    return GitState(commit, dirty=False) if commit else None
