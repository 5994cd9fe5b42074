"""Lines and bars as SVG, coloured by the style of the page they stand in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 38
COLOURS = 6  # classes c0, c1, ... of the style
_TINY = 1e-9  # of a step, by which rounding may be off


class Line(NamedTuple):
    """One curve; a point with None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


class Range(NamedTuple):
    """Of an axis, with its words."""

    low: float
    high: float
    words: str

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one; within."""
        width = self.high - self.low
        return min(max((value - self.low) / width, 0.0), 1.0) if width > 0 else 0.5


def lines(curves: Sequence[Line], x: Range, y: Range) -> Markup:
    """A chart of curves with grid, words and a legend below."""
    parts = [_grid(x, y)]
    for k, curve in enumerate(curves):
        style, known = f"line c{k % COLOURS}", [point for point in curve.points if point[1] is not None]
        if len(known) == 1:
            ((across, down),) = known
            dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
            parts.append(dot.format(style, _across(x, across), _down(y, down or 0.0), curve.name))
            continue
        parts.append(Markup('<path class="{}" d="{}"><title>{}</title></path>').format(
            style, _path(curve.points, x, y), curve.name))  # fmt: skip
    drawn = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{y.words} by {x.words}", Markup("").join(parts)
    )
    return drawn + legend([curve.name for curve in curves])


def bars(values: Sequence[float | None], x: Range, y: Range, wanted: Sequence[float | None]) -> Markup:
    """Bars of equal width side by side, with a line across each where it should end."""
    parts, width = [_grid(x, y)], (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    for k, (value, line) in enumerate(zip(values, wanted, strict=True)):
        if value is None:
            continue
        left, top = LEFT + k * width, _down(y, value)
        parts.append(Markup('<rect class="column" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            left + 2, top, width - 4, _down(y, y.low) - top))  # fmt: skip
        if line is not None:
            at = _down(y, line)
            parts.append(Markup('<path class="line c1" d="M{:.1f} {:.1f}h{:.1f}"/>').format(left, at, width))
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, y.words, Markup("").join(parts)
    )


def legend(names: Sequence[str]) -> Markup:
    """A name for each colour; nothing for a single curve."""
    if len(names) < 2:
        return Markup("")
    entries = [
        Markup('<span><i class="c{}"></i>{}</span>').format(k % COLOURS, n) for k, n in enumerate(names)
    ]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(entries))


def _grid(x: Range, y: Range) -> Markup:
    parts = []
    for down in ticks(y):
        at = _down(y, down)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, at, WIDTH - RIGHT))
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 6, at + 4, _short(down)
            )
        )
    for across in ticks(x):
        parts.append(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            _across(x, across), HEIGHT - BOTTOM + 16, _short(across)))  # fmt: skip
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.words))  # fmt: skip
    return Markup("").join(parts)


def ticks(axis: Range) -> list[float]:
    """Two to seven round numbers on an axis; its one value where it has no more."""
    width = axis.high - axis.low
    if width <= 0:
        return [axis.low]
    unit = 10.0 ** math.floor(math.log10(width))
    step = next(unit * k for k in (0.1, 0.2, 0.25, 0.5, 1, 2) if width / (unit * k) <= 6 * (1 + _TINY))
    first, last = math.ceil(axis.low / step - _TINY), math.floor(axis.high / step + _TINY)
    return [n * step for n in range(first, last + 1)]


def _path(points: Sequence[tuple[float, float | None]], x: Range, y: Range) -> str:
    words, pen = [], "M"
    for across, down in points:
        if down is None:
            pen = "M"
            continue
        words.append(f"{pen}{_across(x, across):.1f} {_down(y, down):.1f}")
        pen = "L"
    return "".join(words)


def _across(x: Range, value: float) -> float:
    return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)


def _down(y: Range, value: float) -> float:
    return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
