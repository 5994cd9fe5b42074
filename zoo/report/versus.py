"""The page of two models on the same images: whether one is better, at which classes, and where they disagree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.analysis.comparison import CONFIDENCE, SAMPLES, Comparison, Difference, compared, disagreement
from zoo.evaluation.scores import or_null
from zoo.report import pictures
from zoo.report.given import Given
from zoo.report.page import Written, render, write_both
from zoo.report.words import SOME

IMAGES = 12  # on which they disagree most, as pictures
LISTED = 100  # of them in the numbers
FIRST_CLASSES = 25  # rows of the table that are open


def write_comparison(first: Given, second: Given, folder: Path) -> Written:
    """Writes compare.html and compare.json into `folder`.

    Raises:
        ValueError: the models were scored on other images or annotations.
        OSError: the files cannot be written.
    """
    numbers = document(first, second)
    shown = [image["row"] for image in numbers["images"][:IMAGES]]
    scene = {
        "classes": [first.name_of(head) for head in sorted({*_places(first), *_places(second)})],
        "images": numbers["images"][:IMAGES],
        "pictures": {
            f"{side}{row}": _picture(given, row, {*_places(first), *_places(second)})
            for row in shown
            for side, given in (("a", first), ("b", second))
        },
    }
    widest = max(
        (abs(v) for row in numbers["classes"] for v in row["interval"] if v is not None), default=1.0
    )
    page = render(
        "compare.html.jinja", n=numbers, scene=scene, first=FIRST_CLASSES, widest=max(widest, 0.01),
        signed=signed, minus=minus,
    )  # fmt: skip
    return write_both(folder, "compare", numbers, page)


def _places(given: Given) -> list[int]:
    return given.evaluation.data.classes


def _picture(given: Given, row: int, heads: set[int]) -> dict[str, Any]:
    """With classes as places in `heads`, for both models detect other ones."""
    made, own = pictures.picture(given, row), _places(given)
    place = {head: k for k, head in enumerate(sorted(heads))}
    for entry in (*made["objects"], *made["found"]):
        entry[5] = place[own[entry[5]]]
    return made


def document(first: Given, second: Given) -> dict[str, Any]:
    """What compare.json holds."""
    result = compared(first.evaluation, second.evaluation)
    data = first.evaluation.data
    apart = disagreement(first.confusion, second.confusion, data.annotation_image, len(data.images))
    counted = data.annotation_labels[data.annotation_labels[:, 1] == 0, 0]
    classes = [
        {"name": first.name_of(head), "objects": int((counted == head).sum()), **_plain(difference)}
        for head, difference in result.classes.items()
    ]
    return {
        "format": 1,
        "first": _side(first),
        "second": _side(second),
        "data": first.place,
        "split": first.split,
        "images_scored": first.evaluation.num_images,
        "method": f"paired bootstrap over images, {SAMPLES} samples, {CONFIDENCE:.0%} intervals; second less first",
        "AP": _plain(result.ap),
        "AP50": _plain(result.ap50),
        "verdict": verdict(first, second, result),
        "classes": sorted(classes, key=lambda row: -abs(row["difference"] or 0.0)),
        "images": [
            {
                "row": row,
                "file": first.index.files[int(first.rows[row])],
                "only_first": int(apart.only_first[row]),
                "only_second": int(apart.only_second[row]),
                "wrong_first": int(apart.wrong_first[row]),
                "wrong_second": int(apart.wrong_second[row]),
            }
            for row in apart.most(LISTED)
        ],
    }  # fmt: skip


def _side(given: Given) -> Mapping[str, Any]:
    scores = {name: or_null(value) for name, value in given.evaluation.scores.items()}
    return {"model": given.model, "threshold": given.threshold, "scores": scores}


def _plain(difference: Difference) -> dict[str, Any]:
    return {
        "first": or_null(difference.first),
        "second": or_null(difference.second),
        "difference": or_null(difference.value),
        "interval": [or_null(v) for v in difference.interval],
        "differs": difference.is_clear,
    }


def signed(value: float) -> str:
    """With three decimals and its sign, of which nothing (0.000) has the plus."""
    return f"{round(value, 3) + 0.0:+.3f}"


def minus(text: str) -> str:
    """Numbers of a text with the sign that is as wide as the plus."""
    return re.sub(r"(?<![^\s\[])-(?=\d)", "−", text)


def verdict(first: Given, second: Given, result: Comparison) -> list[str]:
    """Which is better, if that can be told, and at which classes."""
    ap, images = result.ap, first.evaluation.num_images
    if ap.value != ap.value:
        return [f"There is no object in these {images} images, so that there is nothing to compare."]
    low, high = ap.interval
    by = f"{signed(ap.value)} [{signed(low)}, {signed(high)}]"
    told = f"AP {ap.first:.3f} against {ap.second:.3f}, a difference of {by}"
    if images < 2:
        said = [f"{told}; one image tells nothing about others."]
    elif not ap.is_clear:
        said = [f"Neither is clearly better on these {images} images: {told} may be chance."]
    else:
        said = [f"{(second if ap.value > 0 else first).model} is better: {told}."]
    counts = first.object_counts
    told_of = {head: d for head, d in result.classes.items() if counts[head] >= SOME}
    clear = [(head, d) for head, d in told_of.items() if d.is_clear]
    for words, sign, model in (("first", -1, first), ("second", 1, second)):
        names = [
            first.name_of(h) for h, d in sorted(clear, key=lambda r: -abs(r[1].value)) if d.value * sign > 0
        ]
        if names:
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            said.append(f"The {words}, {model.model}, is clearly better at {', '.join(names[:6])}{more}.")
    if clear:
        said.append(
            f"{len(clear)} of {len(told_of)} classes with {SOME} objects or more differ clearly; of as many that are "
            f"alike {len(told_of) * (1 - CONFIDENCE):.1f} would by chance."
        )
    return said
