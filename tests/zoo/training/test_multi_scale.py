"""The size of a step is a function of (seed, step), ends with its epochs, and is the same however a run is cut."""

import functools

import pytest
import torch
from test_module import SIZE, make_data, trainer
from tiny_families import small_arguments

from datamodules.shapes import CLASSES, generate_shapes
from zoo.architectures.rt_detrv2 import RtDetrV2Module
from zoo.training.module import build_module
from zoo.training.saving import LAST, CheckpointSaver

SCALES, EPOCHS, LAST_EPOCH = [32, 96, 128], 2, 3
STEP = 8


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 40, 4, seed=0, size=SIZE)


def module_of_scales():
    """RT-DETRv2, tiny."""
    torch.manual_seed(0)
    arguments = small_arguments("rt_detrv2/r34_coco_120e")
    changes = {"num_classes": len(CLASSES), "multi_scale": SCALES, "multi_scale_epochs": EPOCHS}
    changes["schedule"] = arguments["schedule"] | {"rules": [], "global_batch_size": STEP}
    path = f"{RtDetrV2Module.__module__}.{RtDetrV2Module.__name__}"
    return build_module({"class_path": path, "init_args": arguments | changes})


def watch(network, seen):
    """Notes (epoch, step, side) of every micro-batch that the network trains on."""
    rescale = network.rescale

    def noted(images, step):
        resized = rescale(images, step)
        assert resized.shape[-1] == resized.shape[-2]
        seen.append((step.epoch, step.index, resized.shape[-1]))
        return resized

    network.rescale = noted


def fit(shapes, folder, batch_size=STEP, resume=None, **options):
    """{(epoch, step): side} of a training that saves after every second step; all micro-batches of a step agree."""
    folder.mkdir(exist_ok=True)
    module, seen = module_of_scales(), []
    watch(module.network, seen)
    saver = CheckpointSaver(monitor=None, every_n_train_steps=2)
    saver.folder = folder
    run = trainer(
        folder, enable_checkpointing=True, callbacks=[saver], **({"max_epochs": LAST_EPOCH} | options)
    )
    run.fit(module, make_data(shapes, batch_size), ckpt_path=None if resume is None else str(resume))
    return sides_of(seen)


def sides_of(seen):
    sides = {(epoch, index): side for epoch, index, side in seen}
    assert len(set(seen)) == len(sides)
    return sides


def loaded(shapes, world, batch_size, rank):
    """What the processes of a training get, without a trainer; `rank` last, for the nursery."""
    network, seen = module_of_scales().network, []
    watch(network, seen)
    data = make_data(shapes, batch_size)
    data.setup("fit")
    data.plan_steps(STEP, world, rank)
    for epoch in range(LAST_EPOCH):
        data.set_epoch(epoch)
        for batch in data.train_dataloader():
            network.rescale(batch.images, batch.step)
    return sides_of(seen)


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    return fit(shapes, tmp_path_factory.mktemp("whole"))


def test_scales_are_drawn_anew_in_each_epoch_and_end_with_the_last_that_has_them(whole):
    by_epoch = [[side for (e, _), side in sorted(whole.items()) if e == epoch] for epoch in range(LAST_EPOCH)]
    assert [len(sides) for sides in by_epoch] == [5, 5, 5]
    assert set(by_epoch[0]) | set(by_epoch[1]) == set(SCALES)
    assert by_epoch[0] != by_epoch[1]
    assert by_epoch[2] == [SIZE] * 5
    assert [index for _, index in sorted(whole)] == list(range(15))


@pytest.mark.parametrize(("batch_size", "stop"), [(2, 7), (8, 10), (4, 11)])
def test_a_resumed_training_has_the_scales_of_the_uninterrupted_one(
    shapes, whole, tmp_path, batch_size, stop
):
    """Stops inside an epoch, at the end of the scales' last one and after it; goes on in other micro-batches."""
    before = fit(shapes, tmp_path, max_steps=stop)
    after = fit(shapes, tmp_path, batch_size, resume=tmp_path / LAST)
    assert [index for _, index in sorted(before)] == list(range(stop))
    assert [index for _, index in sorted(after)] == list(range(stop, 15))
    assert before | after == whole


@pytest.mark.parametrize("batch_size", [8, 2])
def test_every_micro_batch_of_a_step_has_its_scale(shapes, whole, batch_size):
    assert loaded(shapes, 1, batch_size, 0) == whole


def test_every_rank_has_the_scale_of_the_step(shapes, whole, nursery):
    ranks = nursery.answers_of_two_ranks(functools.partial(loaded, shapes, 2, 2))
    assert ranks == {0: whole, 1: whole}


def test_another_seed_draws_other_scales(whole, shapes):
    network, steps = module_of_scales().network.train(), []
    data = make_data(shapes)
    data.seed = 1
    data.setup("fit")
    for batch in data.train_dataloader():
        steps.append(network.rescale(batch.images, batch.step).shape[-1])
    assert steps != [side for (epoch, _), side in sorted(whole.items()) if epoch == 0]
