"""Segments of two answers: what differs, and what is a swap among equal masks."""

from types import SimpleNamespace

import torch

from zoo.contract.batch import Predictions
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.exporting.compare import Comparison
from zoo.exporting.segments import SegmentDifference, other_pixels, segment_difference
from zoo.prediction.masks import PanopticRule


def segmentation(ids, labels):
    ids = torch.tensor(ids, dtype=torch.int32)
    areas = ids.flatten().long().bincount(minlength=len(labels)).tolist()
    found = tuple(Segment(n, label, True, areas[n], score=0.9) for n, label in enumerate(labels))
    return PanopticSegmentation(ids, found)


def test_ids_are_no_part_of_a_segment_but_its_label_is():
    mine = segmentation([[0, 0, 1], [2, 2, 2]], [5, 5, 7])
    renamed = segmentation([[1, 1, 2], [0, 0, 0]], [7, 5, 5])
    assert not other_pixels(mine, mine).any()
    assert not other_pixels(mine, renamed).any()
    gone = segmentation([[0, 0, 1], [1, 1, 1]], [5, 7])
    assert other_pixels(mine, gone).tolist() == [[False, False, True], [False, False, False]]
    other = segmentation([[0, 0, 1], [2, 2, 2]], [5, 5, 6])
    assert other_pixels(mine, other).tolist() == [[False] * 3, [True] * 3]
    nothing = segmentation([[0, 0, 0], [0, 0, 0]], [])
    assert not other_pixels(nothing, nothing).any()
    assert other_pixels(mine, nothing).all()


def predictions(masks):
    logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    return Predictions(logits, torch.zeros(1, 2, 4), {}, lambda image, query: masks[query])


def test_a_swap_among_equal_masks_is_told_from_another_answer():
    rule = PanopticRule(score_threshold=0.5, min_area=0, crop_padding=False)
    module = SimpleNamespace(panoptic=rule, label_map=SimpleNamespace(things={0, 1}))
    batch = SimpleNamespace(original_sizes=((2, 4),), padding=torch.zeros(1, 2, 4, dtype=torch.bool))
    first = torch.tensor([[1.0, 1.0, 0.0, 0.5], [1.0, 1.0, 0.0, 0.0]])
    masks = torch.stack([first, torch.full((2, 4), 0.5)])

    swapped = masks.clone()
    swapped[1, 0, 3] += 1e-6
    found = segment_difference(module, predictions(masks), predictions(swapped), batch)
    assert found == SegmentDifference(pixels=8, apart=1, decided=0)
    equal = segment_difference(module, predictions(masks), predictions(masks), batch)
    assert equal == SegmentDifference(8, 0, 0)
    nothing = predictions(swapped)._replace(logits=torch.tensor([[[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]]]))
    found = segment_difference(
        module, predictions(masks), nothing, batch
    )  # the first query is no object any more
    assert (found.apart, found.decided) == (5, 4)
    told = Comparison(segments=[equal, found]).to_dict()["segments"]
    assert told == {"pixels": 16, "apart": 5, "decided": 4}
    assert Comparison().to_dict()["segments"] is None
