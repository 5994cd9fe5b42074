"""Every option of fine-tuning at once, for three families: two ranks as one, a killed run as one left alone."""

from __future__ import annotations

import os
import signal

import pytest
import yaml
from tiny_families import overlay
from tiny_training import TINY, assert_equal, folder_of, said, start, torchrun, wait_for_checkpoint, weights

from zoo.runs.recipes import load, merge
from zoo.training.freezing import PARTS

pytestmark = pytest.mark.slow
# of RT-DETR all but the head is frozen: its norms would look at the images of one process
FAMILIES = {
    "detr/r50_coco_150e": ("backbone",), "deformable_detr/r50_coco_50e": ("backbone", "encoder"),
    "rt_detr/r18_coco_72e": ("all-but-head",),
}  # fmt: skip
OPTIONS = {
    "trainer": {"max_epochs": 6, "max_time": "00:01:00:00", "accelerator": "cpu"},
    "stopping": {"patience": 2, "min_delta": 1.0},  # no AP is better by so much: it ends after three epochs
    "computing": {"checkpointing": True},
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """(folder, words of the command)."""
    key = request.param
    family = key.partition("/")[0]
    folder = folder_of(tmp_path_factory.mktemp(family))
    frozen = [{"match": PARTS[name], "freeze": True} for name in FAMILIES[key]]
    schedule = {"global_batch_size": 8, "rules": frozen, "drop_epochs": []}
    model = {"init_args": {**overlay(family), "num_classes": 4, "schedule": schedule}}
    recipe = merge(TINY, OPTIONS) | {"model": model}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder, ("fit", "-c", key, "-c", "tiny.yaml")


def stopped_at(folder, text):
    (line,) = [line for line in text.splitlines() if line.startswith("stopped ")]
    assert "by stopping.patience 2: in 2 validations" in line
    assert load(folder / "recipe.yaml")["stopping"]["patience"] == 2
    assert yaml.safe_load((folder / "run.json").read_text())["stopped"] == "patience"
    return weights(folder)


def test_two_ranks_are_one_and_the_recipe_of_the_run_repeats_it(case):
    folder, words = case
    one = stopped_at(folder / "one", said(start(folder, *words, "--output", "one", "--data.batch_size", "8")))
    two = torchrun("--nproc-per-node", "2")
    both = stopped_at(folder / "two", said(start(folder, *words, "--output", "two", launcher=two)))
    assert one["step"] == both["step"] == 12
    for name, value in one.items():  # AdamW makes a step of any gradient, also of one that is rounding alone
        assert (value - both[name]).abs().max() <= 1e-4 * value.abs().max() + 2e-5, name
    again = said(start(folder, "fit", "-c", "one/recipe.yaml", "--output", "again"))
    assert_equal(one, stopped_at(folder / "again", again))


def test_killed_in_bfloat16_it_ends_as_the_one_that_was_left_alone(case):
    folder, words = case
    words = (*words, "--trainer.precision", "bf16-mixed", "--data.batch_size", "2")
    whole = stopped_at(folder / "whole", said(start(folder, *words, "--output", "whole")))
    killed = start(folder, *words, "--output", "killed")
    wait_for_checkpoint(folder / "killed" / "last.ckpt", killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    text = said(start(folder, *words, "--output", "killed", "--ckpt-path", "auto"))
    assert "resume " in text
    assert_equal(whole, stopped_at(folder / "killed", text))
    text = said(start(folder, "fit", "--ckpt-path", "killed"))  # stopped, and so nothing is left
    assert_equal(whole, stopped_at(folder / "killed", text))
