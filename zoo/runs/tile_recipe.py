"""Tiles in a recipe: what `--tiles` writes, and says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from datamodules.tiling.rules import TileSampling
from zoo.contract.tiles import Tiles, parse_tiles
from zoo.detector import NO_TILES
from zoo.runs import schema
from zoo.runs.recipes import Recipe


def write(recipe: Recipe, given: int | str | tuple[int, int] | None, overlap: float | None) -> list[str]:
    """Writes `data.input.tiles` and `data.tile_sampling`; None leaves those of a model that was trained in tiles.

    Raises:
        ValueError: no tiles, an overlap without any, or a model that learns masks.
    """
    data = recipe["data"]["init_args"]
    contract: dict[str, Any] = data["input"]
    if given is None and contract.get("tiles") and overlap is not None:
        given = tuple(contract["tiles"]["size"])
    if given == NO_TILES or (given is None and not contract.get("tiles")):
        if overlap is not None:
            raise ValueError("--tile-overlap belongs to --tiles, and there are none; give their side too")
        contract.pop("tiles", None)
        data.pop("tile_sampling", None)
        return []
    if schema.module_class(recipe).learns_masks:
        raise ValueError(
            "--tiles: over the seams of tiles only boxes are merged, not masks; leave it out, or take a model without "
            "masks"
        )
    if given is not None:
        contract["tiles"] = plain(parse_tiles(given, overlap))
    data.setdefault("tile_sampling", asdict(TileSampling()))
    return [
        "tiles are part of the model's input contract: it evaluates and predicts so too (--tiles none: without)"
    ]


def plain(tiles: Tiles) -> dict[str, Any]:
    """As a recipe has them."""
    return {"size": list(tiles.size), "overlap": tiles.overlap}
