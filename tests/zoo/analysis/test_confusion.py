"""The confusion matrix against pycocotools on its diagonal and a search by hand off it."""

import itertools

import numpy as np
import pytest
from evaluated import BOX, FAR, annotated, filled, found, hard_images, matched_by_pycocotools, one_image
from pycocotools.coco import COCO

from zoo.analysis.confusion import confusion
from zoo.evaluation.operating_point import measured_at, verdicts, verdicts_by_class


def iou(a, b, crowd=False):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


def by_hand(evaluation, threshold):
    """{(true, shown): count} by the rule, with pycocotools for the pairs of one class."""
    truth, results = evaluation.ground_truth(), evaluation.coco_results()
    results = [r | {"id": n} for n, r in enumerate(results, start=1) if r["score"] >= threshold]
    counts = {}
    for image in truth["images"]:
        shown = [r for r in results if r["image_id"] == image["id"]]
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        used, taken = right_by_pycocotools(image, objects, shown)
        for r in shown:
            if r["id"] in used:
                add(counts, used[r["id"]], r["category_id"])
        left = [r for r in shown if r["id"] not in used and not any(
            a["iscrowd"] and a["category_id"] == r["category_id"] and iou(r["bbox"], a["bbox"], True) >= 0.5
            for a in objects
        )]  # fmt: skip
        free = [a for a in objects if not a["iscrowd"] and a["id"] not in taken]
        while True:
            pairs = [
                (iou(r["bbox"], a["bbox"]), -left.index(r), r, a)
                for r, a in itertools.product(left, free)
                if r["category_id"] != a["category_id"]
            ]
            best = max(pairs, key=lambda pair: pair[:2], default=None)
            if best is None or best[0] < 0.5:
                break
            add(counts, best[3]["category_id"], best[2]["category_id"])
            left.remove(best[2])
            free.remove(best[3])
        for r in left:
            add(counts, -1, r["category_id"])
        for a in free:
            add(counts, a["category_id"], -1)
    return counts


def right_by_pycocotools(image, objects, shown):
    """({detection id: category} of the right ones, ids of the objects found) of one image."""
    gt, dt = COCO(), COCO()
    categories = [{"id": c, "name": str(c)} for c in range(4)]
    gt.dataset = {"images": [image], "categories": categories, "annotations": objects}
    dt.dataset = gt.dataset | {
        "annotations": [r | {"area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for r in shown]
    }
    used, taken = {}, set()
    for record in matched_by_pycocotools(gt, dt):
        rows = zip(record["dtIds"], record["dtMatches"][0], record["dtIgnore"][0], strict=True)
        for number, match, ignored in rows:
            if match and not ignored:
                used[number] = record["category_id"]
                taken.add(int(match))
    return used, taken


def add(counts, true, shown):
    counts[true, shown] = counts.get((true, shown), 0) + 1


def counts_of(matrix, heads):
    names = [*heads, -1]
    return {(names[r], names[c]): int(matrix[r, c]) for r, c in zip(*np.nonzero(matrix), strict=True)}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.75])
def test_it_is_what_the_rule_says(seed, threshold):
    images = [
        ([d[0]._replace(labels=(d[0].labels + (k % 4 == 0)) % 4)], batch)  # some classes are taken for others
        for k, (d, batch) in enumerate(hard_images(seed, 12))
    ]
    evaluation = filled(images).evaluation()
    heads = evaluation.data.classes
    mine = counts_of(confusion(evaluation.data, threshold).matrix(heads), heads)
    assert mine == by_hand(evaluation, threshold)
    assert len(mine) > 5


def test_the_diagonal_is_what_precision_and_recall_count():
    evaluation = filled(hard_images(1)).evaluation()
    heads = evaluation.data.classes
    matrix = confusion(evaluation.data, 0.5).matrix(heads)
    whole = measured_at(verdicts(evaluation), 0.5)
    assert np.trace(matrix[:-1, :-1]) / matrix[:-1].sum() == pytest.approx(whole.recall)
    assert np.trace(matrix[:-1, :-1]) / matrix[:, :-1].sum() == pytest.approx(whole.precision)
    for k, head in enumerate(heads):
        own = measured_at(verdicts_by_class(evaluation)[head], 0.5)
        assert matrix[k, k] == pytest.approx(own.recall * matrix[k].sum())
        assert matrix[k, k] == pytest.approx(own.precision * matrix[:, k].sum())


def test_a_right_class_goes_before_a_closer_box_and_each_is_used_once():
    near = (11, 10, 20, 20)
    shown = [found(1, BOX, 0.9), found(0, near, 0.3), found(2, near, 0.8)]
    both = confusion(filled([one_image(7, shown, [annotated(0, BOX)])]).evaluation().data, 0.2)
    assert counts_of(both.matrix([0, 1, 2]), [0, 1, 2]) == {(0, 0): 1, (-1, 1): 1, (-1, 2): 1}
    wrong = confusion(filled([one_image(7, shown, [annotated(0, BOX)])]).evaluation().data, 0.5)
    assert counts_of(wrong.matrix([0, 1, 2]), [0, 1, 2]) == {(0, 1): 1, (-1, 2): 1}
    assert (wrong.object.tolist(), wrong.found.tolist()) == ([0, -1], [0, 2])


def test_crowds_and_empty_images():
    crowd = one_image(1, [found(0, FAR, 0.9), found(1, FAR, 0.9)], [annotated(0, FAR, crowd=1)])
    result = confusion(filled([crowd, one_image(2, [], [])]).evaluation().data, 0.5)
    assert counts_of(result.matrix([0, 1]), [0, 1]) == {(-1, 1): 1}
    nothing = confusion(filled([one_image(1, [], [])]).evaluation().data, 0.5)
    assert nothing.matrix([]).tolist() == [[0]]
