"""Masks to instances and segments; equality with the official code on whole cases is in tests/golden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from zoo.contract.batch import Batch, Predictions, Targets
from zoo.evaluation.metric_state import pack_masks
from zoo.prediction import masks as module
from zoo.prediction.masks import (
    Candidate,
    InstanceMasks,
    PanopticRule,
    binary_masks,
    resized_nearest,
    run_lengths,
    shared_pixels,
    sizes_without_padding,
)
from zoo.prediction.postprocess import BestClassSoftmax

RULE = PanopticRule(score_threshold=0.85, min_area=4, crop_padding=False)
THINGS = {0, 1}  # of four classes


class Recorded:
    """Stored masks [B, Q, h, w], and which of them were asked for."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.asked = logits, []

    def __call__(self, image: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        self.asked.append((image.tolist(), query.tolist()))
        return self.logits[image, query]


def predictions(labels, masks: torch.Tensor, sure: float = 9.0) -> Predictions:
    """One image whose queries are of these labels; 4 is "no object"."""
    logits = torch.zeros(1, len(labels), 5)
    logits[0, torch.arange(len(labels)), torch.tensor(labels)] = sure
    return Predictions(logits, torch.full((1, len(labels), 4), 0.5), masks=Recorded(masks[None]))


def stripes(*heights: float, size: int = 12) -> torch.Tensor:
    """[K, size, size]: mask k is `heights[k]` on its own rows and -5 elsewhere."""
    masks = torch.full((len(heights), size, size), -5.0)
    rows = size // len(heights)
    for k, height in enumerate(heights):
        masks[k, k * rows : (k + 1) * rows] = height
    return masks


def candidates(*labels: int) -> list[Candidate]:
    return [Candidate(label, label in THINGS, 0.9) for label in labels]


def test_each_pixel_goes_to_the_highest_kept_query():
    found = RULE(predictions([0, 4, 2, 1], stripes(3, 9, 2, 1)), [(12, 12)], [(12, 12)], THINGS)
    [one] = found
    assert [(s.id, s.label, s.is_thing) for s in one.segments] == [(0, 0, True), (1, 2, False), (2, 1, True)]
    assert sum(s.area for s in one.segments) == one.ids.numel()
    assert one.ids.dtype == torch.int32
    assert one.faults() == []
    assert one.ids[:3].unique().tolist() == [0]
    assert one.ids[6:9].unique().tolist() == [1]
    assert one.ids[9:].unique().tolist() == [2]
    assert all(s.area == int((one.ids == s.id).sum()) for s in one.segments)
    assert one.segments[0].score == pytest.approx(torch.tensor([9.0, 0, 0, 0, 0]).softmax(0)[0].item())


def test_only_kept_queries_are_computed():
    raw = predictions([0, 4, 2, 1], stripes(3, 9, 2, 1))
    raw.logits[0, 3] = 0.0  # unsure
    RULE(raw, [(12, 12)], [(12, 12)], THINGS)
    assert raw.masks.asked == [([0, 0], [0, 2])]


def test_the_score_is_among_all_classes_and_must_be_above_the_threshold():
    raw = predictions([0], stripes(1.0), sure=9.0)
    score = float(raw.logits.softmax(-1).max())
    for threshold, segments in ((score, 0), (np.nextafter(np.float32(score), np.float32(0)), 1)):
        rule = PanopticRule(score_threshold=float(threshold), min_area=4, crop_padding=False)
        assert len(rule(raw, [(12, 12)], [(12, 12)], THINGS)[0].segments) == segments


def test_nothing_kept_is_an_empty_list_and_a_map_of_zeros():
    [one] = RULE(predictions([4, 4], stripes(1, 1)), [(12, 12)], [(7, 9)], THINGS)
    assert one.segments == ()
    assert one.ids.shape == (7, 9)
    assert not one.ids.any()


def test_two_queries_of_one_stuff_class_end_as_the_first_round_says():
    """The second has no pixels after merging, is dropped, and its pixels go to the highest that is left."""
    masks = stripes(3, 3, 3)
    masks[2, 4:8] = 2.0  # the thing is second on the rows of the dropped query
    one = shared_pixels(masks, candidates(2, 2, 0), (12, 12), min_area=4)
    assert [(s.label, s.area) for s in one.segments] == [(2, 48), (0, 96)]
    assert one.ids[4:8].unique().tolist() == [1]


def test_two_things_of_one_class_stay_two():
    one = shared_pixels(stripes(3, 3), candidates(1, 1), (12, 12), min_area=4)
    assert [(s.label, s.area) for s in one.segments] == [(1, 72), (1, 72)]


def test_small_segments_are_dropped_at_the_size_of_the_original_image():
    masks = stripes(3, 3)
    masks[1] = -5.0
    masks[1, 0, :5] = 9.0
    kept = shared_pixels(masks, candidates(0, 1), (12, 12), min_area=4)
    assert [s.area for s in kept.segments] == [139, 5]
    dropped = shared_pixels(masks, candidates(0, 1), (12, 12), min_area=5)
    assert [s.area for s in dropped.segments] == [144]
    in_a_small_image = shared_pixels(masks, candidates(0, 1), (6, 6), min_area=4)
    assert [s.area for s in in_a_small_image.segments] == [36]
    nothing = shared_pixels(masks, candidates(0, 1), (2, 2), min_area=4)
    assert nothing.segments == ()
    assert not nothing.ids.any()


def test_padding_is_squeezed_as_published_or_cropped():
    """An image half as wide as its batch: cropped, its right half is not looked at."""
    masks = torch.full((2, 6, 12), -5.0)
    masks[0, :, :6], masks[1, :, 6:] = 3.0, 3.0
    raw = predictions([0, 1], masks)._replace(logits=predictions([0, 1], masks).logits.expand(2, -1, -1))
    raw = raw._replace(boxes=raw.boxes.expand(2, -1, -1), masks=Recorded(masks.expand(2, -1, -1, -1)))
    sizes = [(6, 6), (6, 12)]
    squeezed = RULE(raw, sizes, sizes, THINGS)
    assert [s.area for s in squeezed[0].segments] == [18, 18]
    crop = PanopticRule(score_threshold=0.85, min_area=4, crop_padding=True)
    cropped = crop(raw, sizes, sizes, THINGS)
    assert [s.area for s in cropped[0].segments] == [36]
    assert [[s.area for s in found[1].segments] for found in (squeezed, cropped)] == [[36, 36]] * 2


@pytest.mark.parametrize(("before", "after"), [((60, 80), (90, 121)), ((45, 80), (33, 57)), ((7, 5), (7, 5))])
def test_nearest_takes_the_pixels_that_pillow_takes(before, after):
    values = torch.randint(1 << 20, before)
    picture = Image.fromarray(values.int().numpy()).resize((after[1], after[0]), Image.Resampling.NEAREST)
    assert torch.equal(resized_nearest(values, after).int(), torch.from_numpy(np.array(picture)))


def test_errors_name_what_is_missing():
    raw = predictions([0], stripes(1.0))
    with pytest.raises(ValueError, match="predicts no masks; use one with a mask head"):
        RULE(raw._replace(masks=None), [(1, 1)], [(1, 1)], THINGS)
    with pytest.raises(ValueError, match=r"\[1, 2\] sizes for predictions of 1 images"):
        InstanceMasks(0.5)(raw, [(1, 1)], [(1, 1), (2, 2)])
    with pytest.raises(ValueError, match="min_area is -1"):
        PanopticRule(score_threshold=0.5, min_area=-1, crop_padding=False)


# -- instances ------------------------------------------------------------------------------------


def test_instances_are_the_detections_in_their_order_with_their_masks():
    generator = torch.Generator().manual_seed(4)
    masks = Recorded(3 * torch.randn(2, 6, 5, 7, generator=generator))
    raw = Predictions(
        torch.randn(2, 6, 5, generator=generator), torch.rand(2, 6, 4, generator=generator), masks=masks
    )
    processed, original = [(20, 28), (17, 22)], [(31, 40), (10, 13)]
    found = InstanceMasks(0.5)(raw, processed, original)
    boxes = BestClassSoftmax()(raw, original)
    scores = raw.logits.softmax(-1)[..., :-1].amax(-1)
    for image, one in enumerate(found):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], boxes[image][:3], strict=True))
        order = scores[image].argsort(descending=True)
        expected = binary_masks(masks.logits[image, order], (20, 28), processed[image], original[image], 0.5)
        assert {tuple(m["size"]) for m in one.masks} == {original[image]}
        assert len(pack_masks(one.masks, original[image], image)[0]) == 6, "the metric takes them"
        decoded = coco_mask.decode(list(one.masks))
        assert torch.equal(torch.tensor(decoded).permute(2, 0, 1).bool(), expected)
        assert 0 < expected.sum() < expected.numel()
    assert (
        InstanceMasks(0.5)(Predictions(torch.empty(0, 6, 5), torch.empty(0, 6, 4), masks=masks), [], []) == []
    )


