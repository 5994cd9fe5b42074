"""Scores do not depend on who evaluates what: ranks, batches, order, to the last digit.

Loaders, postprocessing, gathering and Lightning's loop are the real ones; a function of the image id stands for the
network, whose own rounding depends on the size of a batch.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from nursery import Nursery
from panoptic_case import SMALL, panoptic_folder
from partitions import environment_of

import zoo.architectures.detr  # noqa: F401  here, so that processes of the nursery have it
from datamodules.panoptic import CocoPanopticDataModule
from zoo.contract.batch import Annotations, Batch, Detections, Predictions, Targets
from zoo.contract.preprocess import InputContract
from zoo.evaluation import coco_evaluator
from zoo.evaluation.coco_ap import CocoAP
from zoo.evaluation.mask_scores import MaskScores
from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module

IMAGES = (1, 3, 5)  # no number of ranks but 1 divides them all; 3 and 1 leave ranks without images
BATCHES = (1, 2, 4)
QUERIES = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    place = tmp_path_factory.mktemp("panoptic")
    return {number: panoptic_folder(place / str(number), images=number) for number in IMAGES}


def data_of(folder: Path, batch_size: int) -> CocoPanopticDataModule:
    contract = InputContract(resize="stretch", size=(64, 64))
    return CocoPanopticDataModule(
        root=str(folder), labels="contiguous", input=contract, train_transform="none", batch_size=1,
        eval_batch_size=batch_size, num_workers=0, seed=0,
    )  # fmt: skip


def module_of() -> DetectionModule:
    torch.manual_seed(0)
    block = recipes.load(recipes.resolve("detr/r50_panoptic_coco_25e"))["model"]
    block["init_args"] |= SMALL | {"num_classes": 3}
    block["init_args"]["schedule"] |= {"rules": []}
    module = build_module(block)
    module.predictions = made_up  # type: ignore[method-assign]
    return module


def made_up(batch: Batch) -> Predictions:
    """Confident boxes and masks that are a function of the image id, some of them near the objects."""
    logits = torch.zeros(len(batch), QUERIES, 4)
    boxes = torch.zeros(len(batch), QUERIES, 4)
    areas = torch.zeros(len(batch), QUERIES, 16, 16)
    for row, image_id in enumerate(batch.image_ids):
        generator = torch.Generator().manual_seed(image_id)
        logits[row] = 4 * torch.rand(QUERIES, 4, generator=generator)
        boxes[row] = 0.3 + 0.4 * torch.rand(QUERIES, 4, generator=generator)
        areas[row] = torch.randn(QUERIES, 16, 16, generator=generator) - 2
        logits[row, 0, 2] = logits[row, 1, 1] = 9.0
        boxes[row, 1] = torch.tensor([24 / 64, 40 / 64, 32 / 64, (20 + image_id) / 64])
        areas[row, 0, :6] += 9.0
        areas[row, 1, 8:12, 2:10] += 9.0
    return Predictions(logits, boxes, masks=lambda image, query: areas[image, query])


def scores(folders: dict[int, Path], cases: list[tuple[int, int]], world: int, rank: int = 0) -> list[str]:
    """Scores by boxes, masks and segments of each case (images, batch size), every digit."""
    torch.set_num_threads(1)
    module, found = module_of(), []
    for images, batch_size in cases:
        several: dict[str, Any] = {
            "devices": world, "plugins": [LightningEnvironment()],
            "strategy": DDPStrategy(process_group_backend="gloo"),
        }  # fmt: skip
        with environment_of(rank, world), tempfile.TemporaryDirectory() as place:
            trainer = L.Trainer(
                accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                use_distributed_sampler=False, default_root_dir=place,
                **(several if world > 1 else {"devices": 1}),
            )  # fmt: skip
            assert trainer.world_size == world
            trainer.validate(module, datamodule=data_of(folders[images], batch_size), verbose=False)
        boxes, masks = module.val_ap.evaluation(), module.val_masks.segm_evaluation()
        segments = module.val_masks.panoptic_evaluation()
        assert boxes.num_images == masks.num_images == segments.num_images == images
        found.append(repr((boxes.scores, boxes.per_class, masks.scores, segments.scores)))
    return found


def assert_same_digits(
    folders: dict[int, Path], nursery: Nursery, cases: list[tuple[int, int]], worlds: tuple[int, ...]
) -> None:
    expected = scores(folders, cases, 1)
    assert len(set(expected)) == len({images for images, _ in cases})
    assert not any(f"'{score}': 0.0," in line for line in expected for score in ("AP", "PQ"))
    for world in worlds:
        for answer in nursery.answers_of_ranks(functools.partial(scores, folders, cases, world), world):
            assert answer == expected


def test_one_to_four_ranks_give_the_same_digits(folders: dict[int, Path], nursery: Nursery) -> None:
    assert_same_digits(folders, nursery, [(5, 2), (3, 1)], (2, 4))


@pytest.mark.slow
def test_any_number_of_images_and_any_batch_give_the_same_digits(
    folders: dict[int, Path], nursery: Nursery
) -> None:
    assert_same_digits(folders, nursery, list(itertools.product(IMAGES, BATCHES)), (2, 3, 4))


def test_neither_order_nor_batches_matter(folders: dict[int, Path]) -> None:
    module, data = module_of(), data_of(folders[5], batch_size=5)
    (batch,) = data.val_dataloader()
    results = set()
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [0, 1, 2, 3, 4, 0, 2]):
        ap, masks = CocoAP(), MaskScores()
        for row in order:
            one = batch.part(row, row + 1)
            found = module.predictions(one)
            ap.update(module.postprocess(found, one.original_sizes), one)
            masks.update(found, one, module.instances, module.panoptic, data.label_map.things)
        results.add(repr((ap.compute(), ap.evaluation().interval(20), masks.compute(5, module.panoptic))))
    assert len(results) == 1


# ------------------------------------------------------------------ forks


PERFECT = "1.000000000"


def an_evaluation() -> str:
    box = torch.tensor([[4.0, 4.0, 20.0, 30.0]])
    truth = Annotations(
        box.double(), torch.tensor([600.0]).double(), torch.tensor([1]), torch.tensor([False]), (1,)
    )
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    batch = Batch(
        torch.zeros(1, 3, 9, 9), torch.zeros(1, 9, 9), nothing, (7,), ((64, 64),), annotations=truth
    )
    metric = CocoAP()
    metric.update(
        [Detections(torch.tensor([0.9]), torch.tensor([1]), torch.tensor([[4.0, 4.0, 24.0, 34.0]]))], batch
    )
    return f"{metric.compute()['AP']:.9f}"


def evaluated(queue: Any) -> None:
    try:
        queue.put(an_evaluation())
    except RuntimeError as error:
        queue.put(f"refused: {error}")


def in_a_process(context: Any) -> str:
    queue = context.Queue()
    process = context.Process(target=evaluated, args=(queue,))
    process.start()
    answer: str = queue.get(timeout=120)
    process.join()
    return answer


def test_a_fork_after_an_evaluation_is_refused_and_not_waited_for() -> None:
    assert an_evaluation() == PERFECT
    assert coco_evaluator._threads_of == os.getpid()
    refused = in_a_process(multiprocessing.get_context("fork"))
    assert refused.startswith("refused: this process was forked from one that had evaluated")
    assert "spawn" in refused


@pytest.mark.slow
def test_a_process_that_is_spawned_evaluates() -> None:
    assert an_evaluation() == PERFECT
    assert in_a_process(multiprocessing.get_context("spawn")) == PERFECT


def test_training_in_such_a_fork_ends_before_its_first_step(
    folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_evaluator, "_threads_of", os.getpid() + 1)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(RuntimeError, match="forked from one that had evaluated"):
        trainer.fit(module_of(), datamodule=data_of(folders[1], 1))
