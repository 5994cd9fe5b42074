import numpy as np
import pytest
import torch
from mask_case import LABELS
from PIL import Image

from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.pictures import segments as segment_pictures
from zoo.pictures.detections import GAP
from zoo.pictures.painting import LEGIBLE
from zoo.pictures.segments import compare_panoptic, paint_panoptic

GREY = torch.full((3, 400, 600), 100, dtype=torch.uint8)


def segmentation(*segments, size=(400, 600)):
    """Rows of (head index, is a thing, x0, y0, x1, y1)."""
    ids, rows = torch.zeros(size, dtype=torch.int32), []
    for number, (head, thing, x0, y0, x1, y1) in enumerate(segments, start=1):
        ids[y0:y1, x0:x1] = number
        rows.append(Segment(number, head, thing, (y1 - y0) * (x1 - x0), score=0.9))
    return PanopticSegmentation(ids, tuple(rows))


SCENE = segmentation((8, False, 0, 0, 600, 150), (2, True, 50, 200, 250, 380), (2, True, 350, 200, 550, 380))


@pytest.fixture
def written(monkeypatch):
    """(name written, its place, its style) instead of letters on the picture."""
    found = []
    monkeypatch.setattr(
        segment_pictures, "_write", lambda pen, one, place, style: found.append((style.text, place, style))
    )
    return found


def test_segments_have_the_colours_of_the_class_list(written):
    pixels = np.asarray(paint_panoptic(GREY, SCENE, LABELS)).astype(int)
    assert pixels.shape == (400, 600, 3)
    sky, first, second = pixels[70, 300], pixels[300, 150], pixels[300, 450]
    assert np.abs(sky - (0.58 * 100 + 0.42 * np.array([70, 130, 180]))).max() <= 1
    assert np.abs(first - (50 + np.array([220, 20, 60]) / 2)).max() <= 1
    assert np.abs(first - second).max() > 15  # two cats are told apart
    outside = np.asarray(SCENE.ids == 0)
    assert (pixels[outside] == 100).all()


def test_names_with_scores_lie_in_their_segments(written):
    paint_panoptic(GREY, SCENE, LABELS)
    assert sorted(text for text, _, _ in written) == ["cat 0.90", "cat 0.90", "sky 0.90"]
    for text, place, style in written:
        covered = SCENE.ids[place.top : place.top + style.height, place.left : place.left + style.width]
        assert len(covered.unique()) == 1
        assert (covered[0, 0] == 1) == text.startswith("sky")


def test_what_has_no_room_is_in_the_legend(written):
    crowded = segmentation(
        (8, False, 0, 0, 600, 300),
        *((3, True, x, 320, x + 6, 326) for x in (20, 60, 90)),
        (2, True, 9, 340, 15, 346),
    )
    picture = paint_panoptic(GREY, crowded, LABELS)
    assert [text for text, _, _ in written] == ["sky 0.90"]
    assert picture.width == 600
    assert picture.height > 400
    legend = np.asarray(picture)[400:]
    colours = {tuple(c) for c in legend.reshape(-1, 3)}
    assert (220, 20, 60) in colours
    assert (255, 255, 255) in colours


def test_the_legend_counts(monkeypatch):
    texts = []
    real = segment_pictures.shortened
    monkeypatch.setattr(
        segment_pictures, "shortened", lambda text, *rest: texts.append(text) or real(text, *rest)
    )
    paint_panoptic(GREY, segmentation(*((3, True, x, 320, x + 6, 326) for x in (20, 60, 90))), LABELS)
    assert texts == ["dog x3"]


@pytest.mark.parametrize("size", [(40, 60), (400, 90), (90, 1500)])
def test_any_shape_of_picture_is_drawn(size):
    image = Image.new("L", (size[1], size[0]), 90)
    found = segmentation((2, True, 5, 5, 40, 35), (8, False, 40, 0, 60, 20), size=size)
    picture = paint_panoptic(image, found, LABELS)
    assert picture.mode == "RGB"
    assert max(picture.width, size[0] * picture.width / size[1]) >= LEGIBLE - 1


def test_nothing_found_is_the_image():
    empty = PanopticSegmentation(torch.zeros(400, 600, dtype=torch.int32), ())
    assert (np.asarray(paint_panoptic(GREY, empty, LABELS)) == 100).all()


def test_ids_of_any_value_are_drawn(written):
    """As in COCO's files, where an id is a colour; and 0 where a segment has it, as in DETR's."""
    ids = torch.zeros(400, 600, dtype=torch.int32)
    ids[:200], ids[200:, :300] = 9_000_001, 77
    rows = (Segment(9_000_001, 8, False, 1), Segment(77, 2, True, 1), Segment(0, 3, True, 1, crowd=True))
    pixels = np.asarray(paint_panoptic(GREY, PanopticSegmentation(ids, rows), LABELS)).astype(int)
    assert sorted(text for text, _, _ in written) == ["cat", "dog (crowd)", "sky"]
    assert np.abs(pixels[300, 450] - (50 + np.array([0, 0, 142]) / 2)).max() <= 1


def test_an_image_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"segmentation of \(400, 600\) \(h, w\) on an image of \(300, 600\)"
    ):
        paint_panoptic(GREY[:, :300], SCENE, LABELS)


def test_prediction_beside_truth():
    picture = compare_panoptic(GREY, SCENE, SCENE, LABELS)
    assert picture.width == 2 * LEGIBLE + 3 * GAP
    left, right = (np.asarray(picture)[40:300, x : x + LEGIBLE] for x in (GAP, LEGIBLE + 2 * GAP))
    assert np.array_equal(left, right)
