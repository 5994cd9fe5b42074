import numpy as np
import pytest
from PIL import Image

from zoo.contract.labels import LabelMap
from zoo.pictures.painting import (
    Layer,
    class_colour,
    colour_of,
    light,
    owners_of,
    paint,
    resized_owners,
    shade,
)

GREY = Image.new("RGB", (120, 80), (100, 100, 100))
RED, BLUE = (200, 40, 40), (40, 40, 200)


def square(x0, y0, x1, y1, size=(80, 120)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_only_pixels_of_segments_are_touched():
    """A tint inside, the lightened colour on the rim, and the image everywhere else."""
    mask = square(20, 10, 60, 50)
    pixels = np.asarray(paint(GREY, owners_of([mask], (80, 120)), [Layer(RED, 0.5, 2)]))
    assert (pixels[~mask] == 100).all()
    assert pixels[30, 40].tolist() == [150, 70, 70]
    for x, y in ((20, 30), (21, 30), (59, 30), (40, 10), (40, 49)):
        assert np.abs(pixels[y, x] - (0.95 * np.array(light(RED)) + 5)).max() <= 1, (x, y)
    assert pixels[30, 22].tolist() == [150, 70, 70]  # the line is two pixels thin
    assert np.asarray(GREY).max() == 100  # the image given is left alone


def test_no_line_along_the_frame_of_the_picture():
    pixels = np.asarray(paint(GREY, owners_of([square(0, 0, 120, 80)], (80, 120)), [Layer(RED, 0.5, 2)]))
    assert (pixels == [150, 70, 70]).all()


def test_between_two_segments_the_thicker_line_is_alone():
    owners = owners_of([square(0, 0, 60, 80), square(60, 0, 120, 80)], (80, 120))
    pixels = np.asarray(paint(GREY, owners, [Layer(RED, 0.5, 2), Layer(BLUE, 0.5, 1)]))
    assert np.abs(pixels[40, 59] - (0.95 * np.array(light(RED)) + 5)).max() <= 1
    assert pixels[40, 60].tolist() == [70, 70, 150]
    equal = np.asarray(paint(GREY, owners, [Layer(RED, 0.5, 1), Layer(BLUE, 0.5, 1)]))
    assert np.abs(equal[40, 60] - (0.95 * np.array(light(BLUE)) + 5)).max() <= 1


def test_a_layer_without_a_line_is_a_tint():
    mask = square(20, 10, 60, 50)
    pixels = np.asarray(paint(GREY, owners_of([mask], (80, 120)), [Layer(RED, 0.5, 0)]))
    assert (pixels[mask] == [150, 70, 70]).all()
    assert (pixels[~mask] == 100).all()


def test_nothing_to_paint_is_the_picture():
    assert paint(GREY, np.full((80, 120), -1, dtype=np.int32), []) is GREY
    nowhere = paint(GREY, np.full((80, 120), -1, dtype=np.int32), [Layer(RED, 0.5, 2)])
    assert np.array_equal(nowhere, GREY)


def test_the_first_of_masks_that_overlap_has_the_pixels():
    owners = owners_of([square(10, 10, 30, 30), square(20, 10, 40, 30)], (80, 120))
    assert owners[20, 25] == 0
    assert owners[20, 35] == 1
    assert owners[0, 0] == -1


@pytest.mark.parametrize("size", [(40, 60), (160, 240), (101, 77)])
def test_owners_keep_their_places_at_other_sizes(size):
    owners = owners_of([square(30, 20, 90, 60), square(40, 30, 50, 40)], (80, 120))
    found = resized_owners(owners, size)
    assert found.shape == size
    assert set(np.unique(found)) == {-1, 0}  # the second lies below the first
    rows, columns = np.nonzero(found == 0)
    assert abs((rows.max() + 1) / size[0] - 60 / 80) < 0.03
    assert abs(columns.min() / size[1] - 30 / 120) < 0.03


def test_edges_of_enlarged_segments_are_no_stairs():
    triangle = np.tril(np.ones((40, 40), dtype=bool))
    found = resized_owners(owners_of([triangle], (40, 40)), (400, 400))
    edge = (found == 0).sum(axis=1)
    assert np.abs(np.diff(edge[20:380])).max() < 4  # stairs are ten pixels high


def test_instances_of_a_class_differ_in_shade():
    shades = [shade(RED, number) for number in range(7)]
    assert shades[0] == RED
    assert len(set(shades)) == 7
    assert shade(RED, 7) == RED


def test_colours_of_the_class_list_go_before_our_own():
    labels = LabelMap.contiguous(["cup", "dog"], [1, 2])
    assert colour_of(labels, 1) == class_colour(1)
    told = LabelMap(("cup", "dog"), (1, 2), (0, 1), 2, colors=((0, 0, 0), BLUE))
    assert colour_of(told, 0) == (0, 0, 0)
    assert colour_of(told, 1) == BLUE
    assert colour_of(told, 9) == class_colour(9)
