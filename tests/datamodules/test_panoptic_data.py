from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from datamodules.formats.detect import detect, read
from datamodules.images.id_maps import annotation_id, segment_id
from datamodules.panoptic import CocoPanopticDataModule
from datamodules.shards.writer import SMALLEST_SHARD, pack
from datamodules.writers.convert import convert
from zoo.contract.batch import Batch, Detections
from zoo.contract.preprocess import InputContract
from zoo.contract.segments import png_of_ids
from zoo.evaluation.coco_ap import CocoAP
from zoo.evaluation.panoptic_quality import PanopticQuality

SIZE = (24, 32)  # h, w of every image; the contract keeps it
KEEP = InputContract(resize="stretch", size=SIZE)
CATEGORIES = [
    {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 3, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
]
# per image: segment id -> (category, crowd, y0, y1, x0, x1); later ones cover earlier ones
PICTURES: list[dict[int, tuple[int, int, int, int, int, int]]] = [
    {70_000: (187, 0, 0, 12, 0, 32), 300: (1, 0, 4, 9, 5, 11), 7: (3, 1, 14, 20, 2, 30)},
    {300: (187, 0, 0, 24, 0, 32), 8: (3, 0, 10, 11, 20, 21)},  # a single pixel
    {9: (1, 0, 2, 20, 3, 4)},  # one pixel wide
]


def id_map(picture: dict[int, tuple[int, int, int, int, int, int]]) -> np.ndarray:
    ids = np.zeros(SIZE, np.int32)
    for number, (_, _, y0, y1, x0, x1) in picture.items():
        ids[y0:y1, x0:x1] = number
    return ids


def content(split: str) -> dict[str, Any]:
    annotations = []
    for i, picture in enumerate(PICTURES):
        ids, rows = id_map(picture), []
        for number, (category, crowd, *_) in picture.items():
            lines, columns = np.nonzero(ids == number)
            x, y = int(columns.min()), int(lines.min())
            box = [x, y, int(columns.max()) - x + 1, int(lines.max()) - y + 1]
            row = {"id": number, "category_id": category, "iscrowd": crowd, "area": len(lines), "bbox": box}
            rows.append(row)
        name = "odd.png" if i == 1 else f"{split}{i}.png"
        annotations.append({"image_id": 10 + i, "file_name": name, "segments_info": rows})
    images = [
        {"id": 10 + i, "file_name": f"{split}{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for i in range(len(PICTURES))
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write(root: Path, change: Any = None) -> Path:
    """A panoptic folder; `change` edits the content of val's json before it is written."""
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        pngs = root / "annotations" / f"panoptic_{split}"
        pngs.mkdir(parents=True)
        made = content(split)
        for i, (image, annotation) in enumerate(zip(made["images"], made["annotations"], strict=True)):
            pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / image["file_name"])
            (pngs / annotation["file_name"]).write_bytes(png_of_ids(id_map(PICTURES[i])))
        if change is not None and split == "val2017":
            change(made)
        pngs.with_suffix(".json").write_text(json.dumps(made))
    return root


def module(root: Path, **changes: Any) -> CocoPanopticDataModule:
    arguments: dict[str, Any] = {
        "root": str(root), "labels": "category_id", "num_classes": 250, "input": KEEP, "train_transform": "none",
        "batch_size": 3, "eval_batch_size": 2, "num_workers": 0, "seed": 0,
    }  # fmt: skip
    return CocoPanopticDataModule(**{**arguments, **changes})


def val_png(root: Path, name: str = "val20170.png") -> Path:
    return root / "annotations" / "panoptic_val2017" / name


def test_layout_is_read(tmp_path):
    data = module(write(tmp_path))
    data.setup("fit")
    assert data.read().faults == ()  # also though images share segment ids
    assert {n: (len(i), i.num_objects) for n, i in data.read().splits.items()} == {
        "train": (3, 6),
        "val": (3, 6),
    }
    labels = data.label_map
    assert (labels.names, labels.head_indices) == (("person", "car", "sky"), (1, 3, 187))
    assert labels.num_classes == 250
    assert labels.things == {1, 3}
    assert labels.color_of_head[3] == (0, 0, 142)
    assert module(tmp_path, labels="contiguous", num_classes=None).label_map.head_indices == (0, 1, 2)
    assert module(tmp_path, num_classes=None).label_map.num_classes == 188
    with pytest.raises(ValueError, match="num_classes 250 with labels: contiguous"):
        _ = module(tmp_path, labels="contiguous").label_map
    with pytest.raises(ValueError, match=r"lacks annotations/panoptic_dev\.json"):
        module(tmp_path, eval_split="dev").read()


def test_training_has_every_segment_with_its_mask(tmp_path):
    data = module(write(tmp_path))
    dataset = pickle.loads(pickle.dumps(data.training_dataset()))  # as a spawned worker gets it
    for row, picture in enumerate(PICTURES):
        sample = dataset[(0, row)]
        wide = [n for n, (*_, y0, y1, x0, x1) in picture.items() if min(y1 - y0, x1 - x0) > 1]
        assert sample.labels.tolist() == [picture[n][0] for n in wide]  # the crowd and the sky too
        masks = torch.from_numpy(np.array([id_map(picture) == n for n in wide]).reshape(-1, *SIZE))
        assert torch.equal(sample.masks, masks)
        assert sample.panoptic is None
    # boxes go to the last pixel, not behind it: x 5..10, y 4..8 of 32 x 24
    assert dataset[(0, 0)].boxes[1].tolist() == pytest.approx([7.5 / 32, 6 / 24, 5 / 32, 4 / 24])


def test_objects_of_no_extent_stay_for_detr_and_fall_for_others(tmp_path):
    write(tmp_path)
    official = module(tmp_path, train_transform="detr", input=InputContract(resize="shortest", size=(24, 64)))
    targets = official.training_dataset().targets(1)
    assert targets.boxes_xyxy[1].tolist() == [20, 10, 20, 10]  # as the official reader has it
    assert any(len(official.training_dataset()[(epoch, 2)].labels) for epoch in range(6))
    assert len(module(tmp_path).training_dataset()[(0, 2)].labels) == 0


def test_masks_follow_the_transform(tmp_path):
    data = module(write(tmp_path), train_transform="flip")
    dataset = data.training_dataset()
    flipped = 0
    for epoch in range(8):
        sample = dataset[(epoch, 0)]
        masks = torch.from_numpy(np.stack([id_map(PICTURES[0]) == number for number in PICTURES[0]]))
        mirrored = not torch.equal(sample.masks, masks)
        flipped += mirrored
        assert torch.equal(sample.masks, masks.flip(2) if mirrored else masks)
        centre = sample.boxes[1, 0] * SIZE[1]
        assert abs(float(centre) - (32 - 7.5 if mirrored else 7.5)) <= 1
    assert 0 < flipped < 8


def test_training_batches_carry_masks_and_evaluation_the_truth(tmp_path):
    data = module(write(tmp_path))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.targets.masks.shape == (4, *SIZE)
    assert batch.panoptic is None
    first, _ = data.val_dataloader()
    assert [p.size for p in first.panoptic] == [SIZE] * 2
    truth = first.panoptic[0]
    assert np.array_equal(truth.ids.numpy(), id_map(PICTURES[0]))
    assert [(s.id, s.label, s.is_thing, s.crowd) for s in truth.segments] == [
        (70_000, 187, False, False),
        (300, 1, True, False),
        (7, 3, True, True),
    ]
    assert truth.segments[1].area == 30
    # boxes and masks of things alone, boxes as the file has them
    facts = first.annotations
    assert facts.labels.tolist() == [1, 3, 3]
    assert facts.crowd.tolist() == [False, True, False]
    assert facts.boxes_xywh.tolist() == [[5, 4, 6, 5], [2, 14, 28, 6], [20, 10, 1, 1]]
    assert coco_mask.area(list(facts.segmentations)).tolist() == [30, 168, 1]


def as_detections(batch: Batch) -> list[Detections]:
    facts, start, found = batch.annotations, 0, []
    for count in facts.counts:
        own = slice(start, start + count)
        xywh = facts.boxes_xywh[own]
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        found.append(Detections(torch.ones(count), facts.labels[own], xyxy, facts.segmentations[own]))
        start += count
    return found


def truth_as_prediction(data: CocoPanopticDataModule) -> tuple[dict[str, float], float, float]:
    quality, boxes, masks = PanopticQuality(), CocoAP(), CocoAP(iou_type="segm")
    for batch in data.val_dataloader():
        quality.update(batch.panoptic, batch)
        boxes.update(as_detections(batch), batch)
        masks.update(as_detections(batch), batch)
    return quality.compute(), boxes.compute()["AP"], masks.compute()["AP"]


def test_the_truth_as_prediction_is_perfect_at_any_input_size(tmp_path):
    write(tmp_path)
    for contract in (KEEP, InputContract(resize="shortest", size=(50, 90))):
        quality, boxes, masks = truth_as_prediction(module(tmp_path, input=contract))
        assert set(quality.values()) == {1.0}
        assert (boxes, masks) == (pytest.approx(1), pytest.approx(1))


def test_the_limit_and_the_digest_see_the_same_segments(tmp_path):
    data = module(write(tmp_path), limit_eval=1)
    (batch,) = data.val_dataloader()
    assert batch.image_ids == (10,)
    assert data.digest() == module(tmp_path, limit_eval=1).digest() != module(tmp_path).digest()
    assert segment_id(annotation_id(5, 70_000)) == 70_000


def test_a_folder_is_recognised_and_checked(tmp_path):
    root = write(tmp_path)
    assert detect(root) == "coco_panoptic"
    assert read(root).faults == []
    shown = content("val2017")
    (root / "annotations" / "instances_val2017.json").write_text(
        json.dumps({**shown, "annotations": [], "categories": CATEGORIES})
    )
    assert detect(root) == "coco"  # COCO's own folder has both


def test_panoptic_data_are_not_packed_without_their_segments(tmp_path):
    root = write(tmp_path / "set")
    with pytest.raises(ValueError, match="panoptic data cannot be packed"):
        pack(read(root), tmp_path / "shards", SMALLEST_SHARD)


def faults_of(root: Path, change: Any = None) -> list[tuple[str, str, Any]]:
    return [(f.severity, f.kind, f.id) for f in read(write(root, change)).faults]


def test_what_the_json_says_wrongly_is_told(tmp_path):
    def unknown_category(made: dict[str, Any]) -> None:
        made["annotations"][0]["segments_info"][1]["category_id"] = 90

    assert ("error", "unknown_category", 300) in faults_of(tmp_path / "a", unknown_category)
    assert ("error", "no_segmentation", 12) in faults_of(tmp_path / "b", lambda m: m["annotations"].pop())
    assert ("error", "unknown_image", 12) in faults_of(tmp_path / "c", lambda m: m["images"].pop())
    twice = faults_of(tmp_path / "d", lambda m: m["annotations"].append(m["annotations"][0]))
    assert twice == [("error", "duplicate_segmentation", 10)]

    def other_area(made: dict[str, Any]) -> None:
        made["annotations"][0]["segments_info"][1]["area"] = 29

    assert faults_of(tmp_path / "e", other_area) == [("warning", "wrong_area", 300)]
    other = faults_of(
        tmp_path / "f", lambda m: m.update(categories=[{**CATEGORIES[0], "isthing": 1}, *CATEGORIES[1:]])
    )
    assert ("error", "class_list", 187) in other
    with pytest.raises(ValueError, match=r"categories \[1\] do not say isthing"):
        module(_without_isthing(tmp_path / "h")).read()


def _without_isthing(root: Path) -> Path:
    write(root)
    for split in ("train2017", "val2017"):
        file = root / "annotations" / f"panoptic_{split}.json"
        made = json.loads(file.read_text())
        made["categories"][2].pop("isthing")
        file.write_text(json.dumps(made))
    return root


def test_a_missing_png_is_told_with_its_image(tmp_path):
    val_png(write(tmp_path)).unlink()
    (fault,) = read(tmp_path).faults
    assert (fault.severity, fault.kind, fault.id) == ("error", "missing_png", 10)
    data = module(tmp_path)
    with pytest.raises(ValueError, match="missing_png"):
        data.setup("fit")
    lenient = module(tmp_path, skip_broken=True)
    lenient.setup("fit")
    assert len(lenient.read().splits["val"]) == 2


def wrong_png(root: Path, ids: np.ndarray) -> Path:
    val_png(write(root)).write_bytes(png_of_ids(ids))
    return root


def test_png_and_json_that_disagree_are_told_with_ids(tmp_path):
    ids = id_map(PICTURES[0])
    ids[ids == 300] = 301
    wrong_png(tmp_path, ids)
    faults = read(tmp_path).faults
    assert [(f.kind, f.id) for f in faults] == [("segments_disagree", 10)] * 2
    assert "id 300 is listed and has no pixel" in faults[0].message
    assert "id 301 has 30 pixels and is not listed" in faults[1].message
    # at work it is an error that names the file; or both are left out
    data = module(tmp_path)
    data.setup("fit")
    with pytest.raises(
        ValueError, match=r"val20170\.png \(image id 10\): id 300 is listed and has no pixel; id 301"
    ):
        next(iter(data.val_dataloader()))
    (truth, _) = next(iter(module(tmp_path, skip_broken=True).val_dataloader())).panoptic
    assert [s.id for s in truth.segments] == [70_000, 7]
    assert truth.faults() == []
    assert set(truth_as_prediction(module(tmp_path, skip_broken=True))[0].values()) == {1.0}


def test_unreadable_and_ill_sized_pngs_are_told(tmp_path):
    wrong_png(tmp_path / "a", id_map(PICTURES[0])[:, :-1])
    (fault,) = read(tmp_path / "a").faults
    assert (fault.kind, fault.id) == ("bad_png", 10)
    assert "is 31x24, its image is 32x24" in fault.message
    val_png(write(tmp_path / "b")).write_bytes(b"no png")
    (fault,) = read(tmp_path / "b").faults
    assert "no readable PNG" in fault.message
    with pytest.raises(ValueError, match="no readable PNG"):
        next(iter(module(tmp_path / "b", skip_broken=True).val_dataloader()))


def test_category_and_instance_in_two_channels_are_recognised(tmp_path):
    ids = np.zeros(SIZE, np.int32)
    for number, (category, crowd, *_) in PICTURES[0].items():
        ids[id_map(PICTURES[0]) == number] = category + 256 * (255 if crowd else 0)
    faults = read(wrong_png(tmp_path, ids)).faults
    assert "two channels only: is it category and instance instead of ids?" in faults[0].message


def test_ap_can_be_that_of_the_instances_as_published(tmp_path):
    root = write(tmp_path)
    with pytest.raises(ValueError, match=r"instances_val2017\.json is missing, and box and mask AP"):
        module(root, ap_objects="instances").read()
    made = content("val2017")
    made["images"] = made["images"][::-1]  # another order than the panoptic file's
    polygon = [[1.0, 1.0, 9.0, 1.0, 9.0, 8.0]]
    row = {"id": 5, "image_id": 11, "category_id": 3, "bbox": [1, 1, 8, 7], "area": 28.0, "iscrowd": 0}
    made["annotations"] = [row | {"segmentation": polygon}]
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(made))
    data = module(root, ap_objects="instances", limit_eval=2)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch.image_ids == (10, 11)
    assert batch.annotations.counts == (0, 1)
    assert batch.annotations.labels.tolist() == [3]
    assert batch.annotations.areas.tolist() == [28]
    assert coco_mask.area(list(batch.annotations.segmentations))[0] > 10
    assert [len(p.segments) for p in batch.panoptic] == [3, 2]
    file.write_text(json.dumps({**made, "images": made["images"][1:]}))
    with pytest.raises(ValueError, match=r"does not list images \[12\]"):
        module(root, ap_objects="instances").read()


# ------------------------------------------------------------------ real data


def test_coco_panoptic_as_prediction_of_itself_is_perfect(test_data):
    """100 images with 5 crowds, at most one of a class in an image: they excuse themselves."""
    data = module(test_data / "coco_panoptic", input=InputContract(resize="shortest", size=(64, 100)))
    data.setup("fit")
    assert data.read().faults == ()
    splits = data.read().splits
    assert {n: (len(i), i.num_objects) for n, i in splits.items()} == {"train": (44, 633), "val": (100, 1078)}
    labels = data.label_map
    assert (len(labels.names), len(labels.things), labels.num_classes, max(labels.head_indices)) == (
        133,
        80,
        250,
        200,
    )
    assert labels.color_of_head[1] == (220, 20, 60)  # from the list of categories beside the json
    quality, boxes, masks = truth_as_prediction(data)
    assert set(quality.values()) == {1.0}
    assert (boxes, masks) == (pytest.approx(1), pytest.approx(1))


def test_coco_panoptic_trains(test_data):
    data = module(
        test_data / "coco_panoptic",
        train_transform="detr",
        input=InputContract(resize="shortest", size=(96, 160)),
        batch_size=2,
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.targets.masks.shape == (len(batch.targets.labels), *batch.images.shape[-2:])
    assert batch.targets.masks.any(dim=2).any(dim=1).float().mean() > 0.9


def test_panopticapi_sample_is_read_as_it_is(test_data):
    root = test_data / "panopticapi_sample" / "sample_data"
    assert detect(root) == "coco_panoptic"
    assert read(root).faults == []
    data = module(root, train_split="examples", eval_split="examples")
    (batch,) = data.val_dataloader()
    truth = dict(zip(batch.image_ids, batch.panoptic, strict=True))
    assert {i: len(p.segments) for i, p in truth.items()} == {142238: 18, 439180: 32}
    # its other files show the same regions as category and instance, 255 for a crowd
    for image_id, own in truth.items():
        path = root / "panoptic_examples_2ch_format" / f"{image_id:012d}.png"
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
        for segment, mask in zip(own.segments, own.masks(), strict=True):
            (pair,) = np.unique(pixels[mask.numpy()], axis=0)[:, :2].tolist()
            assert pair[0] == segment.label
            assert (pair[1] == 255) == segment.crowd


def test_a_copy_in_another_format_says_that_it_has_no_segments(tmp_path):
    source = read(write(tmp_path / "set"))
    losses = convert(source, "coco", tmp_path / "copy").losses
    assert losses["masks of panoptic segments, and which classes are things"] == sum(
        index.num_objects for index in source.splits.values()
    )


@pytest.mark.parametrize("height", [10**30, 2**31, -5])
def test_a_declared_size_that_cannot_be_gives_way_to_that_of_the_image(tmp_path, height):
    root = write(tmp_path, lambda made: made["images"][0].update(height=height))
    index = read(root, "coco_panoptic").splits["val"]
    assert index.sizes[0].tolist() == list(SIZE)
