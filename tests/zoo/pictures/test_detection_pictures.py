import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from zoo.contract.batch import Annotations, Batch, Detections, Targets
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.pictures.detections import (
    GAP,
    PADDING,
    annotations_of,
    compare,
    curves,
    gallery,
    paint_annotations,
    paint_detections,
    training_gallery,
)
from zoo.pictures.painting import LEGIBLE, class_colour

LABELS = LabelMap.contiguous(["cup", "dog", "owl"], [1, 2, 3])
GREY = torch.full((3, 500, 600), 90, dtype=torch.uint8)


def detections(*rows):
    """Rows of (score, head index, x0, y0, x1, y1)."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(values[:, 0], values[:, 1].long(), values[:, 2:])


def has(picture, colour, x, y):
    return np.array_equal(np.asarray(picture)[y, x], colour)


def test_box_has_its_class_colour_where_it_is():
    picture = paint_detections(GREY, detections((0.9, 1, 100, 200, 400, 450)), LABELS)
    assert picture.size == (600, 500)
    for x, y in ((100, 300), (400, 300), (250, 450), (390, 200)):
        assert has(picture, class_colour(1), x, y), (x, y)
    assert has(picture, (90, 90, 90), 250, 300)  # thin: the inside is the image
    assert has(picture, (90, 90, 90), 500, 100)


def test_only_scores_at_or_above_the_threshold_are_drawn():
    low = detections((0.5, 0, 50, 50, 300, 300), (0.29, 1, 100, 200, 400, 450))
    one, both = paint_detections(GREY, low, LABELS), paint_detections(GREY, low, LABELS, threshold=0.1)
    assert has(one, (90, 90, 90), 400, 400)
    assert has(both, class_colour(1), 400, 400)
    assert np.array_equal(paint_detections(GREY, low, LABELS, threshold=0.6), np.full((500, 600, 3), 90))


def test_the_image_given_is_left_alone():
    image = Image.new("RGB", (600, 500), (90, 90, 90))
    paint_detections(image, detections((0.9, 1, 100, 200, 400, 450)), LABELS)
    assert image.getextrema() == ((90, 90),) * 3
    pixels = GREY.clone()
    paint_detections(pixels, detections((0.9, 1, 100, 200, 400, 450)), LABELS)
    assert torch.equal(pixels, GREY)


def test_small_images_are_enlarged_with_their_boxes():
    small = GREY[:, :40, :60]
    picture = paint_detections(small, detections((0.9, 2, 20, 20, 50, 35)), LABELS)
    assert picture.size == (LEGIBLE, 320)  # 8 times
    assert has(picture, class_colour(2), 160, 250)
    assert paint_detections(GREY, detections(), LABELS, longest=300).size == (300, 250)


@pytest.mark.parametrize(
    ("box", "on_outline"),
    [
        ((-50, -80, 900, 900), [(0, 300), (599, 300), (300, 499)]),
        ((590, 490, 700, 900), [(590, 495), (599, 495)]),
        ((300, 200, 300, 200), [(300, 200)]),
        ((50, 160, 20, 110), [(20, 140), (50, 140), (40, 160)]),  # corners swapped
    ],
)
def test_boxes_beyond_the_image_or_degenerate_are_drawn(box, on_outline, monkeypatch):
    monkeypatch.setattr("zoo.pictures.detections._Tag.paint", lambda tag, pen, place: None)
    picture = paint_detections(GREY, detections((0.9, 0, *box)), LABELS)
    for x, y in on_outline:
        assert has(picture, class_colour(0), x, y), (x, y)


def test_labels_of_close_boxes_do_not_cover_each_other(monkeypatch):
    places = []
    monkeypatch.setattr("zoo.pictures.detections._Tag.paint", lambda tag, pen, place: places.append(place))
    close = detections(
        (0.9, 0, 200, 200, 300, 300), (0.8, 0, 210, 205, 310, 305), (0.7, 1, 205, 203, 300, 310)
    )
    paint_detections(GREY, close, LABELS)
    assert len(places) == 3
    for a in places:
        for b in places:
            apart = a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
            assert a is b or apart


def test_label_tells_class_and_score(monkeypatch):
    texts = []
    monkeypatch.setattr("zoo.pictures.detections._Tag.paint", lambda tag, pen, place: texts.append(tag.text))
    paint_detections(GREY, detections((0.914, 1, 9, 9, 99, 99), (0.4, 7, 9, 9, 99, 99)), LABELS)
    assert texts == ["class 7 0.40", "dog 0.91"]  # the best is drawn last, on top
    texts.clear()
    facts = Annotations(
        torch.tensor([[9.0, 9, 90, 90]] * 2),
        torch.ones(2),
        torch.tensor([0, 1]),
        torch.tensor([0, 1]).bool(),
        (2,),
    )
    paint_annotations(GREY, facts, LABELS)
    assert texts == ["cup", "dog (crowd)"]


def test_colours_are_stable_and_apart():
    colours = [class_colour(head) for head in range(80)]
    assert len(set(colours)) == 80
    near = np.abs(np.diff(np.array(colours[:20], dtype=int), axis=0)).sum(axis=1)
    assert near.min() > 60


def test_only_uint8_images_are_drawn():
    with pytest.raises(ValueError, match=r"torch.float32 \(3, 500, 600\); pictures are uint8"):
        paint_detections(GREY.float(), detections(), LABELS)


def test_gallery_puts_pictures_in_rows():
    pictures = [Image.new("RGB", (100, 60), (k, 0, 0)) for k in range(5)]
    sheet = gallery(pictures, columns=2)
    assert sheet.size == (2 * 100 + 3 * GAP, 3 * 60 + 4 * GAP)
    for k in range(5):
        assert has(sheet, (k, 0, 0), GAP + (k % 2) * (100 + GAP) + 50, GAP + k // 2 * (60 + GAP) + 30)
    assert gallery([Image.new("RGB", (4000, 2000))], 1).width < 1100
    assert gallery(pictures, 2, captions=list("abcde")).height > sheet.height
    with pytest.raises(ValueError, match="gallery of 5 pictures in 2 columns with 1 captions"):
        gallery(pictures, 2, captions=["a"])
    with pytest.raises(ValueError, match="gallery of 0 pictures"):
        gallery([])


def training_batch():
    images = torch.zeros(2, 3, 60, 80, dtype=torch.uint8)
    images[0], images[1, :, :30, :40] = 90, 120
    padding = torch.zeros(2, 60, 80, dtype=torch.bool)
    padding[1, 30:], padding[1, :, 40:] = True, True
    return Batch(
        images=images,
        padding=padding,
        targets=Targets(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]), (0, 1)),
        image_ids=(4, 5),
        original_sizes=((60, 80), (60, 80)),
    )


INPUT = InputContract(resize="stretch", size=(60, 80), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))


def test_training_gallery_shows_boxes_in_the_unpadded_image():
    sheet = training_gallery(training_batch(), LABELS, INPUT)
    assert sheet.size == (2 * LEGIBLE + 3 * GAP, 360 + 24 + 2 * GAP)
    left, top = LEGIBLE + 2 * GAP, GAP + 24  # of the second image, drawn 6 times larger
    assert has(sheet, class_colour(2), left + 60, top + 90)
    assert has(sheet, class_colour(2), left + 180, top + 110)
    assert has(sheet, (120, 120, 120), left + 120, top + 100)
    assert has(sheet, PADDING, left + 400, top + 300)
    assert has(sheet, (90, 90, 90), GAP + 200, top + 200)


def test_training_gallery_of_normalised_images_is_the_same():
    batch = training_batch()
    one, other = (training_gallery(b, LABELS, INPUT) for b in (batch, INPUT.normalize(batch)))
    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_training_gallery_stops_at_its_limit():
    assert training_gallery(training_batch(), LABELS, INPUT, limit=1).width == LEGIBLE + 2 * GAP


def test_annotations_of_one_image_of_a_batch():
    flat = Annotations(
        torch.arange(12.0).view(3, 4), torch.arange(3.0), torch.arange(3), torch.zeros(3).bool(), (1, 2)
    )
    batch = Batch(**{**vars(training_batch()), "annotations": flat})
    second = annotations_of(batch, 1)
    assert second.labels.tolist() == [1, 2]
    assert second.counts == (2,)
    picture = compare(GREY, detections((0.9, 1, 9, 9, 99, 99)), second, LABELS)
    assert picture.width == 2 * LEGIBLE + 3 * GAP
    with pytest.raises(ValueError, match="no annotations"):
        annotations_of(training_batch(), 0)


def test_curves_are_written(tmp_path):
    history = {
        "train/loss": [(k, 5.0 - k / 100) for k in range(300)],
        "val/AP": [(k, k / 400) for k in range(0, 300, 100)],
        "val/AP50": [],
    }
    path = tmp_path / "curves.png"
    curves(history, path, bands={"val/AP": (0.3, 0.6)})
    with Image.open(path) as both:
        assert both.format == "PNG"
        assert both.width > 1.5 * both.height
    curves({"train/loss": [(0, 1.0)]}, path)
    with Image.open(path) as one:
        assert one.width < 1.6 * one.height
    curves({}, path)


def test_a_band_beside_its_value_still_draws(tmp_path):
    curves({"val/AP": [(0, 0.7)]}, tmp_path / "curves.png", bands={"val/AP": (0.3, 0.6)})


def test_an_interval_stands_at_the_step_of_the_weights_it_is_of(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "matplotlib.backends.backend_agg.FigureCanvasAgg.print_png",
        lambda canvas, path: seen.append(canvas.figure),
    )
    for best in (20, None):
        curves(
            {"val/AP": [(10, 0.2), (20, 0.7), (30, 0.5)]}, tmp_path / "c.png", {"val/AP": (0.6, 0.8)}, best
        )
    bands = [figure.axes[0].lines[1].get_xdata() for figure in seen]
    assert [list(band) for band in bands] == [[20, 20], [30, 30]]


def halves():
    """Two masks of [500, 600]: left and right, overlapping in columns 200..300, as run lengths."""
    masks = np.zeros((500, 600, 2), dtype=np.uint8, order="F")
    masks[100:400, 50:300, 0], masks[100:400, 200:550, 1] = 1, 1
    return tuple(coco_mask.encode(masks))


def mixed(picture, x, y, head):
    return np.abs(np.asarray(picture)[y, x] - (45 + np.array(class_colour(head)) / 2)).max() <= 1


def test_masks_of_detections_are_tinted_the_best_on_top():
    found = detections((0.9, 0, 50, 100, 300, 400), (0.8, 1, 200, 100, 550, 400), (0.1, 2, 0, 0, 9, 9))
    found = found._replace(masks=(*halves(), halves()[0]))
    picture = paint_detections(GREY, found, LABELS)
    assert mixed(picture, 100, 300, 0)
    assert mixed(picture, 250, 300, 0)
    assert mixed(picture, 450, 300, 1)
    assert has(picture, (90, 90, 90), 300, 450)
    only_second = paint_detections(
        GREY, found._replace(scores=torch.tensor([0.1, 0.8, 0.1])), LABELS, threshold=0.5
    )
    assert mixed(only_second, 250, 300, 1)
    assert has(only_second, (90, 90, 90), 100, 300)


def test_masks_of_one_class_differ_in_shade():
    found = detections((0.9, 0, 50, 100, 300, 400), (0.8, 0, 200, 100, 550, 400))
    picture = np.asarray(paint_detections(GREY, found._replace(masks=halves()), LABELS)).astype(int)
    assert np.abs(picture[300, 100] - picture[300, 450]).max() > 10
    plain = np.asarray(paint_detections(GREY, found, LABELS))
    assert (plain[400, 60:290] == plain[400, 310:540][:1]).all()  # boxes without masks have one colour


def test_masks_of_the_ground_truth_are_tinted():
    boxes = torch.tensor([[50.0, 100, 250, 300], [200, 100, 350, 300]])
    truth = Annotations(boxes, torch.ones(2), torch.tensor([0, 1]), torch.zeros(2).bool(), (2,), halves())
    picture = paint_annotations(GREY, truth, LABELS)
    assert mixed(picture, 100, 300, 0)
    assert mixed(picture, 450, 300, 1)


def test_no_masks_at_all_is_the_image():
    assert (np.asarray(paint_detections(GREY, detections()._replace(masks=()), LABELS)) == 90).all()


def test_training_gallery_shows_masks():
    batch = training_batch()
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[0, 5:20, 5:35] = True
    with_mask = dataclasses.replace(batch, targets=batch.targets._replace(masks=mask))
    sheet = training_gallery(with_mask, LABELS, INPUT)
    left, top = LEGIBLE + 2 * GAP, GAP + 24
    expected = 60 + np.array(class_colour(2)) / 2
    assert np.abs(np.asarray(sheet)[top + 45, left + 45] - expected).max() <= 1
