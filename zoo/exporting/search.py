"""Which parts of a network stay in float32 where the rest is reduced: found by measuring each part alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Certify = Callable[..., dict[str, Any]]


@dataclass
class Search:
    """What was tried until a certificate passed.

    Attributes:
        costs: of each part, with that part alone reduced; empty where all could be.
        tried: number of parts kept, and what the certificate said.
    """

    costs: dict[str, float] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the most costly part first."""
        order = sorted(self.costs, key=lambda part: -self.costs[part])
        return {"costs": {part: self.costs[part] for part in order}, "tried": self.tried}


def fewest_kept(
    parts: Sequence[str], make: Callable[[Collection[str]], Path], certify: Certify,
    cost: Callable[[Path], float], say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Reduces all parts, and keeps as few as possible in float32 so that the certificate passes.

    They are kept in the order of their costs; how many, is found by halving.

    Args:
        parts: that can be reduced.
        make: a new file in which these parts are reduced.
        certify: of a file, with the parts that are kept.
        cost: of a file, how far its detections are from those of the source.
        say: for the user.

    Returns:
        The file and its certificate, which has failed where even one reduced part costs too much.
    """
    search = Search()

    def tried(count: int) -> tuple[Path, dict[str, Any]]:
        kept = order[:count]
        path = make([part for part in parts if part not in kept])
        document = certify(path, kept=sorted(kept))
        search.tried.append({"kept": count, "passed": document["passed"], "failures": document["failures"]})
        return path, document

    order: list[str] = []
    path, document = tried(0)
    if document["passed"]:
        return path, document
    search.costs = {part: cost(make([part])) for part in parts}
    order = sorted(parts, key=lambda part: -search.costs[part])
    told = ", ".join(f"{part} {search.costs[part]:.2g}" for part in order)
    say(f"measured    share of the detections that one part alone loses, reduced: {told}")
    failed, passed, best = 0, len(parts), None
    while passed - failed > 1:
        count = (passed + failed) // 2
        say(f"keep        {count} of {len(parts)} parts in float32, for {document['failures'][0]}")
        latest = tried(count)
        if latest[1]["passed"]:
            passed, best = count, latest
        else:
            failed, (path, document) = count, latest
    path, document = (path, document) if best is None else best
    return path, document | {"search": search.to_dict()}
