"""A family's proof: all committed official cases, grouped by what they are about, as a table."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import zoo.architectures
import zoo.verification
from zoo.storage.places import recipe_files
from zoo.storage.plain_yaml import parse_yaml
from zoo.training.module import DetectionModule, build_module
from zoo.verification.cases import COMMITTED, Case, Comparison, find_cases

# what a kind of case is about, by the beginning of its name
SUBJECTS = {
    "criterion": "matching and losses",
    "forward": "network, forward",
    "train_steps": "training steps",
    "schedule": "schedule",
    "lr_schedule": "schedule",
    "denoising": "denoising queries",
    "msda": "deformable attention",
    "preprocess": "preprocessing",
    "postprocess": "post-processing",
    "mask_losses": "mask losses",
}


@dataclass
class Topic:
    """Everything that was compared about one topic, e.g. matching and losses."""

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
    source: str  # repository @ commit, of all subjects that do not say otherwise
    subjects: list[Topic]

    @property
    def passed(self) -> bool:
        """Every subject."""
        return bool(self.subjects) and all(s.passed for s in self.subjects)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
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


def prove(family: str, root: Path = COMMITTED, said: Callable[[str], None] = lambda case: None) -> Proof:
    """Runs every case of a family's folder.

    Args:
        family: a module of this package, e.g. `rt_detr`.
        root: directory of official numbers.
        said: called with each case before it runs.

    Raises:
        ValueError: no proof for that family.
        FileNotFoundError: the directory has no case for it.
    """
    if family not in families():
        raise ValueError(f"no proof for the family {family!r}; there are {', '.join(families())}")
    module = _module(family)
    subjects: dict[str, Topic] = {}
    source = ""
    own = [(case, module) for case in find_cases(root, [module.FOLDER])]
    for case, runners in [*own, *shared_cases(family, root)]:
        said(case.id)
        about, stated = subject_of(case), str(case.facts["source"])
        subject = subjects.setdefault(about, Topic(about, stated))
        of_another = runners is not module
        source = source if of_another else stated
        subject.cases.append(case.id)
        subject.comparisons += [
            Comparison(f"{case.name}: {c.what}", c.difference, c.tolerance)
            for c in runners.runner_of(case)(case)
        ]
    for name, comparisons in structures(module, root):
        said(f"structure/{name}")
        subject = subjects.setdefault("structure", Topic("structure", source))
        subject.cases.append(f"structure/{name}")
        subject.comparisons += comparisons
    return Proof(family, source, list(subjects.values()))


def shared_cases(family: str, root: Path) -> list[tuple[Case, ModuleType]]:
    """Cases of families whose code this one copied, and what runs them; none where the directory has none."""
    cases = [
        (Case(root, other.FOLDER, name), other)
        for other, names in ((_module(other), names) for other, names in _module(family).SHARED.items())
        for name in names
    ]
    return [(case, other) for case, other in cases if (root / case.folder / f"{case.name}.npz").is_file()]


def structures(module: ModuleType, root: Path) -> Iterator[tuple[str, list[Comparison]]]:
    """Full-size networks of the family's recipes against the official names, shapes and groups."""
    for path in sorted((root / "structure").glob("*.json")):
        if path.stem in module.STRUCTURES:
            built = build_recipe(module.STRUCTURES[path.stem])
            facts = json.loads(path.read_text())
            yield path.stem, module.run_structure(facts, built.network, built.schedule)


def build_recipe(name: str) -> DetectionModule:
    """The untrained model of a bundled recipe such as `rt_detr/r50_coco_72e`, without its average."""
    text = recipe_files()[name].read_text(encoding="utf-8")
    block = parse_yaml(text, name)["model"]
    if "ema" in block["init_args"]:
        block["init_args"]["ema"] = None
    return build_module(block, backbone_weights="random")


def subject_of(case: Case) -> str:
    """What a case is about.

    Raises:
        KeyError: its name begins like none of the known kinds.
    """
    for beginning, subject in SUBJECTS.items():
        if case.name.startswith(beginning):
            return subject
    raise KeyError(f"{case.id} is about nothing known: {', '.join(SUBJECTS)}")


def _module(family: str) -> ModuleType:
    return importlib.import_module(f"zoo.verification.{family}")
