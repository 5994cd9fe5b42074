"""`--freeze`: parts of the network that do not train, by name."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.runs.recipes import Recipe, nearest
from zoo.storage.patterns import compiled
from zoo.training.freezing import PARTS
from zoo.training.module import parameter_names


def write(recipe: Recipe, freeze: str | Sequence[str] | None) -> list[str]:
    """The parts as rules of the schedule, before all others; a note where random weights are kept so.

    Raises:
        ValueError: no part of that name; names those there are.
    """
    if freeze is None:
        return []
    names = freeze.split(",") if isinstance(freeze, str) else list(freeze)
    rules = recipe["model"]["init_args"]["schedule"]["rules"]
    own = parameter_names(recipe["model"])
    for name in reversed([name.strip() for name in names]):
        if name not in PARTS:
            near = nearest(name, PARTS)
            hint = f"did you mean {near}?" if near else "there are"
            raise ValueError(f"--freeze {name!r:.40} is no part of a network; {hint} {', '.join(PARTS)}")
        assert any(map(compiled(PARTS[name]).search, own))
        rules.insert(0, {"match": PARTS[name], "freeze": True})
    if recipe["init_from"]["source"] == "none":
        return [f"--freeze {', '.join(names)}: frozen as it was drawn, for there are no trained weights"]
    return []
