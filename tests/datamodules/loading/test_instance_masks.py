from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from tiny_sets import SQUARE, write_image

from datamodules.coco import CocoDataModule
from datamodules.custom import CustomDataModule
from zoo.contract.batch import Detections
from zoo.contract.preprocess import InputContract
from zoo.evaluation.coco_ap import CocoAP

WIDTH, HEIGHT = 40, 30
KEEP = InputContract(resize="stretch", size=(HEIGHT, WIDTH))
TRIANGLES = [
    [4.0, 4.0, 20.0, 4.0, 4.0, 20.0],
    [22.0, 10.0, 30.0, 10.0, 30.0, 24.0],
]  # two parts of one object
SOLID = {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT, 5 * HEIGHT, 25 * HEIGHT]}  # columns 10 to 14


def annotation(number: int, box: list[float], segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    row = {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": 9.0, "iscrowd": crowd}
    return row if segmentation is None else row | {"segmentation": segmentation}


def write(root: Path, extra: list[dict[str, Any]] | None = None) -> Path:
    packed = coco_mask.frPyObjects(SOLID, HEIGHT, WIDTH)
    text = {"size": packed["size"], "counts": packed["counts"].decode("ascii")}
    rows = [
        annotation(1, [4, 4, 26, 20], TRIANGLES),
        annotation(2, [10, 0, 5, 30], SOLID, crowd=1),
        annotation(3, [10, 0, 5, 30], text),
        *(extra or []),
    ]
    made = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(made))
        write_image(root / split / "1.jpg", (WIDTH, HEIGHT))
    return root


def module(root: Path, **changes: Any) -> CocoDataModule:
    arguments: dict[str, Any] = {
        "root": str(root), "labels": "contiguous", "input": KEEP, "train_transform": "none", "batch_size": 1,
        "eval_batch_size": 1, "num_workers": 0, "seed": 0, "masks": True,
    }  # fmt: skip
    return CocoDataModule(**{**arguments, **changes})


def test_parts_of_an_object_are_one_mask_and_crowds_are_left_out(tmp_path):
    sample = module(write(tmp_path)).training_dataset()[(0, 0)]
    assert sample.masks.shape == (2, HEIGHT, WIDTH)
    parts = coco_mask.decode(coco_mask.frPyObjects(TRIANGLES, HEIGHT, WIDTH))
    assert np.array_equal(sample.masks[0].numpy(), parts.any(axis=2))
    assert sample.masks[1].nonzero()[:, 1].unique().tolist() == [10, 11, 12, 13, 14]
    assert sample.masks[1].sum() == 5 * HEIGHT


def test_nobody_pays_for_masks_that_are_not_asked_for(tmp_path):
    data = module(write(tmp_path), masks=False)
    assert data.training_dataset()[(0, 0)].masks is None
    assert next(iter(data.val_dataloader())).annotations.segmentations is None


def test_custom_data_have_masks_too(tmp_path):
    write(tmp_path)
    data = CustomDataModule(
        root=str(tmp_path), input=SQUARE, train_transform="flip", batch_size=1, eval_batch_size=1,
        num_workers=0, seed=0, masks=True,
    )  # fmt: skip
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.targets.masks.shape == (2, 32, 32)


def test_evaluation_has_codes_of_all_outlines_at_the_original_size(tmp_path):
    data = module(write(tmp_path), input=SQUARE)
    facts = next(iter(data.val_dataloader())).annotations
    masks = [coco_mask.decode(code).astype(bool) for code in facts.segmentations]
    parts = coco_mask.decode(coco_mask.frPyObjects(TRIANGLES, HEIGHT, WIDTH))
    assert np.array_equal(masks[0], parts.any(axis=2))
    assert [m[:, 10:15].all() and m.sum() == 5 * HEIGHT for m in masks[1:]] == [True, True]
    assert all(isinstance(code["counts"], bytes) for code in facts.segmentations)
    assert facts.areas.tolist() == [9, 9, 9]  # the file's


def test_an_object_without_an_outline_is_an_error_with_its_id(tmp_path):
    bare = [annotation(44, [1, 1, 5, 5], None), annotation(45, [1, 1, 5, 5], None, crowd=1)]
    data = module(write(tmp_path, bare))
    assert [(f.kind, f.id) for f in data.read().faults if f.severity == "error"] == [
        ("no_outline", 44),
        ("no_outline", 44),
        ("no_outline", 45),  # a crowd: of the evaluation alone
    ]
    with pytest.raises(ValueError, match="has a box and no outline, and masks are trained and"):
        data.setup("fit")
    lenient = module(tmp_path, skip_broken=True)
    lenient.setup("fit")
    assert len(lenient.training_dataset()[(0, 0)].masks) == 2
    facts = next(iter(lenient.val_dataloader())).annotations
    assert facts.counts == (3,)
    assert len(facts.segmentations) == len(facts.boxes_xywh) == 3
    assert not [f for f in module(tmp_path, masks=False).read().faults if f.kind == "no_outline"]


def test_a_crowd_without_an_outline_is_refused_in_evaluation_unless_lenient(tmp_path):
    data = module(write(tmp_path, [annotation(45, [1, 1, 5, 5], None, crowd=1)]))
    with pytest.raises(
        ValueError, match=r"error no_outline: val2017/1\.jpg \(annotation 45\)"
    ):  # before the first step
        data.setup("fit")
    with pytest.raises(ValueError, match=r"annotations \[45\] have no outline, so masks cannot be evaluated"):
        next(iter(data.val_dataloader()))
    lenient = module(tmp_path, skip_broken=True)
    assert next(iter(lenient.val_dataloader())).annotations.counts == (3,)


def test_coco_as_prediction_of_itself_is_perfect_without_its_crowds(test_data):
    """A crowd is ignored, so what is predicted for it is too: with one more box it could only hide an object."""
    data = module(
        test_data / "coco", input=InputContract(resize="stretch", size=(16, 16)), eval_batch_size=16
    )
    data.setup("fit")
    metric = CocoAP(iou_type="segm")
    for batch in data.val_dataloader():
        facts, start, found = batch.annotations, 0, []
        for count in facts.counts:
            single = [k for k in range(start, start + count) if not facts.crowd[k]]
            xywh = facts.boxes_xywh[single]
            xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
            codes = tuple(facts.segmentations[k] for k in single)
            found.append(Detections(torch.ones(len(single)), facts.labels[single], xyxy, codes))
            start += count
        metric.update(found, batch)
    assert metric.compute()["AP"] == pytest.approx(1, abs=1e-9)
    sample = data.training_dataset()[(0, 0)]
    assert len(sample.masks) == len(sample.labels)


def test_a_crowd_without_an_outline_is_an_error_where_it_is_evaluated(tmp_path):
    data = module(write(tmp_path, [annotation(4, [1, 1, 3, 3], None, crowd=1)]))
    told = [(f.severity, f.kind, f.id) for f in data.read().faults if f.kind == "no_outline"]
    assert told == [("error", "no_outline", 4)]  # of val alone: training leaves crowds out
    with pytest.raises(ValueError, match="no_outline"):
        data.setup("fit")
