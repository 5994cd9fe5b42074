"""AP of groups against pycocotools on the group alone, calibration against hotcoco."""

import numpy as np
import pytest
from evaluated import filled, hard_images, one_image

from zoo.analysis.calibration import calibration
from zoo.analysis.groups import by_class, by_fullness, by_size
from zoo.evaluation.coco_evaluator import AREAS, MAX_DETECTIONS, run_evaluator
from zoo.evaluation.operating_point import (
    Verdicts,
    best_f1,
    measured_at,
    point_of,
    verdicts,
    verdicts_by_class,
)


@pytest.fixture(scope="module")
def images():
    return hard_images(1)


@pytest.fixture(scope="module")
def evaluation(images):
    return filled(images).evaluation()


def test_classes_and_sizes_have_the_ap_of_pycocotools(images, evaluation):
    reference = filled(images, "pycocotools").evaluation()
    for head, group in by_class(evaluation).items():
        assert group.ap == pytest.approx(reference.per_class[head], abs=1e-12)
        assert group.interval[0] < group.ap < group.interval[1]
    sizes = by_size(evaluation)
    assert [g.ap for g in sizes] == pytest.approx([reference.scores[f"AP{s}"] for s in "sml"], abs=1e-12)
    counted = evaluation.data.annotation_labels[:, 1] == 0
    assert sum(g.objects for g in sizes) == counted.sum()
    assert all(g.interval[0] < g.ap < g.interval[1] for g in sizes)


def test_fullness_is_the_ap_of_those_images_alone(images, evaluation):
    counts = {batch.image_ids[0]: int((~batch.annotations.crowd).sum()) for _, batch in images}
    groups = by_fullness(evaluation)
    assert [g.name for g in groups] == ["1 to 4 objects", "5 to 9 objects"]
    for group, (low, high) in zip(groups, ((1, 4), (5, 9)), strict=True):
        own = [pair for pair in images if low <= counts[pair[1].image_ids[0]] <= high]
        alone = filled(own, "pycocotools").evaluation()
        assert group.ap == pytest.approx(alone.scores["AP"], abs=1e-12)
        assert group.ap50 == pytest.approx(alone.scores["AP50"], abs=1e-12)
        assert group.images == len(own)


def test_the_interval_of_a_group_of_all_images_is_that_of_the_evaluation():
    images = [pair for pair in hard_images(3) if 5 <= int((~pair[1].annotations.crowd).sum()) <= 9]
    evaluation = filled(images).evaluation()
    (group,) = by_fullness(evaluation)
    assert group.interval == pytest.approx(evaluation.interval()["AP"], abs=1e-12)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_curves_are_the_precision_of_pycocotools(images, backend):
    evaluation = filled(images, backend).evaluation()
    precision = evaluation.precision()
    raw = run_evaluator(evaluation.data, "pycocotools", AREAS, MAX_DETECTIONS).eval["precision"][..., 0, -1]
    assert precision.shape == (10, 101, len(evaluation.data.classes))
    assert np.array_equal(np.where(raw < 0, np.nan, raw), precision, equal_nan=True)


def test_calibration_is_that_of_hotcoco(evaluation):
    run = run_evaluator(evaluation.data, "hotcoco", AREAS, MAX_DETECTIONS)
    theirs, mine = run.calibration(n_bins=10, iou_threshold=0.5), calibration(verdicts(evaluation))
    assert mine.counts.tolist() == [row["count"] for row in theirs["bins"]]
    assert mine.error == pytest.approx(theirs["ece"])
    filled_bins = mine.counts > 0
    assert mine.right[filled_bins] == pytest.approx(
        [row["avg_accuracy"] for row, there in zip(theirs["bins"], filled_bins, strict=True) if there]
    )


def test_calibration_of_nothing():
    assert np.isnan(calibration(Verdicts(np.zeros(0), np.zeros(0, np.int64), 3)).error)
    sure = calibration(Verdicts(np.array([1.0, 1.0]), np.array([1, 0]), 1))
    assert (sure.counts[-1], sure.error) == (2, 0.5)


def test_a_wanted_precision_is_kept_at_the_highest_recall(evaluation):
    every = verdicts(evaluation)
    thresholds = [measured_at(every, t) for t in np.unique(every.scores)]
    wanted = sorted(p.precision for p in thresholds)[-2]
    point = point_of(every, wanted)
    assert point.precision >= wanted > best_f1(evaluation).precision
    assert point.recall == pytest.approx(max(p.recall for p in thresholds if p.precision >= wanted))
    assert point_of(every, 1.01) is None


def test_points_by_class_are_those_of_the_class_alone(images, evaluation):
    for head, found in verdicts_by_class(evaluation).items():
        own = [
            ([d[0]._replace(**{f: getattr(d[0], f)[d[0].labels == head] for f in ("scores", "labels", "boxes_xyxy")})],
             batch)
            for d, batch in images
        ]  # fmt: skip
        if not found.objects:
            assert point_of(found) is None
            continue
        shown = verdicts(filled(own).evaluation())
        assert point_of(found).threshold == pytest.approx(
            point_of(shown._replace(objects=found.objects)).threshold
        )


def test_groups_of_nothing():
    empty = filled([one_image(1, [], [])]).evaluation()
    assert (by_class(empty), by_size(empty), by_fullness(empty)) == ({}, [], [])
    assert empty.precision().shape == (10, 101, 0)
