"""Why the score is what it is, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.summary import counted
from zoo.analysis.tide import BOTH, CLASSIFICATION, DUPLICATE, KINDS, LOCALISATION, ON_BACKGROUND
from zoo.report import objects
from zoo.report.given import Given

WHAT = {
    "missed": "objects that nothing finds",
    "classification": "objects that are found and called by another class",
    "localisation": "boxes on the right object that lie badly (IoU below 0.5)",
    "both": "boxes that lie badly on an object of another class",
    "duplicate": "more than one box on an object",
    "background": "boxes where nothing is annotated",
}
NUMBER = {"classification": CLASSIFICATION, "localisation": LOCALISATION, "both": BOTH,
          "duplicate": DUPLICATE, "background": ON_BACKGROUND}  # fmt: skip
NEXT_TO_NOTHING = 0.02  # AP50 of a model that has learned next to nothing
LOOK = " If they look right in the pictures below, the annotations are at fault, not the model."
LITTLE = 0.01  # AP that is not worth a sentence
MUCH_MORE = 1.5  # share among the missed, over the share among all objects, from which a trait explains them
SOME = 10  # objects of a class from which its AP is worth a sentence
LOOSE = 0.3  # AP50 - AP75 from which boxes are loose


def sentences(given: Given, numbers: Mapping[str, Any]) -> list[str]:
    """What matters most first; the first tells which kind of error costs most."""
    if not numbers["objects"]:
        return [f"There is no object in these {numbers['images']} images, so that there is nothing to score."]
    if not numbers["detections"]:
        return [
            f"The model detects nothing at all in {numbers['images']} images with {numbers['objects']} objects."
        ]
    said = [
        _next_to_nothing(numbers),
        _main_cause(given, numbers),
        _second_cause(given, numbers),
        _loose(numbers),
        _traits(given, numbers),
    ]
    said += [_weakest(numbers), _leaks(numbers), _unlearned(numbers)]
    return [sentence for sentence in said if sentence]


def _next_to_nothing(numbers: Mapping[str, Any]) -> str | None:
    if (numbers["scores"]["AP50"] or 0.0) >= NEXT_TO_NOTHING:
        return None
    return f"Hardly any of {numbers['detections']:,} detections is right: the model has not learned these classes yet."


def _ranked(numbers: Mapping[str, Any]) -> list[tuple[float, str]]:
    costs = numbers["errors"]["costs"]
    return sorted(((costs[kind] or 0.0, kind) for kind in KINDS), reverse=True)


def _main_cause(given: Given, numbers: Mapping[str, Any]) -> str:
    cost, kind = _ranked(numbers)[0]
    if cost < LITTLE:
        if (numbers["errors"]["AP50"] or 0.0) > 1 - 3 * LITTLE:
            return "At IoU 0.5 nearly everything is right: no kind of error costs a point of AP50."
        return (
            "No single kind of error costs a point of AP50: correcting one alone would gain little, as other errors "
            "stand in its way."
        )
    look = LOOK if kind == "background" else ""
    return f"Most AP is lost by {WHAT[kind]}: {_points(cost)} of AP50{_chiefly(given, kind)}.{look}"


def _second_cause(given: Given, numbers: Mapping[str, Any]) -> str | None:
    cost, kind = _ranked(numbers)[1]
    return f"Then by {WHAT[kind]}: {_points(cost)}{_chiefly(given, kind)}." if cost >= LITTLE else None


def _points(ap: float) -> str:
    return f"{100 * ap:.1f} points"


def _chiefly(given: Given, kind: str) -> str:
    """What most errors of a kind have in common, where they have."""
    data, errors = given.evaluation.data, given.errors
    if kind == "missed":
        return _of_missed(given)
    own = (errors.kind == NUMBER[kind]) & (data.detections[errors.found, 4] >= given.threshold)
    shown = data.detection_labels[errors.found[own]].tolist()
    if not shown:
        return ", all below the threshold"
    usual = 0.0
    if kind == "classification":
        true = data.annotation_labels[errors.object[own], 0].tolist()
        (a, b), number = Counter(zip(true, shown, strict=True)).most_common(1)[0]
        what = f"{given.name_of(a)} called {given.name_of(b)}"
    else:
        head, number = Counter(shown).most_common(1)[0]
        what, usual = given.name_of(head), MUCH_MORE * _share_of(given, head)
    if number < 2 or number / len(shown) < max(0.25, usual):
        return ""
    return f", chiefly {what} ({number} of {len(shown)} that are shown)"


def _share_of(given: Given, head: int) -> float:
    """Of all objects, crowds aside, those of one class."""
    labels = given.evaluation.data.annotation_labels
    return float((labels[labels[:, 1] == 0, 0] == head).mean())


def _of_missed(given: Given) -> str:
    missed = given.errors.missed
    real = given.evaluation.data.annotation_labels[:, 1] == 0
    best: tuple[float, str] | None = None
    for trait in objects.traits(given):
        share, usual = float(trait.has[missed].mean()), float(trait.has[real].mean())
        if share >= 0.25 and share >= MUCH_MORE * usual and (best is None or share > best[0]):
            kind = trait.name.partition(":")[0]
            best = share, f", chiefly {kind} ones ({share:.0%} of those missed, {usual:.0%} of all)"
    return "" if best is None else best[1]


def _loose(numbers: Mapping[str, Any]) -> str | None:
    half, strict = numbers["scores"]["AP50"], numbers["scores"]["AP75"]
    if half is None or strict is None or half - strict < LOOSE:
        return None
    return (
        f"Boxes that count at IoU 0.5 are often not tight: AP is {half:.3f} at IoU 0.5 and {strict:.3f} at 0.75, and "
        "AP is the mean over ten such limits up to 0.95."
    )


def _traits(given: Given, numbers: Mapping[str, Any]) -> str | None:
    """The trait that explains most of what is not found."""
    total = sum(1 for found in _not_found(given) if found)
    for trait in numbers["objects_by_trait"]:
        recall, others = trait["recall"], trait["recall_of_others"]
        if others is None or trait["trait"] == "leaked" or not total or trait["not_found"] < 0.25 * total:
            continue
        if others - recall >= 0.15:
            return (
                f"Of {trait['objects']} objects that are {trait['name'].partition(':')[0]} "
                f"({trait['name'].partition(': ')[2]}) {recall:.0%} are found, of the others {others:.0%}."
            )
    return None


def _not_found(given: Given) -> Sequence[bool]:
    real = given.evaluation.data.annotation_labels[:, 1] == 0
    return np.asarray(real & ~objects.found_objects(given)).tolist()


def _weakest(numbers: Mapping[str, Any]) -> str | None:
    scored = [row for row in numbers["classes"] if row["AP"] is not None]
    scored = [row for row in scored if row["objects"] >= SOME] or scored
    if len(scored) < 2:
        return None
    weakest = min(scored, key=lambda row: row["AP"])
    cost, kind = max((value or 0.0, kind) for kind, value in weakest["costs"].items())
    why = f"; most of it is lost by {WHAT[kind]}" if cost >= LITTLE else ""
    learned = weakest["learned"]
    seen = f", {learned} to learn from" if learned is not None else ""
    return (
        f"The weakest class is {weakest['name']}: AP {weakest['AP']:.3f} of "
        f"{counted(weakest['objects'], 'object')}{seen}{why}."
    )


def _leaks(numbers: Mapping[str, Any]) -> str | None:
    found, ap = numbers["without_leaked_images"], numbers["scores"]["AP"]
    if found is None or found["AP"] is None or ap is None:
        return None
    are = "is" if found["leaked_images"] == 1 else "are"
    known = f"{found['leaked_images']} of {numbers['images']} images {are} in another split too: without that AP is"
    if f"{found['AP']:.3f}" == f"{ap:.3f}":
        return f"{known} the same."
    return f"{known} {found['AP']:.3f} instead of {ap:.3f}."


def _unlearned(numbers: Mapping[str, Any]) -> str | None:
    unseen = [row["name"] for row in numbers["classes"] if row["learned"] == 0 and row["objects"]]
    if not unseen:
        return None
    shown = ", ".join(unseen[:5]) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
    return f"The train split has no object of {shown}, so that the model could not learn it."


def of_class(row: Mapping[str, Any]) -> str:
    """What costs a class most, for its row in the table; empty where little does."""
    cost, kind = max((value or 0.0, kind) for kind, value in row["costs"].items())
    return f"{kind} {100 * cost:.1f}" if cost >= LITTLE else ""
