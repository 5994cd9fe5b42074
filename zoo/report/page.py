"""Writes a report: one page that holds its pictures, and its numbers."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import datamodules.doctor
from zoo.analysis.tide import KINDS
from zoo.report import charts, pictures, words
from zoo.report.given import Given, Training
from zoo.report.numbers import ENOUGH, document
from zoo.storage.durable import write_atomically, write_json

FIRST_CLASSES = 40  # rows of the table that are open
MATRIX = 25  # classes of the matrix
LISTED = 8  # confusions in each list


class Written(NamedTuple):
    """The files of a report, and what the second holds."""

    page: Path
    file: Path
    numbers: dict[str, Any]


def write_report(given: Given, folder: Path, name: str = "report") -> Written:
    """Writes NAME.html and NAME.json into `folder`.

    Raises:
        OSError: they cannot be written.
    """
    numbers = document(given)
    numbers["why"] = words.sentences(given, numbers)
    return write_both(folder, name, numbers, page(given, numbers))


def write_both(folder: Path, name: str, numbers: dict[str, Any], page: str) -> Written:
    """NAME.html and NAME.json in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    written = Written(folder / f"{name}.html", folder / f"{name}.json", numbers)
    write_json(written.file, numbers)
    # a file name that is no UTF-8 is shown with a question mark
    write_atomically(written.page, page.encode("utf-8", "replace"))
    return written


def page(given: Given, numbers: Mapping[str, Any]) -> str:
    """The page as HTML."""
    costs = [
        (kind, words.WHAT[kind], numbers["errors"]["costs"][kind] or 0.0, numbers["errors"]["counts"][kind])
        for kind in KINDS
    ]
    rows = sorted(numbers["classes"], key=_cost_of_class, reverse=True)
    worst, cells = pictures.worst_images(given), pictures.confused(given)
    return render(
        "report.html.jinja",
        n=numbers,
        why=numbers["why"],
        tiles=_tiles(numbers),
        costs=sorted(costs, key=lambda row: -row[2]),
        most_cost=max(cost for _, _, cost, _ in costs) or 1.0,
        first_classes=rows[:FIRST_CLASSES],
        more_classes=rows[FIRST_CLASSES:],
        learned=given.train is not None,
        enough=ENOUGH,
        of_class=words.of_class,
        pr=_precision_by_recall(numbers),
        by_threshold=_by_threshold(numbers),
        reliability=_reliability(numbers),
        fault_kinds=_by_kind(numbers["faults"]),
        training=given.training,
        training_charts=[] if given.training is None else _training(given.training),
        worst=worst,
        scene=_scene(given, numbers, worst, cells),
    )


def render(template: str, **values: Any) -> str:
    """A template of this folder with the style of all pages; everything from the data set is escaped."""
    folders = [Path(__file__).parent, Path(datamodules.doctor.__file__).parent]
    environment = Environment(loader=FileSystemLoader(folders), autoescape=True)
    return environment.get_template(template).render(counted=_counted, **values)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cost_of_class(row: Mapping[str, Any]) -> float:
    return max((cost or 0.0 for cost in row["costs"].values()), default=0.0)


def _tiles(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, number) of the large numbers at the top."""
    scores, (low, high) = numbers["scores"], numbers["interval"]["AP"]
    point = numbers["threshold"]["chosen"]
    interval = "AP" if low is None else f"AP, 95 % of {low:.3f} to {high:.3f}"
    tiles = [
        (interval, _short(scores["AP"])),
        ("AP50", _short(scores["AP50"])),
        ("AP75", _short(scores["AP75"])),
    ]
    if point is not None:
        tiles += [
            (f"precision at threshold {point['threshold']:.3f}", _percent(point["precision"])),
            ("recall there", _percent(point["recall"])),
        ]
    return [*tiles, ("objects", f"{numbers['objects']:,}")]


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


_SHARE = functools.partial(charts.Range, 0.0, 1.0)


def _precision_by_recall(numbers: Mapping[str, Any]) -> Markup:
    recall = numbers["curves"]["recall"]
    curves = [
        charts.Line(f"IoU {name}", list(zip(recall, values, strict=True)))
        for name, values in numbers["curves"]["all"].items()
    ]
    return charts.lines(curves, _SHARE("recall"), _SHARE("precision"))


def _by_threshold(numbers: Mapping[str, Any]) -> Markup:
    columns = numbers["curves"]["thresholds"]
    curves = [
        charts.Line(name, list(zip(columns["threshold"], columns[name], strict=True)))
        for name in ("precision", "recall", "f1")
    ]
    return charts.lines(curves, _SHARE("threshold"), _SHARE("share"))


def _reliability(numbers: Mapping[str, Any]) -> Markup:
    rows = numbers["calibration"]["bins"]
    return charts.bars(
        [row["right"] for row in rows], _SHARE("score"), _SHARE("right"), [row["score"] for row in rows]
    )


def _training(training: Training) -> list[tuple[Markup, str]]:
    """Charts of the losses and of the scores over the steps."""
    wanted: list[tuple[str, Callable[[str], bool]]] = [
        ("Training loss", lambda name: name == "train/loss"),
        ("Scores on val", lambda name: name in ("val/AP", "val/AP50", "val/AP75", "val/segm_AP", "val/PQ")),
    ]
    made = []
    for title, chosen in wanted:
        curves = [charts.Line(n, _thinned(p)) for n, p in training.series.items() if chosen(n) and len(p) > 0]
        values = [value for curve in curves for _, value in curve.points if value is not None]
        if not values:
            continue
        steps = [step for curve in curves for step, _ in curve.points]
        x = charts.Range(min(steps), max(steps), "optimizer steps")
        y = charts.Range(0.0, max(*values, 1e-9) * 1.05, title.lower())
        made.append((charts.lines(curves, x, y), title))
    return made


def _thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float | None]]:
    every = max(1, len(points) // most)
    return [(step, value if value == value else None) for step, value in points[::every]]


def _by_kind(faults: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for fault in faults:
        kinds[fault["kind"]].append(fault)
    return list(kinds.values())


def _scene(
    given: Given, numbers: Mapping[str, Any], worst: dict[str, list[int]], cells: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the page's script draws."""
    rows = numbers["classes"]
    errors: dict[int, int] = defaultdict(int)
    for cell in cells:
        if cell["true"] != cell["shown"]:
            for place in (cell["true"], cell["shown"]):
                errors[place] += cell["count"] if place >= 0 else 0
    busiest = sorted(range(len(rows)), key=lambda place: -errors[place])[:MATRIX]
    return {
        "classes": [row["name"] for row in rows],
        "totals": [row["objects"] for row in rows],
        "backgrounds": int((given.confusion.true < 0).sum()),
        "cells": cells,
        "listed": LISTED,
        "matrix": sorted(busiest),
        "worst": worst,
        "pictures": {row: pictures.picture(given, row) for row in pictures.chosen_images(worst, cells)},
        "precision": list(numbers["curves"]["classes"].values()),
        "plot": {
            "left": charts.LEFT, "right": charts.WIDTH - charts.RIGHT,
            "top": charts.TOP, "bottom": charts.HEIGHT - charts.BOTTOM,
        },
    }  # fmt: skip
