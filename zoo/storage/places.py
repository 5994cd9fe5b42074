"""Where architectures, recipes and manifests lie: in this package, and in the folders that ZOO_PATH names.

A folder of ZOO_PATH is laid out as this repository: `zoo/architectures`, `recipes/<family>`, `zoo/manifests`. Its
Python files are imported, so it is trusted as PYTHONPATH is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path


def folders(inside: str) -> list[Path]:
    """`inside` of each folder of ZOO_PATH that has it; folders are separated as in PATH.

    Raises:
        ValueError: a folder of ZOO_PATH is not there.
    """
    found: list[Path] = []
    for text in filter(None, os.environ.get("ZOO_PATH", "").split(os.pathsep)):
        root = Path(text).expanduser().absolute()
        if not root.is_dir():
            raise ValueError(f"ZOO_PATH names {text}, which is not a folder; correct it, or unset ZOO_PATH")
        if (root / inside).is_dir() and root / inside not in found:
            found.append(root / inside)
    return found


def by_name(package: Path, inside: str, pattern: str, name: Callable[[Path], str]) -> dict[str, Path]:
    """Name -> file, of the package's folder and of `inside` in the folders of ZOO_PATH.

    Raises:
        ValueError: two files have one name.
    """
    found: dict[str, Path] = {}
    for folder in (package, *folders(inside)):
        for path in sorted(folder.glob(pattern)):
            if name(path) in found:
                raise ValueError(
                    f"{path} has the same name as {found[name(path)]}; give one of them another name"
                )
            found[name(path)] = path
    return found


def modules_beside(package: Path, inside: str) -> list[str]:
    """Folders of ZOO_PATH to look for modules of a package in; see `by_name` for what is refused."""
    by_name(package, inside, "[a-z]*.py", lambda path: path.stem)
    return [str(folder) for folder in folders(inside)]


def recipe_files() -> dict[str, Path]:
    """`<family>/<recipe>` -> file, for every recipe."""
    package = Path(str(resources.files("recipes")))
    return by_name(package, "recipes", "*/*.yaml", lambda path: f"{path.parent.name}/{path.stem}")
