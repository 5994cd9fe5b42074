from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from tiny_sets import module, write_coco, write_image
from torch.utils.data import DataLoader, Dataset

from datamodules.custom import CustomDataModule
from datamodules.loading import loaders
from datamodules.loading.loaders import (
    EvaluationLoader,
    WorkerDiedError,
    _shared_zeros,
    batches_of,
    collate_in_place,
)
from datamodules.loading.samplers import EvaluationBatchSampler, StepBatchSampler, epoch_order
from datamodules.shapes import generate_shapes
from zoo.contract.batch import Batch, Sample, collate
from zoo.contract.preprocess import InputContract

NUM_IMAGES = 27


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), NUM_IMAGES, 5, seed=1, size=48)


def planned(
    root: Path, batch_size: int, world: int = 1, rank: int = 0, **changes: object
) -> CustomDataModule:
    data = module(root, batch_size=batch_size, train_transform="rt_detr", **changes)
    data.setup("fit")
    data.plan_steps(8, world, rank)
    return data


def flat(batches: list[Batch]) -> dict[str, object]:
    """Everything of the batches of one step, in order, as if undivided."""
    return {
        "ids": [i for b in batches for i in b.image_ids],
        "images": torch.cat([b.images for b in batches]),
        "labels": torch.cat([b.targets.labels for b in batches]),
        "boxes": torch.cat([b.targets.boxes for b in batches]),
        "counts": [c for b in batches for c in b.targets.counts],
    }


def assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    assert a["ids"] == b["ids"]
    assert a["counts"] == b["counts"]
    for name in ("images", "labels", "boxes"):
        assert torch.equal(a[name], b[name]), name


def steps(data: CustomDataModule, epoch: int = 0) -> list[list[Batch]]:
    data.set_epoch(epoch)
    batches = list(data.train_dataloader())
    k = data.train_dataloader()._sampler.accumulation
    return [batches[i : i + k] for i in range(0, len(batches), k)]


@pytest.mark.parametrize("batch_size", [8, 4, 2, 1])
def test_a_step_holds_the_same_images_however_it_is_split(root, batch_size):
    whole, split = steps(planned(root, 8), epoch=2), steps(planned(root, batch_size), epoch=2)
    assert len(whole) == len(split) == 3
    for number, (one, parts) in enumerate(zip(whole, split, strict=True)):
        assert len(parts) == 8 // batch_size
        assert_same(flat(one), flat(parts))
        for part in parts:
            assert part.step.counts.tolist() == flat(one)["counts"]
            assert (part.step.index, part.step.seed, part.step.size) == (2 * 3 + number, 3, (32, 32))


def test_ranks_take_turns_in_the_step(root):
    whole = steps(planned(root, 8))
    by_rank = [steps(planned(root, 2, world=2, rank=rank)) for rank in (0, 1)]
    for number, one in enumerate(whole):
        turns = [batch for pair in zip(by_rank[0][number], by_rank[1][number], strict=True) for batch in pair]
        assert_same(flat(one), flat(turns))


def facts_of_steps(root, rank):
    data = module(root, batch_size=2, train_transform="rt_detr")
    data.plan_steps(8, 2, rank)
    return [(b.step.index, b.step.counts.tolist(), b.step.size) for b in data.train_dataloader()]


def test_step_facts_are_equal_on_all_ranks(root, answers_of_two_ranks):
    answers = answers_of_two_ranks(functools.partial(facts_of_steps, root))
    expected = [(s[0].step.index, s[0].step.counts.tolist(), (32, 32)) for s in steps(planned(root, 8))]
    assert answers[0] == answers[1]
    assert answers[0] == [line for line in expected for _ in range(2)]


def test_workers_change_nothing(root):
    alone, helped = steps(planned(root, 4)), steps(planned(root, 4, num_workers=2))
    for a, b in zip(alone, helped, strict=True):
        assert_same(flat(a), flat(b))


def test_the_state_of_the_process_changes_nothing_and_is_not_changed(root):
    data = planned(root, 4)
    torch.manual_seed(5)
    first = steps(data)
    torch.manual_seed(6)
    second = steps(data)
    for a, b in zip(first, second, strict=True):
        assert_same(flat(a), flat(b))
    before = torch.get_rng_state()
    data.training_dataset()[(0, 4)]
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_differ_in_order_and_in_draws(root):
    data = planned(root, 8)
    first, second = steps(data, 0), steps(data, 1)
    ids = [[i for s in e for i in flat(s)["ids"]] for e in (first, second)]
    assert ids[0] != ids[1]
    dataset = data.training_dataset()
    same_image = [dataset[(epoch, 4)] for epoch in (0, 0, 1)]
    assert torch.equal(same_image[0].image, same_image[1].image)
    assert not torch.equal(same_image[0].image, same_image[2].image)


