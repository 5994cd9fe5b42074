from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from tiny_sets import SQUARE, module, real_data

from datamodules.coco import CocoDataModule
from datamodules.doctor import check
from datamodules.formats.detect import read


def test_bccd_voc():
    summary = check(real_data() / "custom" / "bccd_voc")
    assert summary.format == "voc"
    assert {n: s.images for n, s in summary.splits.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(s.objects for s in summary.splits.values()) == 4888 - 2
    assert {c.name: sum(c.counts.values()) for c in summary.classes} == {
        "RBC": 4153,
        "WBC": 372,
        "Platelets": 361,
    }
    assert sorted((f.kind, f.file[-9:]) for f in summary.faults) == [
        ("near_leak", "00037.jpg"),  # 00038, in train, is the same field of view, focused anew
        ("other_format", "test.csv"),
        ("zero_area", "00338.jpg"),
        ("zero_area", "00343.jpg"),
    ]


def test_bccd_trainval_against_test():
    data = module(real_data() / "custom" / "bccd_voc", train_split="train+val", eval_split="test")
    assert {n: len(i) for n, i in data.read().splits.items()} == {"train": 292, "val": 72, "test": 72}


def test_rbc_roboflow():
    summary = check(real_data() / "custom" / "rbc_roboflow_coco")
    assert summary.format == "roboflow_coco"
    assert {n: (s.images, s.objects) for n, s in summary.splits.items()} == {
        "train": (210, 4947),
        "val": (20, 470),
        "test": (10, 221),
    }
    assert [(c.name, c.source_id, c.head_index) for c in summary.classes] == [("rbc", 1, 0), ("wbc", 2, 1)]
    # four cells are marked as both classes
    assert [f.kind for f in summary.faults] == [*["conflicting_object"] * 4, "placeholder_category"]


def test_coco_has_no_fault_but_notes():
    summary = check(real_data() / "coco")
    assert {f.severity for f in summary.faults} == {"note"}
    assert {f.kind for f in summary.faults} == {
        "below_stride", "empty_images", "rare_class", "id_holes", "grayscale"
    }  # fmt: skip


def coco(labels: str) -> CocoDataModule:
    return CocoDataModule(
        root=str(real_data() / "coco"), labels=labels, input=SQUARE, train_transform="rt_detr", batch_size=8,
        eval_batch_size=32, num_workers=0, seed=0,
    )  # fmt: skip


def test_coco_evaluation_annotations():
    data = coco("contiguous")
    data.setup("validate")
    batches = [b.annotations for b in data.val_dataloader()]
    assert sum(len(b.counts) for b in batches) == 206
    assert sum(sum(b.counts) for b in batches) == 1786
    assert sum(int(b.crowd.sum()) for b in batches) == 21
    assert data.summary().faults == []
    assert (data.label_map.num_classes, data.label_map.head_of_source[90]) == (80, 79)
    index = data.read().splits["val"]
    assert torch.equal(torch.cat([b.areas for b in batches]), torch.from_numpy(index.areas))


def test_coco_raw_ids():
    label_map = coco("category_id").label_map
    assert (label_map.num_classes, label_map.name_of_head[1], label_map.name_of_head[90]) == (
        91,
        "person",
        "toothbrush",
    )


def test_dropped_objects_are_counted():
    data = coco("contiguous")
    dropped, total = data.dropped_object_share(48)
    index = data.read().splits["train"].take(np.linspace(0, 95, 48, dtype=np.int64))
    assert total == index.num_objects - int(index.crowd.sum())
    assert 0 < dropped < total


def test_dirty_coco():
    source = read(real_data() / "dirty" / "coco")
    files = {f.rsplit("/", 1)[-1] for f in source.splits["train"].files.tolist()}
    gone = {"html404.jpg", "zero_bytes.jpg", "wrong_size.jpg", "bomb.png", "does_not_exist.jpg"}
    assert not files & gone
    assert gone <= {f.file.rsplit("/", 1)[-1] for f in source.faults if f.severity == "error"}
    assert {"CASE_Mismatch.JPG", "win.jpg", "abs_path.jpg", "swapped_wh.jpg", "nested.jpg"} <= files
    kinds = Counter(f.kind for f in source.faults)
    assert (kinds["invalid_box"], kinds["unknown_category"], kinds["zero_area"]) == (8, 3, 2)
    truncated = [f for f in check(real_data() / "dirty" / "coco").errors if f.kind == "corrupt_image"]
    assert [f.file for f in truncated] == ["train/truncated.jpg"]


def test_dirty_sets_train_without_what_is_at_fault():
    for name in ("yolo", "voc"):
        data = module(
            real_data() / "dirty" / name, skip_broken=True, train_transform="rt_detr", val_fraction=0.2
        )
        data.setup("fit")
        data.plan_steps(2, 1, 0)
        assert sum(len(b) for b in data.train_dataloader()) >= 6
