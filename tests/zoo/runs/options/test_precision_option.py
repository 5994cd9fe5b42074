"""`--precision`: what a fine-tuning computes in, by the machine and by what was said."""

import pytest
import torch

from zoo.runs import recipes, schema
from zoo.runs.options import precision


@pytest.fixture
def recipe():
    return recipes.load(recipes.resolve("rt_detr/finetune"))


def card(monkeypatch, bfloat16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card")


def test_a_card_that_has_it_trains_in_bfloat16(recipe, monkeypatch):
    card(monkeypatch, True)
    (note,) = precision.write(recipe, None, ())
    assert recipe["trainer"]["precision"] == "bf16-mixed"
    assert note.startswith("precision: bf16-mixed")
    schema.check(recipe)


def test_another_card_does_not(recipe, monkeypatch):
    card(monkeypatch, False)
    assert precision.write(recipe, None, ()) == ["precision: 32-true, for Card has no bfloat16"]
    assert recipe["trainer"]["precision"] == "32-true"


def test_nor_does_a_cpu(recipe, monkeypatch):
    card(monkeypatch, True)
    recipe["trainer"]["accelerator"] = "cpu"
    assert precision.write(recipe, None, ()) == ["precision: 32-true, for no GPU trains"]


@pytest.mark.parametrize(("said", "given", "written"), [
    ("32-true", (), "32-true"), ("bf16-mixed", (), "bf16-mixed"), (None, ("trainer.precision",), "32-true"),
])  # fmt: skip
def test_what_is_said_is_done(recipe, monkeypatch, said, given, written):
    card(monkeypatch, True)
    assert precision.write(recipe, said, given) == []
    assert recipe["trainer"]["precision"] == written


def test_a_word_that_is_none_is_refused_with_those_there_are(recipe):
    precision.write(recipe, "fp8", ())
    with pytest.raises(ValueError, match=r"trainer.precision is 'fp8'; it must be 32-true, bf16-mixed"):
        schema.check(recipe)
