"""Several ranks with several workers, killed and resumed: each sample exactly once, and always the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from shard_server import ShardServer
from tiny_sets import module

from datamodules.custom import CustomDataModule
from datamodules.formats.detect import read
from datamodules.loading.loaders import EvaluationLoader
from datamodules.shapes import generate_shapes
from datamodules.shards.writer import SMALLEST_SHARD, pack
from zoo.contract.batch import Batch

STEP, STEPS, KILLED_AFTER = 8, 6, 5  # images, steps of an epoch, micro-batches
TRAIN, VAL = STEP * STEPS + 5, 11
EPOCH = 2
Sample = list[int]  # id, crc32 of its pixels, crc32 of its boxes


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("plain"), TRAIN, VAL, seed=1, size=40)


@pytest.fixture(scope="module")
def packed(plain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert len(pack(read(plain), folder, SMALLEST_SHARD).shards) > 2
    return folder


@pytest.fixture
def roots(plain, packed) -> Iterator[dict[str, str]]:
    with ShardServer(packed) as server:
        yield {"plain": str(plain), "shards": str(packed), "http": server.url}


def data_of(root: str, world: int, rank: int, workers: int) -> CustomDataModule:
    data = module(root, batch_size=2, train_transform="rt_detr", num_workers=workers)
    data.plan_steps(STEP, world, rank)
    data.set_epoch(EPOCH)
    return data


def samples(batch: Batch) -> list[Sample]:
    boxes = batch.targets.boxes.split(batch.targets.counts)
    return [
        [image_id, zlib.crc32(image.numpy().tobytes()), zlib.crc32(own.numpy().tobytes())]
        for image_id, image, own in zip(batch.image_ids, batch.images, boxes, strict=True)
    ]


def expected(plain: Path) -> list[dict[str, Any]]:
    """The steps as one process without workers makes them from plain files."""
    data = data_of(str(plain), 1, 0, 0)
    batches = list(data.train_dataloader())
    parts = [batches[i : i + STEP // 2] for i in range(0, len(batches), STEP // 2)]
    return [
        {
            "step": own[0].step.index,
            "counts": own[0].step.counts.tolist(),
            "samples": [s for b in own for s in samples(b)],
        }
        for own in parts
    ]


def run_rank(
    root: str, folder: Path, world: int, rank: int, workers: int, skip: int, killed_after: int | None
) -> None:
    """One rank of an epoch; writes a line for each micro-batch it was given, and may die for good."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{skip}", rank=rank, world_size=world)
    data = data_of(root, world, rank, workers)
    data.skip_batches(skip)
    with open(folder / f"{skip}_{rank}.jsonl", "w") as file:
        for number, batch in enumerate(data.train_dataloader()):
            line = {"step": batch.step.index, "counts": batch.step.counts.tolist(), "samples": samples(batch)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if killed_after is not None and number + 1 == killed_after and rank == world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
    dataset = data.val_dataloader()._loader.dataset
    evaluated = [i for b in EvaluationLoader(dataset, 2, workers, world, rank) for i in b.image_ids]
    (folder / f"val_{rank}.json").write_text(json.dumps(evaluated))
    dist.destroy_process_group()


def run(root: str, folder: Path, world: int, workers: int, skip: int, killed_after: int | None) -> None:
    context = multiprocessing.get_context("fork")  # a new interpreter would import for seconds
    jobs = [
        context.Process(target=run_rank, args=(root, folder, world, rank, workers, skip, killed_after))
        for rank in range(world)
    ]
    for job in jobs:
        job.start()
    assert ended(jobs[-1]) == (0 if killed_after is None else -signal.SIGKILL)
    for job in jobs[:-1]:
        if killed_after is not None:
            job.kill()
        assert ended(job) == 0 or killed_after is not None


def ended(job: Any) -> int:
    """Its exit code. Not by join: the pipe that it waits for is open in the workers of a killed process."""
    deadline = time.monotonic() + 120
    while job.exitcode is None:
        assert time.monotonic() < deadline, "a rank hangs"
        time.sleep(0.02)
    return job.exitcode


def lines(folder: Path, skip: int, rank: int) -> list[dict[str, Any]]:
    text = (folder / f"{skip}_{rank}.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def check(roots: dict[str, str], folder: Path, source: str, world: int, workers: int) -> None:
    folder.mkdir()
    run(roots[source], folder, world, workers, 0, KILLED_AFTER)
    before = [lines(folder, 0, rank) for rank in range(world)]
    consumed = min(len(own) for own in before)  # as a checkpoint would say
    accumulation = STEP // (2 * world)
    assert 0 < consumed <= KILLED_AFTER < STEPS * accumulation
    run(roots[source], folder, world, workers, consumed, None)
    ranks = [own[:consumed] + lines(folder, consumed, rank) for rank, own in enumerate(before)]

    whole = expected(Path(roots["plain"]))
    for number, step in enumerate(whole):
        turns = [
            ranks[rank][number * accumulation + micro]
            for micro in range(accumulation)
            for rank in range(world)
        ]
        assert [s for turn in turns for s in turn["samples"]] == step["samples"]
        assert all((turn["step"], turn["counts"]) == (step["step"], step["counts"]) for turn in turns)
    seen = [s[0] for own in ranks for line in own for s in line["samples"]]
    assert len(seen) == len(set(seen)) == STEP * STEPS
    evaluated = [i for rank in range(world) for i in json.loads((folder / f"val_{rank}.json").read_text())]
    assert sorted(evaluated) == list(range(VAL))


def test_two_ranks_with_a_worker_each_killed_and_resumed(roots, tmp_path):
    check(roots, tmp_path / "run", "shards", world=2, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("source", ["plain", "shards", "http"])
def test_the_whole_matrix(roots, tmp_path, source, world, workers):
    check(roots, tmp_path / "run", source, world, workers)
