"""Boxes around the shapes that annotation tools draw."""

from __future__ import annotations

import math

from datamodules.reading.records import Box, enclosing

Points = list[tuple[float, float]]


def rotated(box: Box, degrees: float, pivot: tuple[float, float]) -> Points:
    """The corners of x, y, w, h after turning it clockwise, as seen with y down, around `pivot`."""
    x, y, w, h = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    px, py = pivot
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    return [
        (px + (cx - px) * cos - (cy - py) * sin, py + (cx - px) * sin + (cy - py) * cos) for cx, cy in corners
    ]


def around_ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Box:
    """The box around an ellipse that is turned by `degrees`."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width = math.hypot(radii[0] * cos, radii[1] * sin)
    half_height = math.hypot(radii[0] * sin, radii[1] * cos)
    return centre[0] - half_width, centre[1] - half_height, 2 * half_width, 2 * half_height


def flat(points: Points) -> list[float]:
    """x0, y0, x1, y1, ...: a polygon as COCO writes it."""
    return [value for point in points for value in point]


def polygon_box(points: Points) -> Box | None:
    """The box around a polygon; None without any point."""
    return enclosing(points) if points else None
