"""What an epoch of tiles holds, and what becomes of objects that an edge cuts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TileSampling:
    """The images of an epoch where images are cut into tiles.

    Every tile with an object is used once an epoch. What an edge cuts is an object, trimmed to the tile, if enough of
    its area shows; less is neither object nor background: the network may find it or not.

    Attributes:
        visible: share of an object's area from which a tile has it as an object.
        whole: share of an epoch's images that are whole ones, of images larger than a tile, drawn anew each epoch:
            they show what is larger than a tile. Each comes as often as any other, give or take once.
        empty: tiles without an object, for each tile with one, drawn anew each epoch.
    """

    visible: float = 0.4
    whole: float = 0.2
    empty: float = 0.25

    def __post_init__(self) -> None:
        for name, least, most in (("visible", 0.01, 1.0), ("whole", 0.0, 0.9), ("empty", 0.0, 100.0)):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise ValueError(
                    f"tile_sampling.{name} is {value!r:.20}; it must lie in {least:g} to {most:g}"
                )
