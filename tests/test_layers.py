"""Folders are the layers: a file imports only from its own folder and from folders above it in these lists."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a folder stands for all below it, unless these have a line of their own
ZOO = (
    "zoo.contract",
    "zoo.storage",
    "zoo.layers",
    "zoo.prediction",
    "zoo.evaluation",
    "zoo.analysis",
    "zoo.pictures",
    "zoo.training",
    "zoo.architectures",
    "zoo.tracking",
    "zoo.registry",
    "zoo.runtimes",
    "zoo.detector",
    "zoo.verification",
    "zoo.exporting",
    "zoo.report",
    "zoo.runs",
    "zoo.bulk",
    "zoo.video",
    "zoo.serving",
    "zoo._moved",
    "zoo",  # the public surface
    "zoo.cli.options",
    "zoo.cli.data",
    "zoo.cli.models",
    "zoo.cli",
    "zoo.__main__",
)
DATA = (
    "datamodules.progress",
    "datamodules.outputs",
    "datamodules.index",
    "datamodules.kept",
    "datamodules.images",
    "datamodules.shards",
    "datamodules.transforms",
    "datamodules.augmentations",
    "datamodules.balance",
    "datamodules.tiling",
    "datamodules.loading",
    "datamodules.reading",
    "datamodules.formats",
    "datamodules.summary",
    "datamodules.splits",
    "datamodules.writers",
    "datamodules.published",
    "datamodules.doctor",
    "datamodules.shapes",
    "datamodules.base",
    "datamodules.coco",
    "datamodules.objects365",
    "datamodules.panoptic",
    "datamodules.custom",
    "datamodules",
)
LAYER = {name: number for names in (ZOO, DATA) for number, name in enumerate(names)}
OF_ZOO_FOR_DATA = ("zoo.contract", "zoo.storage")  # all that data know of zoo
KNOW_DATA = ("zoo.report", "zoo.runs", "zoo.bulk", "zoo.video", "zoo.cli")  # all of zoo that knows data
FILES = sorted([*(ROOT / "zoo").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            for alias in node.names:  # a module, or a name in one
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in MODULES else str(node.module)


def layer_of(module: str) -> str | None:
    """The nearest folder above a module that has a layer."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    # `zoo` and `datamodules` are the surfaces: a file at the root has a line of its own, or no layer
    return next((n for n in names if n in LAYER and (n == module or "." in n)), None)


def within(module: str, folders: tuple[str, ...]) -> bool:
    return any(module == folder or module.startswith(f"{folder}.") for folder in folders)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_were_found() -> None:
    assert {layer_of(module) for module in MODULES} == set(LAYER)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_only_from_its_own_folder_and_those_above(path: Path) -> None:
    own = layer_of(module_of(path))
    assert own is not None, f"{name(path)} lies in no folder that has a layer; give it one here"
    for line, module in imports(path):
        top = module.partition(".")[0]
        if top not in ("zoo", "datamodules"):
            continue
        place = layer_of(module)
        assert place is not None, f"{name(path)}:{line}: {module} has no layer"
        if top != own.partition(".")[0]:
            allowed = within(own, KNOW_DATA) if top == "datamodules" else within(module, OF_ZOO_FOR_DATA)
            assert allowed, f"{name(path)}:{line}: {own} may not import {module}"
        else:
            assert LAYER[place] <= LAYER[own], f"{name(path)}:{line}: {own} is above {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "zoo" / "architectures").glob("*.py")), ids=name)
def test_architectures_import_no_sibling(path: Path) -> None:
    assert [m for _, m in imports(path) if m.startswith("zoo.architectures")] == []


def test_import_graph_has_no_cycle() -> None:
    """Layers allow imports within a folder; a cycle there would be a layer that is none."""
    graph = {module: {m for _, m in imports(path)} for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module in done or module not in graph:
            return
        for imported in sorted(graph[module]):
            visit(imported, (*above, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())
