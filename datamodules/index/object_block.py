"""Many objects at once, as columns, on their way from a reader to the index builder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.index.columns import Ints, offsets_of
from datamodules.index.object_rules import surely_good, surely_good_polygons


class RawObject(NamedTuple):
    """One object as its file has it, its values not checked yet."""

    image_id: object
    box_xywh: object
    source_id: object
    annotation_id: int
    area: object
    crowd: bool
    segmentation: object
    file: Path | str  # the annotation file, for faults that are not an image's


class ObjectBlock(NamedTuple):
    """Objects with the usual types, in the order of their file; all numbers are finite."""

    image_ids: Ints  # [n]
    boxes_xywh: NDArray[np.float64]  # [n, 4]
    source_ids: Ints  # [n]
    annotation_ids: Ints  # [n]
    areas: NDArray[np.float64]  # [n], NaN: not given
    crowd: NDArray[np.bool_]  # [n]
    polygons: Ints  # [n] number of polygons
    points: Ints  # [sum(polygons)] number of coordinates
    coordinates: NDArray[np.float64]  # [sum(points)]

    def raw_objects(self, objects: list[int], file: Path | str) -> Iterator[RawObject]:
        """Some of the objects, one by one."""
        polygons, ends = offsets_of(self.polygons), offsets_of(self.points)
        for i in objects:
            own = range(int(polygons[i]), int(polygons[i + 1]))
            yield RawObject(
                int(self.image_ids[i]),
                self.boxes_xywh[i].tolist(),
                int(self.source_ids[i]),
                int(self.annotation_ids[i]),
                None if np.isnan(self.areas[i]) else float(self.areas[i]),
                bool(self.crowd[i]),
                [self.coordinates[ends[p] : ends[p + 1]].tolist() for p in own],
                file,
            )

    def without_doubt(self, sizes: Ints) -> NDArray[np.bool_]:
        """Which objects are kept as they are; `sizes` [n, 2] (h, w) of the image of each."""
        good = surely_good(self.boxes_xywh, self.areas, sizes)
        if len(self.points):
            owner = np.repeat(np.arange(len(self.polygons)), self.polygons)
            fine = surely_good_polygons(self.boxes_xywh[owner], self.points, self.coordinates)
            good[owner[~fine]] = False
            good &= ~(self.crowd & (self.polygons > 0))
        return good

    def kept(
        self, keep: NDArray[np.bool_], areas: NDArray[np.float64], outlined: NDArray[Any]
    ) -> ObjectBlock:
        """The objects in `keep` with their judged areas, and with the outlines of those in `outlined`."""
        if keep.all() and outlined.all():
            return self._replace(areas=areas)
        owner = np.repeat(np.arange(len(self.polygons)), self.polygons)
        polygons_kept = (keep & outlined)[owner]
        return ObjectBlock(
            image_ids=self.image_ids[keep],
            boxes_xywh=self.boxes_xywh[keep],
            source_ids=self.source_ids[keep],
            annotation_ids=self.annotation_ids[keep],
            areas=areas[keep],
            crowd=self.crowd[keep],
            polygons=np.where(outlined, self.polygons, 0)[keep],
            points=self.points[polygons_kept],
            coordinates=self.coordinates[np.repeat(polygons_kept, self.points)],
        )
