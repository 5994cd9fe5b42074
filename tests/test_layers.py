"""The arrows of the design: a file imports only from its own layer and lower ones, lazily or not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    (
        "batch",
        "boxes",
        "cache",
        "coco_limit",
        "durable",
        "labels",
        "fetching",
        "opening",
        "patterns",
        "plain_yaml",
        "pixels",
        "class_names",
        "segments",
    ),  # class_names: what labels compares names with
    (
        "preprocess",
        "input_limits",
        "photometric",
        "layers",
        "matcher",
        "losses",
        "postprocess",
        "masks",
        "evaluation",
        "coco_evaluator",
        "panoptic_quality",
        "mask_scores",
        "metric_state",
        "bootstrap",
        "operating_point",
        "schedule",
        "position",
        "ema",
        "pictures",
        "painting",
        "label_places",
        "segment_pictures",
    ),
    ("criterion",),
    ("module",),
    ("architectures",),
    (
        "registry",
        "tracking",
        "checkpoint_io",
        "callbacks",
        "saving",
        "stopping",
        "detector",
        "picture_input",
        "preflight",
        "transfer",
        "verification",
    ),
    ("cli", "__init__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
SHARED_WITH_DATA = {
    "zoo.contract.batch",
    "zoo.contract.boxes",
    "zoo.storage.cache",
    "zoo.contract.coco_limit",
    "zoo.storage.durable",
    "zoo.contract.labels",
    "zoo.storage.opening",
    "zoo.contract.photometric",
    "zoo.storage.plain_yaml",
    "zoo.contract.pixels",
    "zoo.contract.preprocess",
    "zoo.contract.segments",
}
ZOO = sorted((ROOT / "zoo").rglob("*.py"))
DATA = sorted((ROOT / "datamodules").rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, also inside functions and under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            module = node.module or ""
            # `from zoo import registry` names a module, `from zoo.registry import pull` may
            names = (
                [f"{module}.{alias.name}" for alias in node.names] if module in ("zoo", "datamodules") else []
            )
            yield from ((node.lineno, name) for name in names or [module])


def part(module: str) -> str:
    """`zoo.layers.backbone` -> `layers`."""
    return module.split(".")[1] if "." in module else "__init__"


def part_of_file(path: Path) -> str:
    relative = path.relative_to(ROOT / "zoo")
    return relative.parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_were_found() -> None:
    assert {part_of_file(p) for p in ZOO} >= set(LAYER) - {"verification"}
    assert len(DATA) > 5


@pytest.mark.parametrize("path", ZOO, ids=name)
def test_zoo_imports_only_from_lower_layers(path: Path) -> None:
    own = part_of_file(path)
    assert own in LAYER, f"{own} has no layer; give it one here"
    for line, module in imports(path):
        if module == "datamodules" or module.startswith("datamodules."):
            assert own == "cli", f"{name(path)}:{line}: only zoo/cli may import {module}"
        elif module.startswith("zoo."):
            assert part(module) in LAYER, f"{name(path)}:{line}: {module} has no layer"
            assert LAYER[part(module)] <= LAYER[own], f"{name(path)}:{line}: {own} is below {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "zoo" / "architectures").glob("*.py")), ids=name)
def test_architectures_import_no_sibling(path: Path) -> None:
    siblings = [m for _, m in imports(path) if m.startswith("zoo.architectures")]
    assert siblings == []


@pytest.mark.parametrize("path", DATA, ids=name)
def test_datamodules_import_only_the_contract(path: Path) -> None:
    for line, module in imports(path):
        if module == "zoo" or module.startswith("zoo."):
            assert module in SHARED_WITH_DATA, f"{name(path)}:{line}: datamodules may not import {module}"


def test_import_graph_has_no_cycle() -> None:
    """Layers allow imports within a layer; a cycle there would be a layer that is none."""
    graph = {module_of(p): {m for _, m in imports(p)} for p in ZOO + DATA}
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


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
