import os
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.contract.batch import Predictions
from zoo.prediction.postprocess import TopKSigmoid


def test_worked_by_hand():
    logits = torch.tensor([[[-3.0, 2.0, 0.0], [1.0, -1.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.0, 1.0, 0.5, 0.5]]])

    [found] = TopKSigmoid(3)(Predictions(logits, boxes), [(100, 200)])  # h, w

    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    assert found.labels.tolist() == [1, 0, 2]  # the first query twice
    assert found.labels.dtype == torch.int64
    first = [80.0, 30.0, 120.0, 70.0]
    not_clipped = [-50.0, 75.0, 50.0, 125.0]
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([first, not_clipped, first]))


def test_top_k_beyond_the_pairs_gives_all_pairs():
    predictions = Predictions(torch.randn(2, 3, 5), torch.rand(2, 3, 4))
    found = TopKSigmoid(300)(predictions, [(10, 20), (30, 40)])
    assert [len(d.scores) for d in found] == [15, 15]
    assert all((d.scores.diff() <= 0).all() for d in found)


def test_images_are_scaled_each_by_its_own_size():
    one = torch.rand(1, 4, 4)
    predictions = Predictions(torch.randn(1, 4, 2).expand(2, -1, -1), one.expand(2, -1, -1))
    small, large = TopKSigmoid(8)(predictions, [(10, 20), (30, 80)])
    torch.testing.assert_close(small.boxes_xyxy * torch.tensor([4, 3, 4, 3]), large.boxes_xyxy)


def test_half_precision_keeps_labels_exact():
    logits = torch.full((1, 1, 1203), -9.0)
    logits[0, 0, 1201] = 4.0
    predictions = Predictions(logits.bfloat16(), torch.rand(1, 1, 4).bfloat16())
    [found] = TopKSigmoid(1)(predictions, [(480, 640)])
    assert found.labels.tolist() == [1201]
    assert found.scores.dtype == found.boxes_xyxy.dtype == torch.float32


def test_bad_calls_are_refused():
    predictions = Predictions(torch.randn(2, 3, 5), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="1 original sizes for predictions of 2 images"):
        TopKSigmoid(10)(predictions, [(10, 20)])
    with pytest.raises(ValueError, match="top_k is 0"):
        TopKSigmoid(0)
    assert TopKSigmoid(10)(Predictions(torch.zeros(0, 3, 5), torch.zeros(0, 3, 4)), []) == []


@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_equals_the_official_code(precision):
    golden_dir = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[4] / "shared" / "golden"))
    path = golden_dir / "rtdetr" / "postprocess_bbox.npz"
    if not path.is_file():
        pytest.skip("no golden data; set GOLDEN_DIR")
    golden = np.load(path)
    dtype = torch.float32 if precision == "f32" else torch.float64
    predictions = Predictions(*(torch.from_numpy(golden[k]).to(dtype) for k in ("logits", "boxes")))
    sizes = [(h, w) for w, h in golden["orig_target_sizes_wh"].tolist()]

    found = TopKSigmoid(300)(predictions, sizes)

    to_category = golden["label_to_coco_category"]
    for image, detections in enumerate(found):
        labels = detections.labels.numpy()
        np.testing.assert_array_equal(labels, golden[f"{precision}/labels"][image])
        np.testing.assert_array_equal(to_category[labels], golden["labels_remapped_to_coco_ids"][image])
        np.testing.assert_allclose(detections.scores, golden[f"{precision}/scores"][image], rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            detections.boxes_xyxy, golden[f"{precision}/boxes"][image], rtol=0, atol=1e-3
        )