def test_another_seed_gives_another_order(root):
    assert epoch_order(20, 0, 0) != epoch_order(20, 1, 0)
    assert sorted(epoch_order(20, 0, 0)) == list(range(20))


@pytest.mark.parametrize("skip", [0, 1, 2, 5, 6])
def test_resume_continues_where_it_was(root, skip):
    whole = list(planned(root, 4).train_dataloader())
    data = planned(root, 4)
    data.skip_batches(skip)
    loader = data.train_dataloader()
    assert_same_batches(whole[skip:], list(loader))
    assert_same_batches(whole, list(loader))  # the next epoch is whole again


def assert_same_batches(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert_same(flat([x]), flat([y]))
        assert x.step.index == y.step.index
        assert x.step.counts.tolist() == y.step.counts.tolist()


def test_padding_to_the_step(tmp_path):
    (tmp_path / "labels").mkdir()
    for i, size in enumerate([(40, 30), (30, 60), (50, 30), (30, 30)]):
        write_image(tmp_path / "images" / f"{i}.jpg", size)
        (tmp_path / "labels" / f"{i}.txt").write_text("0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text("names: [thing]\ntrain: images\nval: images\n")
    sizes = {}
    for padding in ("batch", "step"):
        contract = InputContract(resize="shortest", size=(20, 40), padding=padding)
        data = module(tmp_path, input=contract, batch_size=1, eval_split="train")
        data.plan_steps(4, 1, 0)
        batches = list(data.train_dataloader())
        assert {b.step.size for b in batches} == {(40, 33)}
        sizes[padding] = {tuple(b.images.shape[-2:]) for b in batches}
    assert sizes["step"] == {(40, 33)}
    assert len(sizes["batch"]) == 4


@pytest.mark.parametrize(
    ("batch_size", "world", "expected"),
    [(8, 1, (8, 1)), (5, 1, (4, 2)), (3, 2, (2, 2)), (100, 2, (4, 1)), (1, 4, (1, 2))],
)
def test_plan_takes_the_largest_micro_batch_that_keeps_the_step(root, batch_size, world, expected):
    data = module(root, batch_size=batch_size)
    assert data.plan_steps(8, world, 0) == expected[1]
    assert len(data.train_dataloader()) == 3 * expected[1]
    if world == 1:
        assert len(next(iter(data.train_dataloader()))) == expected[0]


def test_plan_refuses_what_cannot_be_kept(root):
    data = module(root)
    with pytest.raises(
        ValueError, match=r"global_batch_size 8 cannot be split over 3 devices.*multiple of 3"
    ):
        data.plan_steps(8, 3, 0)
    with pytest.raises(ValueError, match=r"27 images, fewer than one step of global_batch_size 32"):
        data.plan_steps(32, 1, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("num_images", [1, 7, 8, 30])
def test_evaluation_covers_each_image_once(world, num_images):
    shares = [list(EvaluationBatchSampler(num_images, 3, world, rank)) for rank in range(world)]
    seen = [row for share in shares for batch in share for row in batch]
    assert sorted(seen) == list(range(num_images))
    for rank, share in enumerate(shares):
        assert len(share) == len(EvaluationBatchSampler(num_images, 3, world, rank))


def test_evaluation_loader_delivers_annotations_as_they_are(root):
    data = module(root)
    batches = list(data.val_dataloader())
    assert [i for b in batches for i in b.image_ids] == [0, 1, 2, 3, 4]
    index = data.read().splits["val"]
    assert torch.equal(
        torch.cat([b.annotations.boxes_xywh for b in batches]), torch.from_numpy(index.boxes_xywh)
    )
    assert batches[0].annotations.boxes_xywh.dtype == torch.float64
    assert all(b.step is None for b in batches)
    assert all(b.images.dtype == torch.uint8 for b in batches)


def test_a_rank_without_images_evaluates_the_first_again_and_does_not_block_the_others(root):
    dataset = module(root).val_dataloader()._loader.dataset
    assert len(dataset) == 5
    assert [b.image_ids for b in EvaluationLoader(dataset, 2, 0, world_size=6, rank=5)] == [(0,)]


def test_left_over_images_are_not_used_in_the_epoch():
    sampler = StepBatchSampler(NUM_IMAGES, 0, batch_size=2, accumulation=2, world_size=2, rank=1)
    assert (sampler.num_steps, len(sampler)) == (3, 6)
    assert len({row for batch in sampler for _, row in batch}) == 12


class Recorder(pl.LightningModule):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.step.index, batch.image_ids))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **changes: object) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=2,
        use_distributed_sampler=False, **({"max_epochs": 3} | changes),
    )  # fmt: skip


