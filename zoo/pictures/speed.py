"""The plot of AP against milliseconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One way to run a model: `series` gives the colour, `label` is written beside it."""

    series: str
    label: str
    milliseconds: float
    ap: float
    interval: tuple[float, float] | None  # of the AP; None where it is not known


def ap_against_milliseconds(points: Sequence[Point], path: str | os.PathLike[str], what: str) -> None:
    """Writes a PNG; `what` is said below the axis of milliseconds, which is logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    series = list(dict.fromkeys(point.series for point in points))
    for number, name in enumerate(series):
        own = [p for p in points if p.series == name]
        colour = f"C{number % 10}"
        times, aps = [p.milliseconds for p in own], [p.ap for p in own]
        axes.plot(times, aps, color=colour, marker="o", linestyle="none", label=name)
        for point in own:
            if point.interval is not None:
                axes.plot([point.milliseconds] * 2, point.interval, color=colour, linewidth=1.0, alpha=0.5)
            axes.annotate(
                point.label,
                (point.milliseconds, point.ap),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
    axes.set(xlabel=f"milliseconds, {what}", ylabel="AP", xscale="log")
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    FigureCanvasAgg(figure).print_png(os.fspath(path))
