"""Training and evaluation images cut into tiles: which, with which objects, and that nothing else decides it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sets import module

from datamodules.custom import CustomDataModule
from datamodules.loading.pictures import TilePictures
from datamodules.tiling import items
from datamodules.tiling.items import WHOLE, TileItems, tile_shares
from datamodules.tiling.rules import TileSampling
from datamodules.transforms.targets import unit_boxes
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tiles

TILES = Tiles(size=(32, 40), overlap=0.25)
INPUT = InputContract(resize="stretch", size=(32, 40), tiles=TILES)
# (width, height) of images, and their objects as COCO has them: xywh, crowd
PICTURES = [
    ((100, 70), [((2, 2, 6, 6), 0), ((30, 20, 30, 20), 0), ((5, 40, 90, 25), 0), ((60, 2, 20, 10), 1)]),
    ((40, 32), [((10, 10, 8, 8), 0)]),  # as large as a tile
    ((20, 16), []),  # smaller, and empty
    ((160, 20), [((0, 0, 160, 20), 0), ((38, 4, 4, 4), 0)]),
    ((1, 200), [((0, 50, 1, 3), 0)]),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / split).mkdir()
        images, annotations = [], []
        for number, ((width, height), objects) in enumerate(PICTURES):
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            images.append({"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height})
            annotations += [
                {"id": 1 + len(annotations) + n, "image_id": 10 + number, "category_id": 1 + n % 2, "bbox": list(box),
                 "area": box[2] * box[3], "iscrowd": crowd}
                for n, (box, crowd) in enumerate(objects)
            ]  # fmt: skip
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def tiled(root: Path, **changes) -> CustomDataModule:
    arguments = {"input": INPUT, "train_transform": "none", "batch_size": 4} | changes
    return module(root, **arguments)


def pictures_of(data: CustomDataModule) -> TilePictures:
    found = data.training_dataset().pictures
    assert isinstance(found, TilePictures)
    return found


def test_an_epoch_has_every_tile_with_an_object_and_the_stated_share_of_others(root):
    data = tiled(root, tile_sampling=TileSampling(visible=0.4, whole=0.25, empty=0.1))
    items, index = data.tile_items, data.read().splits["train"]
    held = {
        (row, number)
        for row in range(len(index))
        for number, shares in enumerate(tile_shares(index, row, TILES))
        if (shares >= 0.4).any()
    }
    for epoch in range(3):
        drawn = [items.item(epoch, n) for n in range(len(items))]
        kinds = Counter((item.number == WHOLE, tuple(item) in held) for item in drawn)
        assert kinds[False, True] == len(held) == len({i for i in drawn if tuple(i) in held})
        assert kinds[False, False] == round(0.1 * len(held))
        assert kinds[True, False] / len(drawn) == pytest.approx(0.25, abs=0.03)
        whole = Counter(item.row for item in drawn if item.number == WHOLE)
        assert set(whole) <= {0, 3, 4}, "images that are not larger than a tile are a tile"
        assert max(whole.values()) - min(whole.values()) <= 1
    assert items.counts.images == 5
    assert items.counts.cut == 3


def test_what_an_edge_cuts_is_kept_trimmed_or_ignored_by_the_share_that_shows(root):
    pictures = pictures_of(tiled(root, tile_sampling=TileSampling(visible=0.4, whole=0.3, empty=1.0)))
    index = pictures.index
    seen = Counter()
    for number in range(len(pictures)):
        row, tile = pictures.row(0, number), pictures.tile(0, number)
        boxes, ignored = [], []
        for box, crowd in PICTURES[row][1]:
            x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
            own = (max(x0, tile.left), max(y0, tile.top), min(x1, tile.right), min(y1, tile.bottom))
            if own[2] <= own[0] or own[3] <= own[1]:
                continue
            share = (own[2] - own[0]) * (own[3] - own[1]) / (box[2] * box[3])
            own = tuple(np.subtract(own, (tile.left, tile.top) * 2))
            (boxes if share >= 0.4 and not crowd else ignored).append(own)
            seen[
                "crowd" if crowd else "whole" if share == 1 else "trimmed" if share >= 0.4 else "ignored"
            ] += 1
        assert sorted(map(tuple, pictures.targets(0, number).boxes_xyxy.tolist())) == sorted(boxes)
        assert sorted(map(tuple, pictures.ignored(0, number).tolist())) == sorted(ignored)
        assert pictures.size(0, number) == tile.size
        assert len(pictures.areas(0, number)) == len(boxes)
    assert min(seen[kind] for kind in ("crowd", "whole", "trimmed", "ignored")) > 0
    assert index.size(0) == (70, 100)


def test_the_pixels_are_those_of_the_tile(root):
    pictures = pictures_of(tiled(root, tile_sampling=TileSampling(whole=0.3, empty=1.0)))
    for number in range(len(pictures)):
        row, tile = pictures.row(1, number), pictures.tile(1, number)
        every = np.array(Image.open(root / "train" / f"{row}.png"))
        shown = every[tile.top : tile.bottom, tile.left : tile.right]
        for backend in ("fast", "pil"):
            image = pictures.image(1, number, INPUT.with_backend(backend))
            found = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.array(image)
            assert np.array_equal(found, shown)


@pytest.mark.parametrize("transform", ["rt_detr", "detr", "finetune", "flip"])
def test_objects_and_ignored_regions_go_through_the_transform_together(root, transform):
    """An object that is ignored instead gets the box that it would have as an object."""
    contract = InputContract(resize="shortest", size=(32, 60), tiles=TILES) if transform == "detr" else INPUT
    common = {"input": contract, "train_transform": transform, "min_box_side": 0.0}
    data = tiled(root, tile_sampling=TileSampling(visible=1.0), **common).training_dataset()
    every = tiled(root, tile_sampling=TileSampling(visible=0.01), **common).training_dataset()
    pictures = data.pictures
    compared = 0
    for number in range(len(data)):
        row, tile = pictures.row(0, number), pictures.tile(0, number)
        twin = next((n for n in range(len(every)) if every.pictures.tile(0, n) == tile
                     and every.pictures.row(0, n) == row), None)  # fmt: skip
        if twin is None:
            continue
        own = data._drawn((0, number))
        regions = data[(0, number)].ignored
        cut = every.pictures.targets(0, twin)
        whole = {tuple(box) for box in pictures.targets(0, number).boxes_xyxy.tolist()}
        parts = [n for n, box in enumerate(cut.boxes_xyxy.tolist()) if tuple(box) not in whole]
        expected = (
            unit_boxes(own.plan.regions(cut), own.plan.size)[:0]
            if not parts
            else unit_boxes(
                own.plan.regions(cut.only(np.isin(np.arange(len(cut.labels)), parts))), own.plan.size
            )
        )
        for box in expected.tolist():
            assert any(np.allclose(box, other, atol=1e-6) for other in regions.tolist())
        compared += len(expected)
        assert bool(((regions >= 0) & (regions <= 1)).all())
    assert compared > 0


def flat(
    data: CustomDataModule,
    world: int = 1,
    batch_size: int = 8,
    workers: int = 0,
    skip: int = 0,
    epoch: int = 1,
):
    """All images of an epoch, by their place in it, of all ranks."""
    found = {}
    for rank in range(world):
        own = tiled(
            Path(data._root), batch_size=batch_size, num_workers=workers, train_transform="rt_detr",
            balance=data.balance,
        )  # fmt: skip
        own.setup("fit")
        accumulation = own.plan_steps(8, world, rank)
        own.set_epoch(epoch)
        own.skip_batches(skip)
        for n, batch in enumerate(own.train_dataloader(), skip):
            step, micro = divmod(n, accumulation)
            for k in range(len(batch)):
                part = batch.part(k, k + 1)
                found[step, (micro * world + rank) * len(batch) + k] = part
    return found


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for place, batch in one.items():
        theirs = other[place]
        assert batch.image_ids == theirs.image_ids
        for name in ("labels", "boxes", "ignored"):
            assert torch.equal(getattr(batch.targets, name), getattr(theirs.targets, name)), name
        assert torch.equal(batch.images, theirs.images)


@pytest.mark.parametrize(
    ("world", "batch_size", "workers"), [(1, 2, 0), (2, 4, 0), (2, 2, 0), (4, 1, 0), (1, 4, 2)]
)
@pytest.mark.parametrize("balance", [None, 0.9])
def test_ranks_micro_batches_and_workers_change_nothing(root, world, batch_size, workers, balance):
    data = tiled(root, balance=balance)
    assert_equal(flat(data), flat(data, world, batch_size, workers))


@pytest.mark.parametrize("balance", [None, 0.9])
def test_a_resume_within_an_epoch_goes_on_with_the_same_tiles(root, balance):
    data = tiled(root, balance=balance)
    whole, rest = flat(data, batch_size=4), flat(data, batch_size=4, skip=1)
    assert 0 < len(rest) < len(whole)
    assert_equal({place: whole[place] for place in rest}, rest)


def test_epochs_differ_in_what_is_drawn_and_have_as_many_images(root):
    data = tiled(root, tile_sampling=TileSampling(empty=0.2, whole=0.4))
    items = data.tile_items
    drawn = [[items.item(epoch, n) for n in range(len(items))] for epoch in range(6)]
    assert len({tuple(epoch) for epoch in drawn}) > 1
    again = TileItems(data.read().splits["train"], TILES, data.tile_sampling, data.seed)
    assert [[again.item(epoch, n) for n in range(len(again))] for epoch in reversed(range(6))] == drawn[::-1]


def test_balance_repeats_tiles_by_the_classes_that_they_show_and_whole_images_by_theirs(root):
    """Of five images four have class 1 and two have class 2: factors of 1.06 and 1.5."""
    sampling = TileSampling(visible=0.4, whole=0.25, empty=0.1)
    data = tiled(root, tile_sampling=sampling, balance=0.9)
    items, index, repeats = data.tile_items, data.read().splits["train"], data.repeats
    factor = {1: math.sqrt(0.9 / 0.8), 2: math.sqrt(0.9 / 0.4)}
    wanted = {}
    for row in range(len(index)):
        classes = [1 + n % 2 for n, (_, crowd) in enumerate(PICTURES[row][1]) if not crowd]
        for number, shares in enumerate(tile_shares(index, row, TILES)):
            held = [factor[c] for c, share in zip(classes, shares, strict=True) if share >= 0.4]
            if held:
                wanted[row, number] = max(held)
    assert len(set(wanted.values())) == 2
    uses, kinds, epochs = Counter(), Counter(), 400
    for epoch in range(epochs):
        keys = repeats.order(data.seed, epoch)
        assert len(keys) == data.images_of_epoch
        for key in keys:
            item = items.item(epoch, key % len(items))
            uses[tuple(item)] += 1
            kinds["whole" if item.number == WHOLE else "full" if tuple(item) in wanted else "empty"] += 1
    for item, mean in wanted.items():
        assert uses[item] / epochs == pytest.approx(mean, rel=0.1), item
    total = sum(kinds.values())
    assert kinds["whole"] / total == pytest.approx(0.25, abs=0.02), "as the recipe says"
    assert kinds["empty"] / kinds["full"] == pytest.approx(0.1, abs=0.02)
    whole = {row: uses[row, WHOLE] for row in (0, 3, 4)}
    assert whole[0] / whole[4] == pytest.approx(factor[2] / factor[1], rel=0.1)
    assert whole[0] / whole[3] == pytest.approx(1, rel=0.1)


def test_where_no_class_is_rare_balance_changes_no_tile(root):
    one, other = tiled(root), tiled(root, balance=0.001)
    assert other.repeats is None
    assert_equal(flat(one), flat(other))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_evaluation_shows_every_view_of_every_image_of_a_rank(root, batch_size):
    seen = []
    for rank in range(3):
        data = tiled(root, eval_batch_size=batch_size)
        data.setup("validate")
        dataset = data.val_dataloader()._loader.dataset
        for keys in dataset.batches(batch_size, 3, rank):
            assert len({row for row, _ in keys}) == 1
            assert all(row % 3 == rank for row, _ in keys)
            seen += keys
    sizes = [(height, width) for (width, height), _ in PICTURES]
    assert sorted(seen) == [
        (row, n) for row, size in enumerate(sizes) for n in range(len(TILES.views(*size)))
    ]


def test_a_view_has_its_own_annotations_and_the_last_those_of_the_image(root):
    data = tiled(root)
    data.setup("validate")
    for batch in data.val_dataloader():
        for n, piece in enumerate(batch.pieces):
            own = batch.annotations.part(n, n + 1)
            assert batch.original_sizes[n] == piece.tile.size
            limit = torch.tensor([piece.tile.width, piece.tile.height], dtype=torch.float64)
            assert bool((own.boxes_xywh[:, :2] >= 0).all())
            assert bool((own.boxes_xywh[:, :2] + own.boxes_xywh[:, 2:] <= limit + 1e-9).all())
            row = batch.image_ids[n] - 10
            if piece.annotations is not None:
                assert piece.annotations.boxes_xywh.tolist() == [
                    list(map(float, b)) for b, _ in PICTURES[row][1]
                ]


def test_what_is_out_of_range_is_refused_in_one_line(root):
    for name, value in (
        ("visible", 0),
        ("visible", 1.5),
        ("whole", 1.0),
        ("whole", -0.1),
        ("empty", -1),
        ("whole", None),
    ):
        with pytest.raises(ValueError, match=f"tile_sampling.{name} is") as refused:
            TileSampling(**{name: value})
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"belongs to input\.tiles"):
        module(root, tile_sampling=TileSampling())
    with pytest.raises(ValueError, match="only boxes are merged, not masks"):
        tiled(root, masks=True)


def test_the_lines_for_the_user_give_the_counts(root):
    first, second, third = tiled(root).tile_items.lines()
    assert first.startswith("tiles 32x40, overlap 0.25: 3 of 5 images are larger")
    assert "whole" in second
    assert third.startswith("of 7 objects ")


@pytest.mark.parametrize(("size", "overlap", "told"), [
    ((300, 300), 0.2, ["no image is larger than a tile of 300x300, so that nothing is cut"]),
    ((16, 16), 0.75, ["tiles for each image, and each costs as much as an image"]),
    ((16, 16), 0.0, ["4 of 7 objects are larger than what neighbouring tiles share, and cut in every tile"]),
])  # fmt: skip
def test_sizes_that_make_no_sense_are_told_with_the_number(root, size, overlap, told, monkeypatch):
    monkeypatch.setattr(items, "MANY", 40)
    contract = InputContract(resize="stretch", size=(32, 40), tiles=Tiles(size=size, overlap=overlap))
    _, _, _, *more = tiled(root, input=contract).tile_items.lines()
    assert len(more) == len(told), more
    for line, words in zip(more, told, strict=True):
        assert words in line
