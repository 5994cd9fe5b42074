"""From a prediction to the document that `zoo predict --json` writes of an image."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from zoo.contract.labels import LabelMap
from zoo.detector import Prediction
from zoo.serving.given import Options
from zoo.serving.problems import Problem, shown


def check_classes(classes: list[str] | None, label_map: LabelMap) -> None:
    """Raises Problem for a class that the model does not know."""
    known = set(label_map.names)
    for name in classes or ():
        if name not in known:
            raise Problem(422, "class", f"class {shown(name)!r} is none of the model's{near(name, known)}")


def near(name: str, known: Collection[str]) -> str:
    """A hint at the one that was perhaps meant."""
    found = difflib.get_close_matches(name[:100], sorted(known), 1)
    return f"; did you mean {found[0]!r}?" if found else f": {shown(', '.join(sorted(known)))}"


def document_of(prediction: Prediction, options: Options, version: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/detect.

    Args:
        prediction: at the threshold that was asked for.
        options: `classes` and `max_detections` leave detections out; of segments only `classes` does.
        version: id, version and hash of the model.
    """
    wanted = None if options.classes is None else set(options.classes)
    found = prediction.only(wanted, options.max_detections).to_dict(with_png=True)
    if "panoptic" in found and wanted is not None:
        segments = found["panoptic"]["segments"]
        found["panoptic"]["segments"] = [one for one in segments if one["label"] in wanted]
    return found | version
