from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tiny_sets import coco_content, write_coco

from datamodules.formats.detect import read
from datamodules.index import AnnotationIndex, IndexBuilder
from datamodules.index.segmentation import Segmentation, run_lengths

SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
FULL = {"size": [30, 40], "counts": [0, 1200]}


def built(segmentation: Any, *, crowd: bool = False, area: Any = 50.0) -> AnnotationIndex:
    builder = IndexBuilder(Path("/set"), {3: "cat"})
    builder.add_image(Path("/set/a.jpg"), 7, (30, 40))
    builder.add_object(7, [5, 5, 10, 10], 3, 1, area=area, crowd=crowd, segmentation=segmentation)
    return builder.build()


def string_of(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


KEPT: dict[str, Any] = {
    "polygon": [SQUARE],
    "two polygons": [SQUARE, [6.5, 6, 7, 6, 7, 9.25]],
    "rounded box": [[3, 5, 15, 5, 15, 17]],
    "counts": {"size": [30, 40], "counts": [5, 7, 1188]},
    "string": {"size": [30, 40], "counts": string_of(np.arange(1200).reshape(30, 40) % 7 == 0)},
}


@pytest.mark.parametrize("case", KEPT)
def test_an_outline_is_kept_as_it_is(case):
    index = built(KEPT[case])
    assert index.faults == ()
    found = index.segmentation(0)
    assert found is not None
    assert found.to_coco() == KEPT[case]
    assert [s.to_coco() for s in index.segmentations(0) if s] == [KEPT[case]]


@pytest.mark.parametrize("nothing", [None, []])
def test_an_object_may_have_no_outline(nothing):
    index = built(nothing)
    assert (index.faults, index.segmentation(0), index.segmentations(0)) == ((), None, [None])


BAD: dict[str, tuple[Any, str, str]] = {
    "empty polygon": ([[]], "invalid_segmentation", "at least three points"),
    "two points": ([[5, 5, 9, 9]], "invalid_segmentation", "at least three points"),
    "odd": ([SQUARE[:7]], "invalid_segmentation", "at least three points"),
    "one of two": ([SQUARE, [1]], "invalid_segmentation", "list of polygons"),
    "flat": (SQUARE, "invalid_segmentation", "list of polygons"),
    "text": ("polygon", "invalid_segmentation", "'polygon'"),
    "words": ([["5"] * 6], "invalid_segmentation", "list of polygons"),
    "nan": ([[float("nan"), *SQUARE[1:]]], "invalid_segmentation", "finite"),
    "truth": ([[True, *SQUARE[1:]]], "invalid_segmentation", "finite"),
    "outside": ([[20, 20, 30, 20, 30, 30]], "segmentation_outside_box", "15.0 pixels"),
    "empty object": ({}, "invalid_segmentation", "size"),
    "no size": ({"counts": [0, 1200]}, "invalid_segmentation", "size"),
    "no counts": ({"size": [30, 40]}, "invalid_segmentation", "counts"),
    "sum": ({"size": [30, 40], "counts": [0, 1199]}, "invalid_segmentation", "add up"),
    "negative": ({"size": [30, 40], "counts": [-1, 1201]}, "invalid_segmentation", "counts"),
    "no pixel": ({"size": [30, 40], "counts": [1200]}, "invalid_segmentation", "marks no pixel"),
    "no string": ({"size": [30, 40], "counts": "not an rle"}, "invalid_segmentation", "counts"),
    "cut string": (
        {"size": [30, 40], "counts": KEPT["string"]["counts"][:-1]},
        "invalid_segmentation",
        "add",
    ),
    "endless": ({"size": [30, 40], "counts": "o" * 40}, "invalid_segmentation", "counts"),
    "other size": ({"size": [40, 30], "counts": [0, 1200]}, "segmentation_size", "40x30"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_outline_is_a_warning_and_the_object_stays(case):
    raw, kind, word = BAD[case]
    index = built(raw)
    [fault] = index.faults
    assert (fault.severity, fault.kind, fault.file, fault.id) == ("warning", kind, "a.jpg", 1)
    assert word in fault.message
    assert index.num_objects == 1
    assert index.segmentation(0) is None


def test_a_crowd_with_polygons_is_a_warning_and_keeps_them():
    index = built([SQUARE], crowd=True)
    assert [f.kind for f in index.faults] == ["crowd_polygon"]
    assert index.segmentation(0) is not None
    assert built(FULL, crowd=True).faults == ()


@pytest.mark.parametrize(
    ("area", "kept", "kinds"),
    [
        (None, 100.0, []),
        (50, 50.0, []),
        (0, 0.0, ["invalid_area"]),
        (-3.0, -3.0, ["invalid_area"]),
        (float("nan"), 100.0, ["invalid_area"]),
        ("50", 100.0, ["invalid_area"]),
    ],
)
def test_area(area, kept, kinds):
    index = built(None, area=area)
    assert index.areas.tolist() == [kept]
    assert [f.kind for f in index.faults] == kinds


def test_run_lengths_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    for share in (0.001, 0.3, 0.5, 0.99):
        mask = generator.random((120, 77)) < share
        runs = run_lengths(string_of(mask))
        back = coco_mask.frPyObjects({"size": [120, 77], "counts": runs.tolist()}, 120, 77)
        assert np.array_equal(coco_mask.decode(back) > 0, mask)


def test_masks_are_those_of_pycocotools():
    polygons = Segmentation((np.array(SQUARE, float), np.array([20.0, 2, 30, 2, 25, 12])))
    parts = coco_mask.frPyObjects(polygons.to_coco(), 30, 40)
    assert np.array_equal(polygons.mask(30, 40), coco_mask.decode(coco_mask.merge(parts)) > 0)
    assert Segmentation(rle=KEPT["counts"]).mask(30, 40).sum() == 7
    drawn = Segmentation(rle=KEPT["string"]).mask(30, 40)
    assert np.array_equal(drawn, np.arange(1200).reshape(30, 40) % 7 == 0)
    with pytest.raises(ValueError, match=r"30x40 .*cannot be decoded at 40x30"):
        Segmentation(rle=KEPT["counts"]).mask(40, 30)


def test_a_choice_of_images_has_their_outlines(tmp_path):
    content = coco_content()
    for number, annotation in enumerate(content["annotations"]):
        x, y, *_ = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + 4, y, x + 4 + number, y + 4]]
    index = read(write_coco(tmp_path / "set", content)).splits["train"]
    back = index.take([2, 1, 0])
    rows = [back.segmentation(i) for i in range(back.num_objects)]
    assert [len(back.segmentations(row)) for row in range(3)] == [0, 1, 2]
    assert [s.to_coco() for s in rows if s] == [content["annotations"][i]["segmentation"] for i in (2, 0, 1)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_outlines_are_those_that_pycocotools_reads(split, test_data):
    root = test_data / "coco"
    index = read(root).splits[split]
    assert index.faults == ()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(root / "annotations" / f"instances_{split}2017.json"))
    objects = 0
    for row in range(len(index)):
        height, width = index.size(row)
        expected = theirs.imgToAnns[index.image_id(row)]
        found = index.segmentations(row)
        assert len(found) == len(expected)
        for outline, annotation in zip(found, expected, strict=True):
            assert outline is not None
            assert outline.to_coco() == annotation["segmentation"]
            if objects % 9 == 0:
                assert np.array_equal(outline.mask(height, width), theirs.annToMask(annotation) > 0)
            objects += 1
    assert objects == len(
        json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())["annotations"]
    )


def test_the_dirty_outlines_are_found(test_data):
    faults = {f.id: f.kind for f in read(test_data / "dirty/coco").faults if f.file.endswith("ann_segm.jpg")}
    assert faults == {
        131: "invalid_segmentation",
        132: "invalid_segmentation",
        133: "invalid_segmentation",
        134: "segmentation_outside_box",
        135: "invalid_segmentation",
        136: "segmentation_size",
    }
