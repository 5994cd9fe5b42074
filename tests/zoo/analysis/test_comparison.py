"""The difference of two models, against each one's own evaluation of the resampled images."""

import numpy as np
import pytest
from evaluated import BOX, FAR, filled, hard_images, one_image

from zoo.analysis.comparison import compared, disagreement
from zoo.analysis.confusion import confusion
from zoo.evaluation.bootstrap import drawn


def worse(images, share, seed=0):
    """The same images, with a share of the detections moved away."""
    rng = np.random.default_rng(seed)
    changed = []
    for (found,), batch in images:
        boxes = found.boxes_xyxy.clone()
        boxes[np.flatnonzero(rng.random(len(boxes)) < share)] += 500
        changed.append(([found._replace(boxes_xyxy=boxes)], batch))
    return changed


@pytest.fixture(scope="module")
def pair():
    images = hard_images(1)
    return filled(worse(images, 0.5)).evaluation(), filled(images).evaluation()


def test_values_are_those_of_both_and_the_interval_is_of_the_same_samples(pair):
    first, second = pair
    result = compared(first, second, samples=100, seed=3)
    assert (result.ap.first, result.ap.second) == pytest.approx(
        (first.scores["AP"], second.scores["AP"]), abs=1e-12
    )
    assert result.ap50.value == pytest.approx(second.scores["AP50"] - first.scores["AP50"], abs=1e-12)
    weights = drawn(first.num_images, 100, 3)
    apart = second.resampled(weights)["AP"] - first.resampled(weights)["AP"]
    low, high = np.quantile(apart, [0.025, 0.975]) - (apart.mean() - result.ap.value)
    assert result.ap.interval == pytest.approx((low, high), abs=1e-12)
    assert result.ap.is_clear
    for head, difference in result.classes.items():
        assert difference.first == pytest.approx(first.per_class[head], abs=1e-12)
        assert difference.interval[0] <= difference.value <= difference.interval[1]


def test_pairing_makes_the_interval_narrower(pair):
    first, second = pair
    alone = [e.interval(samples=200)["AP"] for e in pair]
    apart = np.hypot(*(high - low for low, high in alone))
    low, high = compared(first, second, samples=200).ap.interval
    assert high - low < 0.9 * apart


def test_a_model_does_not_differ_from_itself(pair):
    result = compared(pair[1], pair[1])
    assert (result.ap.value, result.ap.interval, result.ap.is_clear) == (0, (0, 0), False)
    assert not any(d.is_clear for d in result.classes.values())


def test_a_small_change_is_not_clear():
    images = hard_images(1)
    result = compared(filled(worse(images, 0.03)).evaluation(), filled(images).evaluation())
    assert result.ap.interval[0] < result.ap.interval[1]
    assert not result.ap.is_clear


def test_other_images_or_annotations_are_refused(pair):
    with pytest.raises(ValueError, match="other images"):
        compared(pair[0], filled(hard_images(1)[:5]).evaluation())
    images = [one_image(1, [], [(0, *BOX, 400, 0)]), one_image(1, [], [(1, *BOX, 400, 0)])]
    with pytest.raises(ValueError, match="other annotations"):
        compared(*(filled([image]).evaluation() for image in images))


def test_where_they_disagree():
    def shown(*rows):
        return [(c, x, y, x + w, y + h, s) for c, (x, y, w, h), s in rows]

    truth = [(0, *BOX, 400, 0), (1, *FAR, 400, 0)]
    first = [
        one_image(1, shown((0, BOX, 0.9), (1, FAR, 0.2)), truth),
        one_image(2, shown((0, BOX, 0.9)), truth),
        one_image(3, shown((0, BOX, 0.9), (1, BOX, 0.8), (2, BOX, 0.7)), truth),
    ]
    second = [
        one_image(1, shown((1, FAR, 0.9)), truth),
        one_image(2, shown((0, BOX, 0.9)), truth),
        one_image(3, shown((0, BOX, 0.9)), truth),
    ]
    a, b = (filled(images).evaluation().data for images in (first, second))
    result = disagreement(confusion(a, 0.5), confusion(b, 0.5), a.annotation_image, 3)
    assert result.only_first.tolist() == [1, 0, 0]
    assert result.only_second.tolist() == [1, 0, 0]
    assert (result.wrong_first.tolist(), result.wrong_second.tolist()) == ([0, 0, 2], [0, 0, 0])
    assert result.most(5) == [0, 2]
