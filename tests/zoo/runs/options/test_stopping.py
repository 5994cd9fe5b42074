"""`--patience`, `--max-time` and how often a fine-tuning validates."""

import pytest

from zoo.runs import recipes
from zoo.runs.options import stopping


@pytest.mark.parametrize(("text", "written"), [
    ("2h", "00:02:00:00"), ("90m", "00:01:30:00"), ("1d", "01:00:00:00"), ("45s", "00:00:00:45"),
    ("1d12h", "01:12:00:00"), ("1h30m", "00:01:30:00"), ("01:30:00", "00:01:30:00"), ("2:00:30:00", "02:00:30:00"),
    ("36H", "01:12:00:00"),
])  # fmt: skip
def test_times(text, written):
    recipe = {"trainer": {}}
    stopping.write(recipe, 5, text)
    assert recipe == {"trainer": {"max_time": written}, "stopping": {"min_delta": 0.001, "patience": 5}}


@pytest.mark.parametrize("text", ["", "2", "2x", "1.5h", "h", "-2h", "0s", "2h2h", "1:30", "0:00:00", "2 h"])
def test_no_times(text):
    with pytest.raises(ValueError, match="--max-time is"):
        stopping.parse_time(text)


def recipe(**trainer):
    found = recipes.load(recipes.resolve("rt_detr/finetune"))
    found["trainer"] |= trainer
    return found


@pytest.mark.parametrize(("per_epoch", "steps", "key", "value"), [
    (7000, 70000, "val_check_interval", 1000), (7500, 70000, "val_check_interval", 937),
    (1001, 5000, "val_check_interval", 500), (2, 100, "check_val_every_n_epoch", 5),
    (3, 300, "check_val_every_n_epoch", 4), (2, 40, "check_val_every_n_epoch", 2),
])  # fmt: skip
def test_long_epochs_are_cut_and_tiny_ones_joined(per_epoch, steps, key, value):
    found = recipe()
    (note,) = stopping.suit_validations(found, per_epoch, steps, ())
    assert found["trainer"][key] == value
    assert note.startswith("validates every")


@pytest.mark.parametrize("given", [
    {"per_epoch": 1000, "steps": 5000}, {"per_epoch": 10, "steps": 500}, {"per_epoch": 2, "steps": 20},
    {"per_epoch": 5000, "steps": 5000, "given": ("trainer.check_val_every_n_epoch",)},
])  # fmt: skip
def test_others_are_left(given):
    found = recipe()
    assert stopping.suit_validations(found, **{"given": (), **given}) == []
    assert found == recipe()


def test_what_the_recipe_says_stands():
    found = recipe(check_val_every_n_epoch=3)
    assert stopping.suit_validations(found, 2, 1000, ()) == []
    restarts = recipe()
    restarts["model"]["init_args"]["schedule"]["restart_epoch"] = 4
    assert stopping.suit_validations(restarts, 2, 1000, ()) == []


def test_patience_with_a_second_stage_says_from_when_it_counts():
    found = recipe()
    assert stopping.write(found, 3, None) == []
    found["model"]["init_args"]["schedule"]["restart_epoch"] = 4
    assert stopping.write(found, None, "1h") == []
    (note,) = stopping.write(found, 3, None)
    assert note.startswith("--patience 3: counted from epoch 5 on")
