"""The six kinds of errors and what they cost, against numbers of tidecv 1.0.1."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluated import BOX, FAR, annotated, filled, found, from_coco, hard_images, one_image

from zoo.analysis.tide import KINDS, tide_errors

CASES = json.loads(Path(__file__).with_name("tidecv_1.0.1.json").read_text())


def evaluation_of(case):
    truth = {
        "images": [{"id": i, "height": h, "width": w} for i, h, w in case["images"]],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": box, "area": area, "iscrowd": crowd}
            for i, c, *box, area, crowd in case["annotations"]
        ],
    }
    return from_coco(
        truth,
        [{"image_id": i, "category_id": c, "bbox": box, "score": s} for i, c, *box, s in case["results"]],
    )


def errors_of(*images):
    return tide_errors(filled(images).evaluation().data)


@pytest.mark.parametrize("case", CASES, ids=[case["name"][:20] for case in CASES])
def test_counts_and_costs_are_those_of_tidecv(case):
    errors = tide_errors(evaluation_of(case).data)
    assert errors.counts == case["tidecv"]["counts"]
    assert errors.costs() == pytest.approx(case["tidecv"]["costs"], abs=1e-12)
    assert float(np.nanmean(errors.ap)) == pytest.approx(case["tidecv"]["ap"], abs=1e-12)


def test_the_cases_have_errors_of_every_kind():
    assert all(any(case["tidecv"]["costs"][kind] > 0.001 for case in CASES) for kind in KINDS)
    assert any(row[-1] for case in CASES for row in case["annotations"])  # crowds


def test_what_each_kind_is():
    x, y, w, h = BOX
    shifted = (x + w / 2, y, w, h)  # IoU 1/3
    truth = [annotated(0, BOX), annotated(1, FAR)]
    shown = [
        found(0, BOX, 0.9), found(0, BOX, 0.8), found(2, BOX, 0.7), found(1, shifted, 0.6),
        found(0, (300, 10, 20, 20), 0.5), found(1, (FAR[0] + 10, FAR[1], 20, 20), 0.4),
    ]  # fmt: skip
    errors = errors_of(one_image(1, shown, truth))
    names = ["right", *KINDS]
    assert [names[k] for k in errors.kind] == [
        "right", "duplicate", "classification", "both", "background", "localisation",
    ]  # fmt: skip
    assert errors.object.tolist() == [0, -1, 0, -1, -1, 1]
    assert errors.corrected.tolist() == [False] * 5 + [
        True
    ]  # the object of the classification error is found
    assert (errors.missed.tolist(), errors.unfound.tolist()) == ([], [1])
    nothing = errors_of(one_image(1, [], truth))
    assert (nothing.counts["missed"], nothing.missed.tolist()) == (2, [0, 1])


def test_a_detection_on_a_crowd_costs_nothing():
    crowd = [annotated(0, BOX), annotated(0, FAR, crowd=1)]
    errors = errors_of(one_image(1, [found(0, BOX, 0.5), found(0, FAR, 0.9)], crowd))
    assert errors.ignored.tolist() == [True, False]
    assert float(np.nanmean(errors.ap)) == pytest.approx(1)
    assert set(errors.costs().values()) == {0.0}


def test_only_the_best_hundred_detections_of_an_image_count():
    shown = [found(0, FAR, 0.9)] * 100 + [found(0, BOX, 0.1)]
    errors = errors_of(one_image(1, shown, [annotated(0, BOX)]))
    assert (len(errors.found), len(errors.missed)) == (100, 1)


def test_costs_by_class_average_to_the_whole_where_every_class_stays():
    errors = tide_errors(filled(hard_images(1)).evaluation().data)
    by_class = errors.costs_by_class()
    assert errors.classes.tolist() == [0, 1, 2, 3]
    assert by_class["localisation"].mean() == pytest.approx(errors.costs()["localisation"])
    assert by_class["localisation"].max() > 0


def test_nothing_at_all():
    errors = tide_errors(filled([one_image(1, [], [])]).evaluation().data)
    assert set(errors.counts.values()) == {0}
    assert all(np.isnan(cost) for cost in errors.costs().values())
