"""Dense O2O: mosaic, mixup and copy-blend are functions of (seed, epoch, image) and (seed, epoch, group) alone."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_sets import module

from datamodules.custom import CustomDataModule
from datamodules.loading.samplers import Member
from datamodules.shapes import generate_shapes
from datamodules.transforms.mixing import CopyBlend, DenseO2O, GroupDraw, Mixup, Objects
from datamodules.transforms.mosaic import Mosaic
from datamodules.transforms.presets import LaterTransform
from zoo.contract.batch import Sample
from zoo.contract.boxes import cxcywh_to_xyxy
from zoo.contract.preprocess import InputContract

SIDE = 64
STEP = 8
MOSAIC = Mosaic(epochs=(1, 3), probability=0.5, side=32, rotation=10.0, translation=0.1, scale=(0.5, 1.5))
MIXUP = Mixup(epochs=(1, 3), probability=0.5)
BLEND = CopyBlend(epochs=(1, 4), probability=0.8, objects=3, least_area=20.0, expand=(0.1, 0.25))
DENSE = DenseO2O(group=4, mosaic=MOSAIC, mixup=MIXUP, copy_blend=BLEND)
CRCS = [
    (341, 2608772352, 1970800196),
    (309, 3761938372, 2890453156),
    (125, 3617330550, 1089842095),
]  # objects, labels, boxes of epochs 1 to 3
LATER = [LaterTransform(from_epoch=1, name="rt_detr"), LaterTransform(from_epoch=4, name="rt_detr_clean")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 26, 2, seed=1, size=48)


def data_of(root: Path, dense: DenseO2O | None = DENSE, **changes: object) -> CustomDataModule:
    given = {
        "input": InputContract(resize="stretch", size=(SIDE, SIDE)), "train_transform": "rt_detr_clean",
        "later_transforms": LATER, "dense_o2o": dense, "batch_size": STEP,
    }  # fmt: skip
    data = module(root, **(given | changes))
    data.setup("fit")
    return data


def samples(data: CustomDataModule, epoch: int, world: int = 1, step: int = STEP) -> dict[int, list[int]]:
    """Image id -> crc of its pixels, labels and boxes, over all ranks."""
    found = {}
    for rank in range(world):
        data.plan_steps(step, world, rank)
        found |= samples_of(data, epoch)
    return found


def samples_of(data: CustomDataModule, epoch: int) -> dict[int, list[int]]:
    """`samples` of the rank that the data is planned for."""
    found = {}
    data.set_epoch(epoch)
    for batch in data.train_dataloader():
        first = 0
        for image, image_id, count in zip(batch.images, batch.image_ids, batch.targets.counts, strict=True):
            rows = slice(first, first + count)
            first += count
            found[image_id] = [
                zlib.crc32(tensor.numpy().tobytes())
                for tensor in (image, batch.targets.labels[rows], batch.targets.boxes[rows])
            ]
    return found


@pytest.mark.parametrize(
    ("world", "batch_size", "workers"), [(1, 4, 0), (1, 1, 0), (2, 4, 0), (4, 1, 0), (2, 2, 1), (1, 8, 2)]
)
def test_however_a_step_is_cut_its_images_are_the_same(root, world, batch_size, workers):
    whole, cut = data_of(root), data_of(root, batch_size=batch_size, num_workers=workers)
    for epoch in (1, 3):
        wanted = samples(whole, epoch)
        assert len(wanted) == 24
        assert samples(cut, epoch, world) == wanted


def of_rank(root: Path, rank: int) -> dict[int, dict[int, list[int]]]:
    """By epoch, what a process of a group of two gets over the whole schedule; `rank` last, for the nursery."""
    data = data_of(root, batch_size=2)
    assert rank == torch.distributed.get_rank()
    data.plan_steps(STEP, torch.distributed.get_world_size(), rank)
    return {epoch: samples_of(data, epoch) for epoch in range(5)}


def test_two_processes_get_the_images_of_one_in_every_epoch(root, nursery):
    """Before, in and after the epochs of mosaic, mixup, copy-blend and the transforms of `LATER`."""
    whole = data_of(root)
    ranks = nursery.answers_of_two_ranks(partial(of_rank, root))
    for epoch in range(5):
        one, two = (ranks[rank][epoch] for rank in (0, 1))
        assert len(one) == len(two) == 12
        assert one | two == samples(whole, epoch)


@pytest.mark.parametrize("step", [4, 12])
def test_steps_of_whole_groups_may_be_of_any_size(root, step):
    assert samples(data_of(root), 1, step=step) == samples(data_of(root), 1)


def test_draws_are_what_they_always_were(root):
    """Published draws never change: crc32 of labels and boxes of an epoch, to a thousandth of the image."""
    data, found = data_of(root), []
    for epoch in (1, 2, 3):
        data.plan_steps(STEP, 1, 0)
        data.set_epoch(epoch)
        labels, boxes = zip(
            *((b.targets.labels, b.targets.boxes) for b in data.train_dataloader()), strict=True
        )
        rounded = (torch.cat(boxes) * 1000).round().short()
        found.append((len(rounded), *(zlib.crc32(t.numpy().tobytes()) for t in (torch.cat(labels), rounded))))
    assert found == CRCS


def test_workers_that_stay_and_a_resume_inside_an_epoch(root):
    data = data_of(root, batch_size=2, num_workers=1)
    data.plan_steps(STEP, 1, 0)
    loader = data.train_dataloader()
    found = []
    for epoch in (0, 1, 1, 4):
        data.set_epoch(epoch)
        found.append([batch.images.clone() for batch in loader])
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))
    again = data_of(root, batch_size=2)
    again.plan_steps(STEP, 1, 0)
    again.set_epoch(1)
    again.skip_batches(5)
    rest = [batch.images for batch in again.train_dataloader()]
    assert len(rest) == len(found[1]) - 5
    assert all(torch.equal(a, b) for a, b in zip(found[1][5:], rest, strict=True))


def test_outside_their_epochs_nothing_is_mixed(root):
    plain, dense = data_of(root, None), data_of(root)
    assert samples(plain, 0) == samples(dense, 0)
    assert samples(plain, 4) == samples(dense, 4)
    assert samples(plain, 3) != samples(dense, 3)  # copy-blend
    assert samples(plain, 1) != samples(dense, 1)


def group_of(data: CustomDataModule, epoch: int, rows: tuple[int, ...], number: int) -> list[Sample]:
    members = [Member(epoch, number, rows, place) for place in range(len(rows))]
    return data.training_dataset().__getitems__(members)


ROWS = (3, 9, 0, 17)


def plain_of(data: CustomDataModule, epoch: int) -> list[Sample]:
    dataset = data.training_dataset()
    return [dataset[(epoch, row)] for row in ROWS]


def test_mixup_is_with_the_image_before_and_keeps_all_objects(root):
    data = data_of(root, replace(DENSE, mixup=Mixup(epochs=(1, 3), probability=1.0)))
    mixed, plain = group_of(data, 2, ROWS, 0), plain_of(data, 2)
    shares = set()
    for place, sample in enumerate(mixed):
        own, other = plain[place], plain[place - 1]
        assert torch.equal(sample.labels, torch.cat([own.labels, other.labels]))
        assert torch.equal(sample.boxes, torch.cat([own.boxes, other.boxes]))
        assert (sample.image_id, sample.original_size) == (own.image_id, own.original_size)
        a, b = own.image.double().flatten(), other.image.double().flatten()
        share = float(((sample.image.double().flatten() - b) @ (a - b)) / ((a - b) @ (a - b)))
        assert 0.45 - 1e-3 <= share <= 0.55 + 1e-3
        assert (share * a + (1 - share) * b - sample.image.flatten()).abs().max() < 0.6
        shares.add(round(share, 2))
    assert len(shares) == 1


def test_copy_blend_puts_objects_of_the_group_where_it_says(root):
    data = data_of(root, replace(DENSE, mixup=None, copy_blend=replace(BLEND, probability=1.0)))
    added = 0
    for number in range(6):
        mixed, plain = group_of(data, 3, ROWS, number), plain_of(data, 3)
        known = torch.cat([s.labels for s in plain]).tolist()
        for sample, own in zip(mixed, plain, strict=True):
            count = len(own.labels)
            assert torch.equal(sample.labels[:count], own.labels)
            assert torch.equal(sample.boxes[:count], own.boxes)
            new = cxcywh_to_xyxy(sample.boxes[count:]) * SIDE
            added += len(new)
            assert len(new) <= 3
            assert set(sample.labels[count:].tolist()) <= set(known)
            torch.testing.assert_close(new, new.round(), atol=1e-3, rtol=0)
            assert new.numel() == 0 or (new.min() >= 0 and new.max() <= SIDE)
            changed = (sample.image != own.image).any(dim=0)
            near = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            for x0, y0, x1, y1 in new.round().int().tolist():
                beyond_x, beyond_y = int((x1 - x0) * 0.25), int((y1 - y0) * 0.25)
                near[max(0, y0 - beyond_y) : y1 + beyond_y, max(0, x0 - beyond_x) : x1 + beyond_x] = True
            assert not changed[~near].any()
    assert added > 20


def objects(boxes: list[list[float]], areas: list[float]) -> Objects:
    return Objects(torch.arange(len(boxes)), torch.tensor(boxes).reshape(-1, 4), torch.tensor(areas).double())


def test_pieces_of_copy_blend_fit_into_both_images():
    draw = GroupDraw(5, 1 << 15, BLEND)
    group = [
        objects(
            [[0.0, 0.0, 20.9, 10.2], [50.5, 40.1, 64.0, 64.0], [3.0, 3.0, 3.4, 9.0]], [400.0, 300.0, 90.0]
        ),
        objects([], []),
        objects([[10.0, 10.0, 60.0, 60.0]], [19.9]),  # below the least area
    ]
    ends, placed = set(), []
    for place in range(400):
        for paste in draw.pastes(place, group, (64, 64)):
            assert paste.place == 0
            assert paste.label in (0, 1)
            assert (*paste.source, *paste.size) in {(0, 0, 20, 10), (50, 40, 14, 24)}
            for corner in (paste.source, paste.target):
                rows, columns = paste.window(corner)
                assert 0 <= rows.start < rows.stop <= 64
                assert 0 <= columns.start < columns.stop <= 64
            width, height = paste.size
            assert all(
                0 <= b <= int(0.25 * side) for b, side in zip(paste.beyond, (width, height) * 2, strict=True)
            )
            ends.add(paste.target[0] in (0, 64 - width))
            placed.append(paste)
    assert ends == {True, False}
    assert len(placed) == 800  # both large objects in each: the thin one has no whole pixel, and counts
    assert any(max(p.beyond) > 0 for p in placed)


def test_areas_are_those_of_the_annotations_also_after_crops_and_mosaics(root):
    data = data_of(root, replace(DENSE, mosaic=replace(MOSAIC, probability=1.0)))
    dataset = data.training_dataset()
    index = dataset.index
    for epoch in (2, 3):
        for row in range(10):
            found, sample = dataset._objects((epoch, row)), dataset[(epoch, row)]
            assert torch.equal(found.labels, sample.labels)
            torch.testing.assert_close(
                found.boxes_xyxy / SIDE, cxcywh_to_xyxy(sample.boxes), atol=1e-5, rtol=0
            )
            known = {float(a) for r in range(len(index)) for a in index.objects(r).areas}
            own = {float(a) for a in index.objects(row).areas}
            assert set(found.areas.tolist()) <= (known if epoch == 2 else own)


def test_areas_stay_with_their_objects_where_others_are_dropped(root):
    dataset = data_of(root, min_box_side=20.0).training_dataset()
    index, dropped = dataset.index, 0
    for row in range(20):
        found, every = dataset._objects((0, row)), index.objects(row)  # epoch 0 only flips
        sizes = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]) * 48 / SIDE
        of_size = {
            tuple(round(float(v), 1) for v in box[2:]): float(area)
            for box, area in zip(every.boxes_xywh, every.areas, strict=True)
        }
        known = [of_size[tuple(round(v, 1) for v in size)] for size in sizes.tolist()]
        assert found.areas.tolist() == known
        dropped += len(every.areas) - len(known)
    assert dropped > 5


def test_small_objects_are_dropped_below_the_given_side(root):
    data = data_of(root, None, min_box_side=20.0)
    for epoch in (0, 1):
        kept = [dataset_boxes(data, epoch, row) for row in range(20)]
        sides = torch.cat(kept)[:, 2:] * SIDE
        assert sides.min() >= 20 - 1e-3
        usual = torch.cat([dataset_boxes(data_of(root, None), epoch, row) for row in range(20)])
        assert len(usual) > len(sides)


def dataset_boxes(data: CustomDataModule, epoch: int, row: int) -> torch.Tensor:
    return data.training_dataset()[(epoch, row)].boxes


def test_the_preflight_shows_the_epoch_that_augments_most(root):
    assert data_of(root).strongest_epoch() == 1
    assert data_of(root, replace(DENSE, mixup=replace(MIXUP, epochs=(2, 3)))).strongest_epoch() == 2
    assert data_of(root, None).strongest_epoch() == 1
    assert data_of(root, None, later_transforms=None).strongest_epoch() == 0
    dropped, total = data_of(root, later_transforms=None, train_transform="rt_detr").dropped_object_share(8)
    assert 0 <= dropped <= total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": InputContract(resize="shortest", size=(64, 100))}, "dense_o2o mixes images of one size"),
        (
            {"later_transforms": None},
            r"epochs \[1, 3\] have train_transform 'rt_detr_clean', which makes no mosaics",
        ),
        (
            {"later_transforms": LATER[1:], "train_transform": "flip"},
            "train_transform 'flip', which makes no",
        ),
        (
            {"train_transform": "rt_detr", "later_transforms": None, "photometric": "device"},
            "would distort images that dense_o2o has mixed",
        ),
        ({"masks": True}, "dense_o2o mixes objects by their boxes and has no rule for masks: true"),
        ({"min_box_side": -1.0}, "min_box_side is -1.0 pixels; it must be 0 or more"),
    ],
)
def test_refused(root, change, message):
    with pytest.raises(ValueError, match=message):
        data_of(root, **change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(DENSE, group=0), "dense_o2o.group is 0 images"),
        (lambda: replace(DENSE, mixup=Mixup(epochs=(3, 3), probability=0.5)), r"mixup.epochs is \[3, 3\]"),
        (
            lambda: replace(DENSE, mosaic=replace(MOSAIC, probability=1.5)),
            "mosaic.probability is 1.5; it must lie",
        ),
    ],
)
def test_refused_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
