"""A copy in another format: outlines in YOLO, odd names, and words about real losses only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_sets import write_coco, write_image, write_voc, write_yolo

from datamodules.formats.detect import read
from datamodules.writers.convert import TARGETS, convert
from datamodules.writers.yolo import joined

SQUARE = [4.0, 6.0, 14.0, 6.0, 14.0, 16.0, 4.0, 16.0]
STAR = [20.0, 3.25, 27.5, 10.0, 35.125, 3.5, 31.0, 20.0, 22.0, 19.0]
FAR_PART = [40.0, 30.0, 48.0, 30.0, 44.0, 38.0]


def bounds(*polygons: list[float]) -> list[float]:
    points = np.concatenate([np.array(p).reshape(-1, 2) for p in polygons])
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return [float(v) for v in (x0, y0, x1 - x0, y1 - y0)]


def annotated(box: list[float], segmentation: Any = None, **more: Any) -> dict[str, Any]:
    made = {"category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **more}
    return made if segmentation is None else {**made, "segmentation": segmentation}


def coco(
    root: Path, *images: list[dict[str, Any]], classes: tuple[str, ...] = ("cat",), names: Any = None
) -> Path:
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [
        {"id": i, "name": name} for i, name in enumerate(classes, start=1)]}  # fmt: skip
    for k, objects in enumerate(images):
        name = names[k] if names else f"{k}.png"
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / "drawn.png", (60, 40), k)
        (root / "drawn.png").rename(root / "train" / name)
        content["images"].append({"id": k, "file_name": name, "width": 60, "height": 40})
        for made in objects:
            content["annotations"].append({"id": len(content["annotations"]) + 1, "image_id": k, **made})
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def outlines(root: Path) -> list[Any]:
    index = read(root).splits["train"]
    return [s and s.to_coco() for row in range(len(index)) for s in index.segmentations(row)]


def test_outlines_go_to_yolo_and_back(tmp_path):
    made = [
        [annotated(bounds(STAR), [STAR]), annotated(bounds(SQUARE), [SQUARE])],
        [annotated([1, 2, 30, 8])],
    ]
    root = coco(tmp_path / "set", *made)
    done = convert(read(root), "yolo", tmp_path / "yolo")
    assert not [words for words in done.losses if "outline" in words or "area" in words]
    assert len((tmp_path / "yolo/labels/train/0.txt").read_text().splitlines()[0].split()) == 1 + len(STAR)
    convert(read(tmp_path / "yolo"), "coco", tmp_path / "back")
    before, after = read(root).splits["train"], read(tmp_path / "back").splits["train"]
    assert np.allclose(before.boxes_xywh, after.boxes_xywh, atol=1e-9)
    ours, theirs = outlines(root), outlines(tmp_path / "back")
    assert theirs[2] is None
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert np.allclose(a, b, atol=1e-9)


def test_a_file_never_mixes_the_two_kinds_of_rows(tmp_path):
    """Other programs would take centre and sides for two points."""
    root = coco(tmp_path / "set", [annotated(bounds(STAR), [STAR]), annotated([1, 2, 30, 8])])
    done = convert(read(root), "yolo", tmp_path / "out")
    assert done.losses["boxes without an outline beside objects that have one, written as their corners"] == 1
    rows = [line.split() for line in (tmp_path / "out/labels/train/0.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [1 + len(STAR), 9]
    assert np.allclose(read(tmp_path / "out").splits["train"].boxes_xywh[1], [1, 2, 30, 8])


def test_parts_are_joined_without_changing_area_or_box(tmp_path):
    from pycocotools import mask

    made = annotated(bounds(STAR, FAR_PART), [STAR, FAR_PART])
    root = coco(tmp_path / "set", [made])
    done = convert(read(root), "yolo", tmp_path / "out")
    assert done.losses["outlines of several parts, joined to one by lines without width"] == 1
    [[whole]] = outlines(tmp_path / "out")
    assert np.allclose(read(tmp_path / "out").splits["train"].boxes_xywh[0], made["bbox"])

    def drawn(polygons: list[list[float]]) -> np.ndarray:
        return mask.decode(mask.frPyObjects([[8 * v for v in p] for p in polygons], 320, 480)).any(axis=2)

    assert abs(int(drawn([whole]).sum()) - int(drawn([STAR, FAR_PART]).sum())) < 250  # the line itself
    hole = np.array([[1, 1], [2, 1], [2, 2]])
    assert len(joined([np.array([[0, 0], [9, 0], [9, 9]]), hole, hole + 5])) == 3 + 4 + 4 + 2


def test_what_yolo_cannot_hold_is_counted_once(tmp_path):
    rle = {"size": [40, 60], "counts": [40 * 4 + 6, 10, 40 * 60 - 40 * 4 - 16]}
    loose = [x - 5 for x in bounds(STAR)[:2]] + [x + 10 for x in bounds(STAR)[2:]]
    near = [bounds(STAR)[0] - 0.5, *bounds(STAR)[1:]]
    one = [
        annotated([4, 6, 1, 10], rle),
        annotated([4, 6, 1, 10], rle, iscrowd=1),
        annotated(loose, [STAR]),
        annotated(near, [STAR], area=12.5),
    ]
    losses = convert(read(coco(tmp_path / "set", one, one)), "yolo", tmp_path / "out").losses
    told = {
        "crowd regions, left out": 2,
        "outlines given as masks (RLE); such an outline is left out, the box is written": 2,
        "outlines that miss the edge of their box by more than a pixel; such an outline is left out, the box is "
        "written": 2,
        "boxes that miss the edge of their outline by up to a pixel; that edge is the box": 2,
        "areas that are not those of the box": 2,
    }
    assert {words: losses.get(words) for words in told} == told


@pytest.mark.parametrize("write", [write_yolo, write_voc])
@pytest.mark.parametrize("target", ["yolo", "voc", "csv"])
def test_what_the_source_never_had_is_not_told(write, target, tmp_path):
    done = convert(read(write(tmp_path / "set")), target, tmp_path / "out")
    assert (done.losses, done.left_out) == ({}, 0)
    assert not done.renamed or target == "voc"  # whose splits share a folder


def test_ids_of_coco_are_told(tmp_path):
    losses = convert(read(write_coco(tmp_path / "set")), "yolo", tmp_path / "out").losses
    assert losses["ids of images, which are numbered anew"] == 6


def test_only_faults_that_left_something_out_count(tmp_path):
    box = annotated([1, 2, 30, 8])
    past = annotated([40, 2, 30, 8])  # past the edge: told, and read
    assert convert(read(coco(tmp_path / "a", [box, past])), "csv", tmp_path / "b").left_out == 0
    gone = annotated([80, 2, 30, 8])
    source = read(coco(tmp_path / "c", [box, gone]))
    assert convert(source, "csv", tmp_path / "d").left_out == len(source.faults) == 1


NAMES = ("end .png", "end.png ", " front.png", "back\\slash.png", "new\nline.png", "tab\t.png", "#hash.png",
         "quote\".png", "it's.png", "semi;colon.png", "comma,.png", "per%20cent.png", "-dash.png", "日本.png",
         "e\u0301.png", "\u00e9.png", "\ufeffbom.png", "a 1.png", "a -1.png", "a.png", "dot..png", "d /in.png",
         "\x1b[31mred.png", "line\u2028.png", "&amp;<b>.png", "emoji😀.png", "a.b.c.png", "$x`y`.png")  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_odd_file_names_do_not_stop_the_whole_set(target, tmp_path):
    images = [[annotated([1 + k % 20, 2, 30, 8])] for k in range(len(NAMES))]
    source = read(coco(tmp_path / "set", *images, names=NAMES))
    assert len(source.splits["train"]) == len(NAMES)
    done = convert(source, target, tmp_path / "out")
    copy = read(tmp_path / "out")
    assert copy.format == target
    index, other = source.splits["train"], copy.splits["train"]
    ours = {index.path(k).read_bytes(): index.objects(k).boxes_xywh.tolist() for k in range(len(index))}
    theirs = {other.path(k).read_bytes(): other.objects(k).boxes_xywh.tolist() for k in range(len(other))}
    assert theirs.keys() == ours.keys()
    assert all(np.allclose(theirs[data], ours[data]) for data in ours)
    assert {f"train/{name}" for name in (NAMES[0], NAMES[1], NAMES[3], NAMES[4])} <= done.renamed.keys()
    assert "train/日本.png" not in done.renamed
    assert not any(c in name for name in done.renamed.values() for c in "\\\n\t\x1b\u2028\ufeff")


@pytest.mark.parametrize("target", ["voc", "csv"])
def test_spaces_of_class_names_are_told(target, tmp_path):
    classes = ("cat ", "dog", "two  words", "new\nline")
    one = [annotated([k, k, 9, 8], category_id=k) for k in range(1, 5)]
    done = convert(read(coco(tmp_path / "set", one, classes=classes)), target, tmp_path / "out")
    words = "class names with spaces at an end or control characters, which are taken out"
    assert done.losses[words] == 2
    assert set(read(tmp_path / "out").classes.values()) == {"cat", "dog", "two  words", "new line"}


def test_yolo_and_coco_keep_class_names_as_they_are(tmp_path):
    classes = ("cat ", " dog", "no", "0042", 'it\'s: "x"', "#1")
    one = [annotated([k, k, 9, 8], category_id=k) for k in range(1, 7)]
    source = read(coco(tmp_path / "set", one, classes=classes))
    for target in ("yolo", "coco"):
        convert(source, target, tmp_path / target)
        assert tuple(read(tmp_path / target).classes.values()) == classes
