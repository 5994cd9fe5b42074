"""Scores of masks beside those of boxes: from perfect predictions, with padding, and with truth that is missing."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from zoo.contract.batch import Annotations, Batch, Predictions, Sample, collate
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.evaluation.mask_scores import MaskScores
from zoo.prediction.masks import InstanceMasks, PanopticRule, run_lengths

THINGS = frozenset({0})  # class 1 is stuff
INSTANCES = InstanceMasks(threshold=0.5)
RULE = PanopticRule(score_threshold=0.85, min_area=4, crop_padding=False)


@dataclass
class Masks:
    """Stored logits [B, Q, H, W] as a mask branch, which counts for how many queries it was asked."""

    logits: Tensor
    asked: int = 0

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        self.asked += len(query)
        return self.logits[image, query]


def sample(number: int, size: tuple[int, int]) -> Sample:
    """A thing in the left half of an image of `size`, stuff in the right."""
    height, width = size
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, :, : width // 2] = True
    masks[1] = ~masks[0]
    ids = masks[0].int() + 2 * masks[1].int()
    area = height * width // 2
    return Sample(
        image=torch.zeros(3, *size, dtype=torch.uint8),
        labels=torch.tensor([0, 1]),
        boxes=torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]]),
        image_id=number,
        original_size=size,
        annotations=Annotations(
            torch.tensor([[0, 0, width // 2, height]], dtype=torch.float64),
            torch.tensor([area], dtype=torch.float64),
            torch.tensor([0]),
            torch.tensor([False]),
            (1,),
            run_lengths(masks[:1]),
        ),
        panoptic=PanopticSegmentation(ids, (Segment(1, 0, True, area), Segment(2, 1, False, area))),
        masks=masks,
    )


def perfect(batch: Batch) -> Predictions:
    """The truth of each image as its two first queries; the third finds nothing."""
    logits = torch.full((len(batch), 3, 3), -9.0)
    logits[:, 0, 0] = logits[:, 1, 1] = logits[:, 2, 2] = 9.0
    boxes = torch.cat([batch.targets.boxes.unflatten(0, (-1, 2)), torch.full((len(batch), 1, 4), 0.5)], dim=1)
    assert batch.targets.masks is not None
    masks = torch.where(batch.targets.masks, 9.0, -9.0).unflatten(0, (-1, 2))
    masks = torch.cat([masks, torch.full_like(masks[:, :1], -9.0)], dim=1)
    return Predictions(logits, boxes, masks=Masks(masks))


def test_the_truth_as_prediction_is_perfect():
    batch = collate([sample(1, (16, 24)), sample(2, (16, 24))])
    scores = MaskScores()
    scores.update(perfect(batch), batch, INSTANCES, RULE, THINGS)
    found = scores.compute(2, RULE)
    assert {k: float(found[k]) for k in ("segm_AP", "PQ", "SQ", "RQ", "PQ_th", "PQ_st")} == {
        "segm_AP": 1, "PQ": 1, "SQ": 1, "RQ": 1, "PQ_th": 1, "PQ_st": 1,
    }  # fmt: skip
    assert scores.panoptic_protocol(RULE)["padding"] == "no image had any"


@pytest.mark.parametrize(("crop", "said"), [(False, "1 images had some"), (True, "cut off before")])
def test_padding_moves_pq_by_the_official_rule_alone_and_the_protocol_says_so(crop, said):
    batch = collate([sample(1, (16, 24)), sample(2, (16, 16))])  # the second is padded by half its width
    rule = replace(RULE, crop_padding=crop)
    scores = MaskScores()
    scores.update(perfect(batch), batch, INSTANCES, rule, THINGS)
    found = scores.compute(2, rule)
    assert float(found["segm_AP"]) == 1  # there padding is always cut off
    assert (float(found["PQ"]) == 1) is crop
    assert said in scores.panoptic_protocol(rule)["padding"]


def test_masks_are_computed_only_for_the_truth_that_there_is():
    batch = collate([sample(1, (16, 24))])
    assert batch.annotations is not None
    bare = replace(batch, annotations=batch.annotations._replace(segmentations=None), panoptic=None)
    predictions = perfect(batch)
    MaskScores().update(predictions, bare, INSTANCES, RULE, THINGS)
    assert predictions.masks.asked == 0
    MaskScores().update(predictions, replace(bare, panoptic=batch.panoptic), INSTANCES, RULE, THINGS)
    assert predictions.masks.asked == 2  # those above the threshold


def test_missing_truth_is_said_once_and_the_other_score_goes_on(caplog):
    batch = replace(collate([sample(1, (16, 24))]), panoptic=None)
    scores = MaskScores()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            scores.reset()
            scores.update(perfect(batch), batch, INSTANCES, RULE, THINGS)
            found = scores.compute(1, RULE)
    assert float(found["segm_AP"]) == 1
    assert "PQ" not in found
    [record] = caplog.records
    assert "PQ is not measured: the data have no panoptic segments" in record.message


def test_a_model_of_instances_is_not_asked_for_segments(caplog):
    batch = collate([sample(1, (16, 24))])
    scores = MaskScores()
    scores.update(perfect(batch), batch, INSTANCES, None, THINGS)
    found = scores.compute(1, None)
    assert "PQ" not in found
    assert "segm_AP" in found
    assert caplog.records == []


def test_truth_of_a_part_of_the_images_gives_no_score(caplog):
    first, second = collate([sample(1, (16, 24))]), replace(collate([sample(2, (16, 24))]), panoptic=None)
    scores = MaskScores()
    for batch in (first, second):
        scores.update(perfect(batch), batch, INSTANCES, RULE, THINGS)
    assert "PQ" not in scores.compute(2, RULE)
    assert "lack, for 1 of 2 images, the panoptic segments" in caplog.records[0].message
