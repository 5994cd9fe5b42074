"""Detections in GeoTIFF images on the map."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from zoo.runs.geo import GEO_FILE, GeoFile

rasterio = pytest.importorskip("rasterio")
BOX = {"detections": [{"label": "field", "score": 0.5, "box_xyxy": [10.0, 20.0, 30.0, 40.0]}]}


def geotiff(path, bands=1, crs="EPSG:32632"):
    place = rasterio.transform.from_origin(500000, 5400000, 10, 10)
    profile = {"width": 64, "height": 48, "count": bands, "dtype": "uint16", "crs": crs, "transform": place}
    with rasterio.open(path, "w", driver="GTiff", **profile) as out:
        out.write(np.zeros((bands, 48, 64), np.uint16))
    return path


@pytest.mark.parametrize("bands", [1, 5])
def test_a_box_lies_where_its_pixels_lie(tmp_path, bands):
    placed = GeoFile()
    placed.add(geotiff(tmp_path / "a.tif", bands), BOX)
    assert placed.write(tmp_path) == {"geojson": tmp_path / GEO_FILE}
    [feature] = json.loads((tmp_path / GEO_FILE).read_text())["features"]
    [ring] = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    back = rasterio.warp.transform("EPSG:4326", "EPSG:32632", *zip(*ring, strict=True))
    wanted = [
        (500000 + 10 * x, 5400000 - 10 * y) for x, y in ((10, 20), (10, 40), (30, 40), (30, 20), (10, 20))
    ]
    np.testing.assert_allclose(np.transpose(back), wanted, atol=0.01)
    assert (feature["properties"]["label"], feature["properties"]["score"]) == ("field", 0.5)
    # counter-clockwise on the map, as RFC 7946 has outer rings
    x, y = np.transpose(ring)
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0


def test_other_images_have_no_place(tmp_path):
    placed = GeoFile()
    Image.new("L", (8, 8)).save(tmp_path / "a.tif")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        placed.add(tmp_path / name, BOX)
    assert (placed.write(tmp_path), placed.notes) == ({}, [])
    placed.add(geotiff(tmp_path / "b.tif", crs=None), BOX)
    assert placed.write(tmp_path) == {}
    assert "names no coordinate system" in placed.notes[0]


def test_without_rasterio_it_says_what_to_install(tmp_path, monkeypatch):
    path = geotiff(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    placed = GeoFile()
    placed.add(path, BOX)
    placed.add(path, BOX)
    [note] = placed.notes
    assert "pip install 'detr-zoo[geo]'" in note
    assert placed.write(tmp_path) == {}
