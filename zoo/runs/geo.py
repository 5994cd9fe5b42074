"""Boxes on the map: detections in GeoTIFF images as GeoJSON (RFC 7946), longitude and latitude of WGS 84."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from zoo.contract.bands import INSTALL, TIFF
from zoo.contract.pixels import open_image
from zoo.storage.durable import write_json

GEO_FILE = "predictions.geojson"
_TIE_POINTS, _TRANSFORMATION = 33922, 34264  # tags that place a TIFF on the map
_WGS84 = "EPSG:4326"


def may_be_placed(path: Path) -> bool:
    """Whether a file is a TIFF whose tags place it on the map, or one whose tags only rasterio reads."""
    with path.open("rb") as stream:
        if not stream.read(4).startswith(TIFF):
            return False
    try:
        with open_image(path) as opened:
            tags = getattr(opened, "tag_v2", {})
            return _TIE_POINTS in tags or _TRANSFORMATION in tags
    except (OSError, SyntaxError, ValueError):
        return True


class GeoFile:
    """The detections of the images of one call that are placed."""

    def __init__(self) -> None:
        self._features: list[dict[str, Any]] = []
        self._placed = False
        self.notes: list[str] = []

    def add(self, path: Path, document: dict[str, Any]) -> None:
        """Takes up what `Prediction.to_dict` has of an image; without a place nothing."""
        if not may_be_placed(path):
            return
        try:
            import rasterio
            from rasterio.warp import transform
        except ImportError:
            self.notes = [
                f"where detections in GeoTIFF images lie is written into {GEO_FILE} with rasterio: {INSTALL}"
            ]
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as opened:
                place, crs = opened.transform, opened.crs
        if crs is None:
            if not place.is_identity:
                self.notes.append(f"{path} names no coordinate system; its detections are not in {GEO_FILE}")
            return
        self._placed = True
        for found in document["detections"]:
            left, top, right, bottom = found["box_xyxy"]
            columns, rows = (left, left, right, right, left), (top, bottom, bottom, top, top)
            corners = list(zip(columns, rows, strict=True))
            x = [place.a * column + place.b * row + place.c for column, row in corners]
            y = [place.d * column + place.e * row + place.f for column, row in corners]
            ring = [list(point) for point in zip(*transform(crs, _WGS84, x, y), strict=True)]
            properties = {"image": str(path), **{k: v for k, v in found.items() if k != "mask"}}
            geometry = {"type": "Polygon", "coordinates": [ring]}
            self._features.append({"type": "Feature", "geometry": geometry, "properties": properties})

    def write(self, folder: Path) -> dict[str, Path]:
        """The file, if any image was placed."""
        if not self._placed:
            return {}
        write_json(folder / GEO_FILE, {"type": "FeatureCollection", "features": self._features})
        return {"geojson": folder / GEO_FILE}
