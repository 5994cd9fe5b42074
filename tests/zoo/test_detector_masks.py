import json

import numpy as np
import pytest
import torch
from mask_case import INPUT, LABELS, mask_module, scripted
from PIL import Image
from pycocotools import mask as coco_mask

from zoo.contract.batch import Predictions
from zoo.contract.preprocess import InputContract
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.detector import Detector, counted_from_one, queries_above
from zoo.prediction.masks import sizes_without_padding

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))


def detector(panoptic=True) -> Detector:
    module = mask_module() if panoptic else mask_module(None)
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    return Detector(module, "tiny")


@pytest.fixture
def told(monkeypatch):
    """A panoptic model with the predictions of `scripted`."""
    found = detector()
    monkeypatch.setattr(found.module, "predictions", scripted)
    return found


def test_segments_are_counted_from_one_and_lie_where_the_masks_are(told):
    found = told.predict(PICTURE).panoptic
    assert [(s.id, s.label, s.is_thing) for s in found.segments] == [
        (1, 2, True),
        (2, 3, True),
        (3, 8, False),
    ]
    assert found.size == (40, 80)
    assert found.ids[20, 10] == 1
    assert found.ids[20, 70] == 2
    assert found.ids[2, 40] == 3
    assert found.faults() == []
    # the query of a head index without a class kept its pixels, and they are of no segment
    assert found.ids[39, 79] == 0


def test_without_a_threshold_each_kind_has_its_own(told):
    prediction = told.predict(PICTURE)
    assert prediction.labels == ["cat", "dog", "sky-other-merged", "grass-merged"]
    assert (prediction.threshold, prediction.panoptic_threshold) == (0.3, 0.85)
    assert [s.label for s in prediction.panoptic.segments] == [2, 3, 8]


@pytest.mark.parametrize(("threshold", "labels"), [(0.4, [2, 3, 8, 7]), (0.92, [2]), (0.995, [])])
def test_a_threshold_replaces_that_of_the_rule(told, threshold, labels):
    prediction = told.predict(PICTURE, threshold)
    assert [s.label for s in prediction.panoptic.segments] == labels
    assert prediction.panoptic_threshold == threshold
    assert told.module.panoptic.score_threshold == 0.85
    assert len(prediction.masks) == len(prediction) == len(labels)


def test_masks_are_those_of_the_detections(told):
    prediction = told.predict(PICTURE)
    masks = prediction.binary_masks()
    assert masks.shape == (4, 40, 80)
    cat, dog = masks[0], masks[1]
    assert cat[15:25, 5:30].all()
    assert not cat[:, 45:].any()
    assert dog[15:25, 50:75].all()
    assert np.array_equal(coco_mask.decode(prediction.masks[0]), cat.numpy())


def test_a_prediction_with_masks_is_plain_json(told):
    prediction = told.predict(PICTURE)
    document = json.loads(json.dumps(prediction.to_dict()))
    assert document["detections"][0]["mask"] == prediction.masks[0]
    assert isinstance(document["detections"][0]["mask"]["counts"], str)
    assert document["panoptic"]["threshold"] == 0.85
    first = document["panoptic"]["segments"][0]
    assert first == {
        "id": 1,
        "label": "cat",
        "source_id": 2,
        "is_thing": True,
        "area": int((prediction.panoptic.ids == 1).sum()),
        "score": pytest.approx(0.95),
    }


def test_a_model_of_instances_has_masks_and_no_segments(monkeypatch):
    found = detector(panoptic=False)
    monkeypatch.setattr(found.module, "predictions", scripted)
    prediction = found.predict(PICTURE, 0.6)
    assert prediction.panoptic is None
    assert "panoptic" not in prediction.to_dict()
    assert len(prediction.masks) == 3


def test_nothing_found_is_an_empty_prediction():
    prediction = detector().predict(PICTURE, 1.0)
    assert (len(prediction), prediction.masks) == (0, [])
    assert prediction.binary_masks().shape == (0, 40, 80)
    assert prediction.panoptic.segments == ()
    assert not prediction.panoptic.ids.any()


def test_a_real_network_gives_what_its_parts_give():
    """The queries left out before their masks are made are those that are left out after."""
    found = detector(panoptic=False)
    every, some = found.predict(PICTURE, 0.0), None
    middle = sorted(every.scores)[len(every) // 2]
    some = found.predict(PICTURE, middle)
    assert 0 < len(some) < len(every)
    assert some.scores == every.scores[: len(some)]
    assert some.masks == every.masks[: len(some)]


def test_masks_are_asked_of_the_kept_queries_only():
    asked = []
    logits = torch.tensor([[[0.0, 9, 0], [9, 0, 0], [0, 0, 9], [2, 0, 0]]])

    def masks(image, query):
        asked.extend(query.tolist())
        return torch.zeros(len(query), 4, 4)

    above = queries_above(Predictions(logits, torch.rand(1, 4, 4), masks=masks), 0.5)
    assert above.logits.shape[1] == 3
    above.masks(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert asked == [0, 1, 3]


def test_a_picture_is_alone_in_its_batch(told, monkeypatch):
    """Padding would be squeezed into the masks by the official rule."""
    seen = []
    monkeypatch.setattr(told.module, "predictions", lambda batch: seen.append(batch) or scripted(batch))
    told.predict(PICTURE)
    assert len(seen[0]) == 1
    assert sizes_without_padding(seen[0]) == [tuple(seen[0].images.shape[-2:])]


def test_counting_from_one_keeps_every_pixel():
    ids = torch.tensor([[0, 0, 1], [2, 2, 1]], dtype=torch.int32)
    rows = tuple(Segment(k, head, True, 2) for k, head in enumerate((2, 3, 2)))
    found = counted_from_one(PanopticSegmentation(ids, rows), LABELS)
    assert torch.equal(found.ids, ids + 1)
    assert [s.id for s in found.segments] == [1, 2, 3]
    empty = counted_from_one(PanopticSegmentation(torch.zeros(2, 2, dtype=torch.int32), ()), LABELS)
    assert not empty.ids.any()


def test_a_model_without_masks_says_so(told, monkeypatch):
    prediction = told.predict(PICTURE)
    with pytest.raises(ValueError, match="tiny predicts no masks"):
        type(prediction)([], [], [], [], (4, 4), 0.3, "tiny", LABELS).binary_masks()
