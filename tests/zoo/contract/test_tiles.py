"""The grid of tiles: it covers every pixel, shares what it must, and refuses what is none."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tile, Tiles, parse_tiles
from zoo.registry.manifest import InputBlock

SIZES = [(1, 5000), (5000, 1), (1, 1), (100, 100), (640, 640), (641, 640), (700, 900), (333, 1777)]


@pytest.mark.parametrize(
    ("side", "overlap"), [*itertools.product([(640, 640), (133, 471), (64, 48)], [0, 0.2, 0.75])]
)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_the_image_and_share_at_least_the_overlap(size, side, overlap):
    tiles = Tiles(size=side, overlap=overlap)
    cut = tiles.cut(*size)
    assert len(cut) == np.prod(tiles.counts(*size)) == len(set(cut))
    assert [tiles.tile(*size, n) for n in range(len(cut))] == cut
    assert tiles.num_views(*size) == len(tiles.views(*size))
    shown = np.zeros(size, dtype=bool)
    for tile in cut:
        assert tile.size == (min(side[0], size[0]), min(side[1], size[1]))
        assert min(tile.top, tile.left) >= 0
        assert (tile.bottom, tile.right) <= size
        assert tile.right <= size[1]
        shown[tile.top : tile.bottom, tile.left : tile.right] = True
    assert shown.all()
    for starts, length, shared in (
        (sorted({t.top for t in cut}), min(side[0], size[0]), tiles.shared[0]),
        (sorted({t.left for t in cut}), min(side[1], size[1]), tiles.shared[1]),
    ):
        assert all(one + length - other >= shared for one, other in itertools.pairwise(starts))


def test_an_object_as_large_as_the_overlap_is_whole_in_some_tile():
    tiles = Tiles(size=(64, 80), overlap=0.3)
    height, width = tiles.shared
    cut = tiles.cut(200, 300)
    for y, x in itertools.product(range(200 - height), range(300 - width)):
        assert any(
            t.top <= y and t.left <= x and y + height <= t.bottom and x + width <= t.right for t in cut
        )


@pytest.mark.parametrize("given", ["640", 640, "640x640", (640, 640)])
def test_a_side_or_two_are_read(given):
    assert parse_tiles(given) == Tiles(size=(640, 640), overlap=0.2)


@pytest.mark.parametrize("given", ["6.4", "", "640x", "-640", "640x480x3", "big"])
def test_what_is_no_size_is_refused_in_one_line(given):
    with pytest.raises(ValueError, match=r"as in 640 or 480x640") as refused:
        parse_tiles(given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("overlap", [-0.1, 0.76, 0.99, 1, 1.0, float("nan"), float("inf"), True, "0.2"])
def test_an_overlap_that_is_no_share_is_refused(overlap):
    with pytest.raises(ValueError, match=r"0 to 0\.75"):
        Tiles(size=(640, 640), overlap=overlap)


@pytest.mark.parametrize("size", [(0, 640), (15, 640), (640,), 640, (640.0, 640), (640, 65536), None])
def test_sides_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match="at least 16"):
        Tiles(size=size)


def test_the_contract_carries_tiles_and_writes_no_key_without():
    plain = InputContract(resize="stretch", size=(32, 32))
    assert "tiles" not in plain.to_dict()
    cut = plain.with_tiles(Tiles(size=(48, 64), overlap=0.5))
    assert cut.to_dict()["tiles"] == {"size": [48, 64], "overlap": 0.5}
    assert InputContract.from_dict(cut.to_dict()) == cut
    block = msgspec.convert(cut.to_dict(), InputBlock)
    assert InputContract.from_dict(msgspec.to_builtins(block)) == cut
    assert msgspec.to_builtins(msgspec.convert(plain.to_dict(), InputBlock)).keys() == plain.to_dict().keys()


@pytest.mark.parametrize(
    "tiles", ["640", 640, {"size": [640]}, {"side": 640}, {"size": [1, 2], "overlap": 0.2}]
)
def test_a_contract_with_other_tiles_is_refused(tiles):
    with pytest.raises(ValueError, match=r"tiles|input contract"):
        InputContract.from_dict({"resize": "stretch", "size": [32, 32], "tiles": tiles})


def test_a_tile_has_its_edges():
    assert (Tile(2, 3, 4, 5).bottom, Tile(2, 3, 4, 5).right) == (6, 8)
