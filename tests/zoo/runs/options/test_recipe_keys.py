"""What each option of fine-tuning changes in the recipe: these keys and no others."""

import pytest

from zoo.runs import recipes
from zoo.runs.options.chosen import Options
from zoo.tracking import others
from zoo.training.freezing import PARTS

TABLE = {
    "patience": (5, {"stopping.patience": 5, "stopping.min_delta": 0.001}),
    "max_time": ("2h", {"trainer.max_time": "00:02:00:00"}),
    "freeze": ("backbone", {"model.schedule.rules": [{"match": PARTS["backbone"], "freeze": True}]}),
    "precision": ("bf16-mixed", {"trainer.precision": "bf16-mixed"}),
    "checkpointing": (True, {"computing.checkpointing": True}),
    "compile": (True, {"computing.compile": True}),
    "search_batch": (True, {"computing.search_batch": True}),
    "logger": ("wandb", {"tracking.also": ["wandb"]}),
}


def written(**options):
    recipe = recipes.load(recipes.resolve("rt_detr/finetune"))
    recipe["trainer"]["accelerator"] = "cpu"
    Options(**options).write(recipe, ())
    return recipes.flat(recipe)


@pytest.mark.parametrize("name", TABLE)
def test_the_keys(name, monkeypatch):
    monkeypatch.setattr(others, "require", lambda kinds: None)
    value, changed = TABLE[name]
    before, after = written(), written(**{name: value})
    found = {key: after[key] for key in after if key not in before or after[key] != before[key]}
    if name == "freeze":
        found["model.schedule.rules"] = found["model.schedule.rules"][:1]
        assert after["model.schedule.rules"][1:] == before["model.schedule.rules"]
    assert found == changed
    assert before.keys() <= after.keys()


def test_the_table_is_complete():
    from dataclasses import fields

    assert {field.name for field in fields(Options)} == set(TABLE)


def test_without_options_nothing_changes_on_a_cpu():
    recipe = recipes.load(recipes.resolve("rt_detr/finetune"))
    recipe["trainer"]["accelerator"] = "cpu"
    assert written() == recipes.flat(recipe)
