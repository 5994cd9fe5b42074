"""The ceiling that COCO's limit of 100 detections sets is the AP that the evaluator gives a perfect detector."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.contract.coco_limit import DETECTIONS, ceiling
from zoo.evaluation.coco_ap import Evaluation, score_table
from zoo.evaluation.coco_evaluator import MAX_DETECTIONS, Collected


def perfect(counts: list[list[int]]) -> Evaluation:
    """Every object found exactly; counts [images][classes]."""
    boxes, images, labels = [], [], []
    for image, row in enumerate(counts):
        for label, number in enumerate(row):
            boxes += [[3.0 * (k % 40), 3.0 * (k // 40), 2.0, 2.0] for k in range(number)]
            images += [image] * number
            labels += [label] * number
    box, image, label = np.array(boxes), np.array(images), np.array(labels)
    sizes = np.array([[k, 200, 200] for k in range(len(counts))])
    found = np.column_stack([box, np.linspace(0.9, 0.8, len(box))])
    truth = np.column_stack([box, np.full(len(box), 4.0)])
    return Evaluation(
        Collected(sizes, found, label, image, truth, np.column_stack([label, 0 * label]), image)
    )


@pytest.mark.parametrize(
    "counts",
    [[[196]], [[101]], [[200]], [[250, 3]], [[150, 120], [3, 400], [0, 1]], [[100], [300]], [[1000]]],
)
def test_the_ceiling_is_what_a_perfect_detector_gets(counts):
    evaluation = perfect(counts)
    image = evaluation.data.annotation_image
    found = ceiling(image + 7, evaluation.data.annotation_labels[:, 0])
    assert found is not None
    assert found.ap == pytest.approx(evaluation.scores["AP"], abs=1e-9)
    assert found.images == sum(max(row) > 100 for row in counts)
    assert found.objects == max(max(row) for row in counts)
    assert counts[found.fullest[0] - 7][found.fullest[1]] == found.objects
    last = score_table(evaluation).splitlines()[-1]
    assert "100 detections of an image and class" in last
    assert f"AP is at most {found.ap:.2f}" in last


def test_up_to_100_nothing_is_said():
    evaluation = perfect([[100, 100], [100, 99]])
    assert ceiling(evaluation.data.annotation_image, evaluation.data.annotation_labels[:, 0]) is None
    assert ceiling(np.zeros(0, int), np.zeros(0, int)) is None
    assert "at most" not in score_table(evaluation)
    assert DETECTIONS == MAX_DETECTIONS[-1]
