from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms.presets import build_transform
from datamodules.transforms.targets import ImageTargets, resized_targets, training_targets
from zoo.contract.batch import Sample, collate
from zoo.contract.preprocess import InputContract


def test_crowds_and_flat_boxes_are_dropped_and_boxes_clipped():
    boxes = [[-5, -5, 20, 20], [1, 1, 5, 5], [10, 10, 0, 5], [10, 10, 5, 0], [90, 40, 30, 30], [120, 5, 3, 3]]
    targets = training_targets(
        boxes, [1, 2, 3, 4, 5, 6], [False, True, False, False, False, False], (60, 100)
    )
    assert targets.labels.tolist() == [1, 5]
    assert targets.boxes_xyxy.tolist() == [[0, 0, 15, 15], [90, 40, 100, 60]]


def test_no_objects():
    targets = training_targets([], [], [], (10, 10))
    assert targets.labels.shape == (0,)
    assert targets.boxes_xyxy.shape == (0, 4)


def test_boxes_below_a_pixel_after_the_resize_are_dropped():
    targets = ImageTargets(torch.tensor([1, 2]), torch.tensor([[0, 0, 1.9, 50], [0, 0, 2.1, 50]]))
    labels, boxes = resized_targets(targets, canvas=(100, 200), size=(50, 100))
    assert labels.tolist() == [2]
    torch.testing.assert_close(boxes, torch.tensor([[2.1 / 400, 0.25, 2.1 / 200, 0.5]]))


def golden() -> dict[str, np.ndarray]:
    default = Path(__file__).resolve().parents[4] / "shared" / "golden"
    file = Path(os.environ.get("GOLDEN_DIR", default)) / "rtdetr" / "preprocess_val.npz"
    if not file.is_file():
        assert "GOLDEN_DIR" not in os.environ, f"GOLDEN_DIR is set, but there is no {file}"
        pytest.skip(f"no {file}; set GOLDEN_DIR")
    return dict(np.load(file))


# COCO's ids have holes: the contiguous label of the ids in the case
CONTIGUOUS = {1: 0, 13: 11, 90: 79, 27: 24, 3: 2}


@pytest.mark.parametrize("backend", ["pil", "fast"])
@pytest.mark.parametrize("number", range(6))
def test_equals_the_official_transform(number, backend):
    case = {k.split("/")[1]: v for k, v in golden().items() if k.startswith(f"im{number}/")}
    image = Image.open(io.BytesIO(case["input_png"].tobytes())).convert("RGB")
    size = (image.height, image.width)
    labels = [CONTIGUOUS[c] for c in case["ann_category"].tolist()]
    targets = training_targets(
        torch.from_numpy(case["ann_bbox_xywh"]), labels, [i == 3 for i in range(5)], size
    )
    np.testing.assert_allclose(targets.boxes_xyxy, case["target_boxes_xyxy"], atol=1e-6, rtol=1e-6)
    assert targets.labels.tolist() == case["target_labels"].tolist()

    contract = InputContract(resize="stretch", size=(640, 640), backend=backend)
    out = build_transform("none", contract)(image, targets, seed=0)
    np.testing.assert_allclose(out.boxes, case["train_boxes_cxcywh"], atol=1e-6)
    assert out.labels.tolist() == case["train_labels"].tolist()

    batch = contract.normalize(collate([Sample(out.image, out.labels, out.boxes, 0, size)]))
    at = torch.from_numpy(case["sample_yx"])
    pixels = batch.images[0][:, at][:, :, at]
    tolerance = 1e-5 if backend == "pil" else 1 / 255 + 1e-5
    assert (pixels - torch.from_numpy(case["sample_pixels"])).abs().max() <= tolerance
    if backend == "pil":
        np.testing.assert_allclose(batch.images[0].double().mean(dim=(1, 2)), case["channel_mean"], atol=1e-5)
