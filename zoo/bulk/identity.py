"""Which job an output or a journal belongs to: the model, the images, and what is kept of what is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.bulk import results
from zoo.bulk.batches import Wanted, weights_of
from zoo.bulk.images import Images
from zoo.bulk.journal import Journal, Line
from zoo.detector import Detector
from zoo.runs.console import quoted


def journal_file(output: Path) -> Path:
    """Beside the output, until the job is finished."""
    return output.with_name(f"{output.name}.unfinished")


def lowest_of(detector: Detector) -> float:
    """The score from which a model shows what it finds; of a panoptic model that of its rule."""
    rule = detector.module.panoptic
    return detector.default_threshold if rule is None else rule.score_threshold


def identity_of(detector: Detector, images: Images, wanted: Wanted) -> Line:
    """What the results depend on; plain values as JSON gives them back."""
    labels = detector.label_map.to_dict()
    return {
        "model": detector.name,
        "weights": weights_of(detector),
        "input": detector.input.to_dict(),
        "threshold": lowest_of(detector) if wanted.threshold is None else wanted.threshold,
        "class_thresholds": dict(detector.own_thresholds(wanted.threshold)),
        "classes": None if wanted.classes is None else list(wanted.classes),
        "max_detections": wanted.most,
        "label_map": labels,
        "data": images.place,
        "split": images.split,
        "format": images.format,
        "images": len(images),
        "data_sha256": images.digest(),
    }


_WORDS = {
    "model": "another model",
    "weights": "another model",
    "data": "other images",
    "split": "another split",
    "format": "other images",
    "images": "other images",
    "data_sha256": "other images",
}


def _difference(before: Any, now: Line) -> str:
    """How a job differs from the one that an output belongs to; empty if it does not."""
    if not isinstance(before, dict):
        return "something else"
    key = next((key for key in now if before.get(key) != now[key]), None)
    if key is None:
        return ""
    if key in ("model", "data", "split", "threshold", "max_detections", "classes"):
        return f"{_WORDS.get(key, f'another {key}')}: {str(before.get(key))[:80]}, not {str(now[key])[:80]}"
    return _WORDS.get(key, f"another {key}")


def finished(output: Path, identity: Line) -> Line | None:
    """What the finished job came to, if this one is finished.

    Raises:
        FileExistsError: the output is of another job.
    """
    if not output.exists() or journal_file(output).exists():
        return None
    file = results.images_file(output)
    info = results.info_of(file) if file.is_file() else None
    if info is None:
        raise FileExistsError(
            f"{output} is there already, and no {file.name} beside it says of which job; give another --output"
        )
    difference = _difference(info.get("job"), identity)
    if difference:
        raise FileExistsError(
            f"{output} is there already, of {difference}; give another --output, or remove it to begin anew: "
            f"rm {quoted(output)}"
        )
    return info


def begun_before(journal: Journal, identity: Line, output: Path) -> Line | None:
    """What the journal says of this job; None if it begins.

    Raises:
        FileExistsError: the journal is of another job.
    """
    if journal.job is None:
        return None
    begun: Line = journal.job["job"]
    difference = _difference(begun.get("identity"), identity)
    if difference:
        raise FileExistsError(
            f"{journal.path} is an unfinished job of {difference}; give another --output, or remove it to begin anew: "
            f"rm {quoted(journal.path)}"
        )
    return begun
