"""The threshold of the best F1, against pycocotools at every threshold there is."""

import numpy as np
import pytest
from evaluated import BOX, FAR, annotated, filled, found, hard_images, matched_by_pycocotools, one_image
from pycocotools.coco import COCO

from zoo.evaluation.operating_point import OperatingPoint, best_f1


def of(*images):
    return best_f1(filled(images).evaluation())


def f1_of_pycocotools(evaluation, threshold):
    """From a run of its own over the detections that score at least the threshold."""
    truth, results = COCO(), COCO()
    truth.dataset = evaluation.ground_truth()
    results.dataset = {key: truth.dataset[key] for key in ("images", "categories")}
    shown = [r for r in evaluation.coco_results() if r["score"] >= threshold]
    results.dataset["annotations"] = [
        r | {"id": n, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for n, r in enumerate(shown, start=1)
    ]
    records = matched_by_pycocotools(truth, results)
    right = sum(int((r["dtMatches"][0].astype(bool) & ~r["dtIgnore"][0]).sum()) for r in records)
    counted = sum(int((~r["dtIgnore"][0]).sum()) for r in records)
    objects = sum(int((np.array(r["gtIgnore"]) == 0).sum()) for r in records)
    return 2 * right / (counted + objects)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_threshold_is_better_by_pycocotools(seed):
    evaluation = filled(hard_images(seed)).evaluation()
    point = best_f1(evaluation)
    assert point.f1 == pytest.approx(f1_of_pycocotools(evaluation, point.threshold), abs=1e-12)
    assert point.f1 == pytest.approx(2 / (1 / point.precision + 1 / point.recall))
    others = [f1_of_pycocotools(evaluation, score) for score in np.arange(1, 12) / 12]
    assert max(others) == pytest.approx(point.f1, abs=1e-12)
    assert min(others) < point.f1 - 0.01


def test_it_lies_between_the_last_right_and_the_first_wrong_detection():
    right = [found(0, BOX, 0.9), found(1, FAR, 0.6)]
    point = of(one_image(1, [*right, found(0, FAR, 0.5)], [annotated(0, BOX), annotated(1, FAR)]))
    assert (point.threshold, point.precision, point.recall, point.f1) == (0.55, 1.0, 1.0, 1.0)
    assert point.line() == "best F1 1.000 at threshold 0.550: precision 1.000, recall 1.000 at IoU 0.5"


def test_rounding_hides_no_detection_that_was_counted():
    detections = [found(0, BOX, 0.7006), found(0, FAR, 0.7005)]  # the middle rounds up to 0.701
    point = of(one_image(1, detections, [annotated(0, BOX)]))
    assert (point.threshold, point.f1) == (pytest.approx(0.7006), 1.0)


def test_a_class_that_no_image_has_is_wrong_and_a_crowd_is_neither():
    stray = of(one_image(1, [found(3, FAR, 0.95), found(0, BOX, 0.9)], [annotated(0, BOX)]))
    assert (stray.precision, stray.recall) == (0.5, 1.0)
    truth = [annotated(0, BOX), annotated(0, FAR, crowd=1)]
    crowd = of(one_image(1, [found(0, FAR, 0.95), found(0, BOX, 0.9)], truth))
    assert (crowd.precision, crowd.recall) == (1.0, 1.0)


def test_nothing_right_gives_none():
    assert of(one_image(1, [], [annotated(0, BOX)])) is None
    assert of(one_image(1, [found(0, FAR, 0.9)], [annotated(0, BOX)])) is None
    assert of(one_image(1, [found(0, FAR, 0.9)], [])) is None


def test_a_best_threshold_that_shows_mostly_what_is_wrong_is_told_with_the_number():
    assert OperatingPoint(0.3, 0.2, 0.5, 0.28).warning(100, 10) is None
    told = OperatingPoint(0.02, 0.04, 0.8, 0.08).warning(100, 10)
    assert told is not None
    assert told.startswith("at this threshold 200 boxes an image are shown, and 4% of them are right")
    assert OperatingPoint(0.02, 0.0, 0.0, 0.0).warning(0, 0) is not None