def test_binary_masks_are_cut_to_the_image_before_they_are_resized(monkeypatch):
    logits = torch.full((3, 4, 4), -1.0)
    logits[:, :, 2:] = 1.0  # true only in the padding, which is the right half
    found = binary_masks(logits, (16, 16), (16, 7), (32, 14), 0.5)
    assert found.shape == (3, 32, 14)
    assert not found.any()
    whole = binary_masks(logits, (16, 16), (16, 16), (16, 16), 0.5)
    assert whole[:, :, 9:].all()
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    assert torch.equal(binary_masks(logits, (16, 16), (16, 16), (16, 16), 0.5), whole)
    strict = binary_masks(logits, (16, 16), (16, 16), (16, 16), torch.sigmoid(torch.tensor(1.0)).item())
    assert not strict.any()


def test_masks_of_a_large_photograph_are_made_and_coded_a_few_at_a_time(monkeypatch):
    masks = Recorded(torch.randn(1, 4, 5, 7))
    found = Predictions(torch.randn(1, 4, 4), torch.rand(1, 4, 4), masks=masks)
    rule, sizes = InstanceMasks(0.5), ([(20, 28)], [(40, 56)])
    (whole,) = rule(found, *sizes)
    held, code = [], module.run_lengths
    monkeypatch.setattr(module, "_AT_ONCE", 2 * 40 * 56)
    monkeypatch.setattr(module, "run_lengths", lambda part: held.append(len(part)) or code(part))
    (parts,) = rule(found, *sizes)
    assert held == [2, 2]
    assert parts.masks == whole.masks


def test_no_instance_has_no_masks():
    assert binary_masks(torch.empty(0, 2, 2), (8, 8), (8, 8), (5, 6), 0.5).shape == (0, 5, 6)
    assert run_lengths(torch.zeros(0, 5, 6, dtype=torch.bool)) == ()


def test_the_processed_size_is_read_from_the_padding():
    padding = torch.ones(2, 10, 12, dtype=torch.bool)
    padding[0, :10, :8] = False
    padding[1, :6, :12] = False
    targets = Targets(torch.empty(0), torch.empty(0, 4), (0, 0))
    batch = Batch(torch.zeros(2, 3, 10, 12), padding, targets, (1, 2), ((1, 1), (1, 1)))
    assert sizes_without_padding(batch) == [(10, 8), (6, 12)]
