"""Steps of images of like final size: which images, in which order, and what it saves."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_sets import module, write_image

from datamodules.loading.samplers import (
    Bucketing,
    EpochOrder,
    Key,
    StepBatchSampler,
    epoch_order,
    padding_share,
)
from zoo.contract.batch import Batch
from zoo.contract.preprocess import InputContract
from zoo.training.callbacks import Progress

SHORTEST = InputContract(resize="shortest", size=(64, 110))


def sizes_of(key: Key) -> tuple[int, int]:
    """A made-up transform: sizes of many kinds, other ones in each epoch."""
    draw = random.Random(str(key))
    return draw.choice([(480, 640), (640, 480), (800, 800), (480, 900)])


def same_size(key: Key) -> tuple[int, int]:
    return 640, 640


def sampler(
    batch_size: int, accumulation: int, world: int, rank: int, window: int | None = 4
) -> StepBatchSampler:
    bucketing = None if window is None else Bucketing(window, sizes_of)
    return StepBatchSampler(
        103,
        5,
        batch_size=batch_size,
        accumulation=accumulation,
        world_size=world,
        rank=rank,
        bucketing=bucketing,
    )


def epoch(batches: StepBatchSampler, number: int, skip: int = 0) -> list[list[Key]]:
    batches.epoch, batches.skip = number, skip
    return list(batches)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_each_image_at_most_once_and_only_those_of_the_unbucketed_epoch(window):
    rows = [row for batch in epoch(sampler(2, 2, 2, 0, window), 3) for _, row in batch]
    rows += [row for batch in epoch(sampler(2, 2, 2, 1, window), 3) for _, row in batch]
    assert sorted(rows) == sorted(epoch_order(103, 5, 3)[:96])


@pytest.mark.parametrize("window", [1, 4, 5, 100])
def test_an_image_stays_in_its_window(window):
    order, steps = epoch_order(103, 5, 3), list(EpochOrder(103, 5, 8, Bucketing(window, sizes_of)).steps(3))
    assert len(steps) == 12
    for begin in range(0, 12, window):
        own = [row for step in steps[begin : begin + window] for row in step]
        assert sorted(own) == sorted(order[: 12 * 8][begin * 8 : (begin + window) * 8])


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world"), [(4, 2, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2)]
)
def test_the_images_of_a_step_do_not_depend_on_its_split(batch_size, accumulation, world):
    whole = epoch(sampler(8, 1, 1, 0), 2)
    parts = [epoch(sampler(batch_size, accumulation, world, rank), 2) for rank in range(world)]
    for number, step in enumerate(whole):
        turns = [
            key
            for micro in range(accumulation)
            for rank in range(world)
            for key in parts[rank][number * accumulation + micro]
        ]
        assert turns == step


@pytest.mark.parametrize("window", [None, 1, 3, 4, 100])
def test_a_resume_goes_on_with_the_same_batches(window):
    whole = epoch(sampler(2, 2, 2, 1, window), 1)
    for skip in range(len(whole) + 1):
        assert epoch(sampler(2, 2, 2, 1, window), 1, skip) == whole[skip:]


def test_epochs_and_seeds_differ_and_repeat():
    assert epoch(sampler(8, 1, 1, 0), 0) == epoch(sampler(8, 1, 1, 0), 0)
    rows = [[row for batch in epoch(sampler(8, 1, 1, 0), e) for _, row in batch] for e in (0, 1)]
    assert rows[0] != rows[1]


def test_a_step_holds_images_of_like_size_and_steps_are_in_random_order():
    steps = list(EpochOrder(960, 0, 8, Bucketing(60, sizes_of)).steps(0))
    kinds = [{sizes_of((0, row)) for row in step} for step in steps]
    assert sum(len(kind) == 1 for kind in kinds) > 100  # of 120; at the edges of a kind there are two
    first = [min(kind)[0] for kind in kinds[:60]]
    assert first not in (sorted(first), sorted(first, reverse=True))


def test_images_of_one_size_keep_their_random_company():
    plain, bucketed = (list(EpochOrder(80, 0, 8, b).steps(0)) for b in (None, Bucketing(10, same_size)))
    assert sorted(plain) == sorted(bucketed)


def test_only_the_window_that_is_reached_is_sized():
    asked = []

    def counted(key: Key) -> tuple[int, int]:
        asked.append(key)
        return sizes_of(key)

    order = EpochOrder(1000, 0, 10, Bucketing(5, counted))
    assert asked == []
    next(order.steps(0, first=52))
    assert len(asked) == 50
    assert [row for _, row in asked] == epoch_order(1000, 0, 0)[500:550]


def test_padding_share_by_hand():
    sizes = {0: (10, 20), 1: (20, 10), 2: (10, 10), 3: (10, 10)}
    batches = StepBatchSampler(4, 0, batch_size=2, accumulation=2)
    by_hand = 0
    for batch in batches:
        h, w = (max(sizes[row][side] for _, row in batch) for side in (0, 1))
        by_hand += 2 * h * w
    share = padding_share(batches, lambda key: sizes[key[1]], 0, 9)
    assert (share.padded, share.useful) == (by_hand, 600)
    assert share.ratio == by_hand / 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many")
    (root / "labels").mkdir()
    for i in range(24):
        write_image(root / "images" / f"{i:02d}.jpg", ((40, 60), (60, 40), (40, 40))[i % 3], i)
        (root / "labels" / f"{i:02d}.txt").write_text("0 .5 .5 .5 .5")
    (root / "data.yaml").write_text("names: [thing]\ntrain: images\nval: images\n")
    return root


def test_sizes_are_those_of_the_images_and_padding_falls(folder, caplog):
    ratios = {}
    for bucketing in (None, 4):
        data = module(folder, input=SHORTEST, train_transform="detr", eval_split="train", bucketing=bucketing)
        data.plan_steps(4, 1, 0)
        dataset = data.training_dataset()
        with caplog.at_level(logging.INFO):
            batches = list(data.train_dataloader())
        seen = [i for batch in batches for i in batch.image_ids]
        assert sorted(seen) == list(range(24))
        padded = sum(batch.padding.numel() for batch in batches)
        useful = sum(int((~batch.padding).sum()) for batch in batches)
        assert data.padding_ratio == padded / useful
        ratios[bucketing] = data.padding_ratio
        assert dataset.final_size((0, 5)) == tuple(dataset[(0, 5)].image.shape[1:])
    assert ratios[4] < ratios[None]
    assert (
        f"padding: {ratios[None]:.2f} pixels are computed for each pixel of an image (no bucketing)"
        in caplog.text
    )
    assert "(bucketing over 4 steps)" in caplog.text


class Written(CSVLogger):
    """Keeps what it is given."""

    def log_metrics(self, metrics, step=None):
        self.given = (dict(metrics), step)


def test_padding_is_logged_as_a_metric_and_told_at_the_start(folder, tmp_path):
    data = module(folder, input=SHORTEST, train_transform="detr", eval_split="train")
    data.train_dataloader()  # as the preflight does, which has no logger
    logger, said = Written(tmp_path), []
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=logger, max_steps=1, callbacks=[Progress(said.append)],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=100,
        use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Idle(), datamodule=data)
    assert data.padding_ratio > 1
    assert logger.given == ({"data/padding_ratio": data.padding_ratio}, 0)
    assert said[0] == f"padding     {data.padding_ratio:.2f} pixels are computed for each pixel of an image"


class Idle(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_workers_and_splits_change_nothing_where_it_is_on(folder):
    def batches(batch_size: int, workers: int) -> list:
        arguments = dict(input=SHORTEST, train_transform="detr", eval_split="train", bucketing=3)
        data = module(folder, batch_size=batch_size, num_workers=workers, **arguments)
        data.plan_steps(4, 1, 0)
        return list(data.train_dataloader())

    alone, helped, split = batches(4, 0), batches(4, 2), batches(2, 0)
    assert [b.image_ids for b in alone] == [b.image_ids for b in helped]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, helped, strict=True))
    assert [b.image_ids for b in alone] == [
        a.image_ids + b.image_ids for a, b in zip(split[::2], split[1::2], strict=True)
    ]


def test_it_is_refused_where_sizes_depend_on_boxes_and_for_no_steps(folder):
    with pytest.raises(ValueError, match=r"'rt_detr' with resize: shortest depends on the objects"):
        module(folder, input=SHORTEST, train_transform="rt_detr", bucketing=4)
    with pytest.raises(ValueError, match="bucketing is 0 steps; it must be at least 1, or null"):
        module(folder, bucketing=0)
