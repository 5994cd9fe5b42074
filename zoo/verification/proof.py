"""A family's proof: all committed official cases, grouped by what they are about, as a table."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zoo.architectures
import zoo.verification
from zoo.storage.places import recipe_files
from zoo.storage.plain_yaml import parse_yaml
from zoo.training.module import DetectionModule, build_module
from zoo.verification.cases import COMMITTED, Case, Comparison, FamilyCases, find_cases


@dataclass
class Topic:
    """What was compared about one topic, e.g. matching and losses."""

    name: str
    source: str  # repository @ commit
    cases: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every number is within its tolerance."""
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def worst(self) -> Comparison:
        """The comparison that comes closest to its tolerance, or passes it furthest."""
        return max(
            self.comparisons, key=lambda c: c.difference / c.tolerance if c.tolerance else c.difference
        )

    @property
    def failures(self) -> list[Comparison]:
        """The comparisons outside their tolerance."""
        return [c for c in self.comparisons if not c.passed]


@dataclass
class Proof:
    """One family against one official repository."""

    family: str
    source: str  # repository @ commit; a topic names another one where its numbers are of that
    subjects: list[Topic]

    @property
    def passed(self) -> bool:
        """Every topic."""
        return bool(self.subjects) and all(s.passed for s in self.subjects)

    def to_dict(self) -> dict[str, Any]:
        """The document of `zoo verify --json`."""
        return {
            "family": self.family,
            "source": self.source,
            "passed": self.passed,
            "subjects": [
                {
                    "name": s.name,
                    "source": s.source,
                    "cases": s.cases,
                    "comparisons": len(s.comparisons),
                    "largest_difference": s.worst.difference,
                    "tolerance": s.worst.tolerance,
                    "passed": s.passed,
                    "failures": [{"what": c.what, "difference": c.difference} for c in s.failures],
                }
                for s in self.subjects
            ],
        }


def families() -> list[str]:
    """Families that have a proof: the architectures that have a module of their name beside this one."""
    architectures, proofs = (
        {module.name for module in pkgutil.iter_modules(package.__path__)}
        for package in (zoo.architectures, zoo.verification)
    )
    return sorted(architectures & proofs)


def cases_of(family: str) -> FamilyCases:
    """What a family compares with official numbers.

    Raises:
        ValueError: no proof for that family.
    """
    if family not in families():
        raise ValueError(f"no proof for the family {family!r}; there are {', '.join(families())}")
    cases: FamilyCases = importlib.import_module(f"zoo.verification.{family}").CASES
    return cases


def prove(family: str, root: Path = COMMITTED) -> Proof:
    """Runs every case of a family's folder.

    Args:
        family: a module of this package, e.g. `rt_detr`.
        root: directory of official numbers.

    Raises:
        ValueError: no proof for that family.
        FileNotFoundError: the directory has no case for it.
    """
    own = cases_of(family)
    topics: dict[str, Topic] = {}

    def add(about: str, source: str, case: str, comparisons: list[Comparison]) -> None:
        topic = topics.setdefault(about, Topic(about, source))
        topic.cases.append(case)
        name = case.partition("/")[2]
        topic.comparisons += [replace(c, what=f"{name}: {c.what}") for c in comparisons]

    source = ""
    for case in find_cases(root, own.folder):
        if own.why_left_out(case):
            continue
        source = str(case.facts["source"])
        add(own.about(case), source, case.id, own.compare(case))
    for case, other in copied_cases(own, root):
        add(other.about(case), str(case.facts["source"]), case.id, other.compare(case))
    for name, comparisons in structures(own, root):
        add("structure", source, f"structure/{name}", comparisons)
    return Proof(family, source, list(topics.values()))


def copied_cases(own: FamilyCases, root: Path) -> list[tuple[Case, FamilyCases]]:
    """Cases of other families whose code this one copied, with their family; only those in the directory."""
    cases = [(Case(root, other.folder, name), other) for other, names in own.copied for name in names]
    return [(case, other) for case, other in cases if (root / f"{case.id}.npz").is_file()]


def structures(own: FamilyCases, root: Path) -> Iterator[tuple[str, list[Comparison]]]:
    """Full-size networks of the family's recipes against the official names, shapes and groups."""
    for name, path in structure_files(own, root).items():
        built = build_recipe(own.recipes[name])
        facts = json.loads(path.read_text())
        yield name, own.compare_structure(facts, built.network, built.schedule)


def structure_files(own: FamilyCases, root: Path) -> dict[str, Path]:
    """{name of an official structure of the family: its file}, in `structure/` or in the family's folder."""
    places = {n: [root / folder / f"{n}.json" for folder in ("structure", own.folder)] for n in own.recipes}
    found = {name: [path for path in paths if path.is_file()] for name, paths in places.items()}
    return {name: paths[0] for name, paths in sorted(found.items()) if paths}


def build_recipe(name: str) -> DetectionModule:
    """The untrained model of a bundled recipe such as `rt_detr/r50_coco_72e`, without its average."""
    text = recipe_files()[name].read_text(encoding="utf-8")
    block = parse_yaml(text, name)["model"]
    if "ema" in block["init_args"]:
        block["init_args"]["ema"] = None
    return build_module(block, backbone_weights="random")