class SaveAndStop(pl.Callback):
    """Saves a checkpoint within training, after so many steps, and raises: a crash that was saved before."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyError("crash")


@pytest.mark.filterwarnings("error:.*dataloader is not resumable")
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_lightning_epochs_and_resume_within_one(root, tmp_path, stop):
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(tmp_path).fit(whole, datamodule=planned(root, 4))
    steps_of_epochs = [(e, 3 * e + s) for e in range(3) for s in range(3) for _ in range(2)]
    assert [(e, i) for e, i, _ in whole.seen] == steps_of_epochs

    file = tmp_path / "stop.ckpt"
    with pytest.raises(KeyError):
        trainer(tmp_path, callbacks=[SaveAndStop(file, stop)]).fit(first, datamodule=planned(root, 4))
    data = planned(root, 4)
    data.skip_batches(2 * (stop % 3))
    trainer(tmp_path).fit(second, datamodule=data, ckpt_path=file)
    assert first.seen + second.seen == whole.seen


def test_lightning_resume_between_epochs(root, tmp_path):
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(tmp_path).fit(whole, datamodule=planned(root, 4))
    interrupted = trainer(tmp_path, max_epochs=1)
    interrupted.fit(first, datamodule=planned(root, 4))
    interrupted.save_checkpoint(tmp_path / "stop.ckpt")
    trainer(tmp_path).fit(second, datamodule=planned(root, 4), ckpt_path=tmp_path / "stop.ckpt")
    assert first.seen + second.seen == whole.seen


class Deadly(Dataset):
    """Its worker is killed at the third image, as by the kernel for want of memory."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Sample:
        if row == 2:
            time.sleep(0.5)  # the main process waits for the batch by now
            os.kill(os.getpid(), signal.SIGKILL)
        return Sample(
            torch.full((3, 4, 4), row, dtype=torch.uint8), torch.zeros(0), torch.zeros(0, 4), row, (4, 4)
        )


def test_a_killed_worker_is_told_with_advice():
    loader = DataLoader(Deadly(), num_workers=1, collate_fn=collate_in_place)
    with pytest.raises(
        WorkerDiedError, match=r"DataLoader worker \(pid.*ran out of memory.*lower num_workers \(1\)"
    ):
        list(batches_of(loader))


class Broken(Deadly):
    def __getitem__(self, row: int) -> Sample:
        raise RuntimeError("DataLoader worker was not killed")


def test_an_error_inside_a_worker_comes_as_it_is():
    with pytest.raises(RuntimeError, match=r"^DataLoader worker was not killed$"):
        list(batches_of(DataLoader(Broken(), num_workers=1, collate_fn=collate_in_place)))


def test_a_worker_collates_into_shared_memory_and_the_main_process_does_not(root, monkeypatch):
    assert not next(iter(planned(root, 4).train_dataloader())).images.is_shared()
    assert next(iter(planned(root, 4, num_workers=1).train_dataloader())).images.is_shared()

    def refused(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        raise RuntimeError(f"shared memory of {shape[0]} images")

    monkeypatch.setattr(loaders, "_shared_zeros", refused)
    with pytest.raises(RuntimeError, match="shared memory of 4 images"):
        next(iter(planned(root, 4, num_workers=1).train_dataloader()))


def test_shared_memory_holds_the_same_batch():
    none = torch.zeros(0), torch.zeros(0, 4)
    samples = [
        Sample(torch.randint(1, 255, (3, h, w), dtype=torch.uint8), *none, i, (h, w))
        for i, (h, w) in enumerate([(5, 9), (7, 2), (7, 9)])
    ]
    shared, plain = collate(samples, _shared_zeros), collate(samples)
    assert torch.equal(shared.images, plain.images)
    assert torch.equal(shared.padding, plain.padding)
    assert plain.padding[1, :, 2:].all()
    assert not plain.padding[1, :, :2].any()
    assert plain.padding[0, 5:].all()


def test_one_rank_alone_may_look_at_batches_within_a_process_group_of_others(tmp_path, monkeypatch):
    """The preflight of rank zero, where Ray has connected the ranks before: to ask them would wait for ever."""
    monkeypatch.setattr("datamodules.loading.loaders.gather_over_ranks", lambda facts: pytest.fail("asked"))
    data = module(write_coco(tmp_path))
    data.setup("fit")
    assert next(iter(data.train_dataloader())).step is not None
    data.plan_steps(2, world_size=2, rank=0)
    with pytest.raises(pytest.fail.Exception, match="asked"):
        next(iter(data.train_dataloader()))
