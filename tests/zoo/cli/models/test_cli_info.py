"""`zoo info`: ours beside the published figure, in words a person can read."""

import json
import re

import pytest

from zoo.cli.main import run_command
from zoo.cli.models.listing import readable_registered
from zoo.runs import catalogue, recipes

PUBLISHED = {n: e for n, e in catalogue.models().items() if e["published"] is not None}
# without speed, parameters or multiply-adds
OBJECTS365 = [n for n, e in PUBLISHED.items() if e["published"]["dataset"] == "Objects365 val"]
UNPUBLISHED = [n for n in OBJECTS365 if n.startswith("rt_detr_")]  # their schedules, in part
PANOPTIC = [n for n, e in PUBLISHED.items() if "PQ" in e["published"]]
DISCRETE = [n for n in PUBLISHED if ".dsp_" in n]  # their cost is not printed
WITH_FIGURES = [n for n, e in PUBLISHED.items() if "gflops" in e["published"]]


def info(name: str, capsys) -> tuple[dict, str]:
    assert run_command(["info", name]) == 0
    text = capsys.readouterr().out
    assert run_command(["info", name, "--json"]) == 0
    return json.loads(capsys.readouterr().out), text


def shown(percent: float) -> str:
    return f"{percent / 100:.3f}"


def test_three_digits_hold_every_published_score():
    """Scores are shown between 0 and 1, and published in percent."""

    def scores(entry):
        for key, value in entry.items():
            if isinstance(value, dict):
                yield from scores(value)
            elif re.fullmatch(r"(segm_)?A[PR][\dsml]*|[PSR]Q(_\w+)?", str(key)) and value is not None:
                yield value

    every = [value for entry in PUBLISHED.values() for value in scores(entry["published"])]
    assert len(every) > 200
    assert [
        value for value in every if not 1 < value < 100 or float(shown(value)) != round(value / 100, 9)
    ] == []


def test_models_were_found():
    assert {*WITH_FIGURES, *OBJECTS365, *PANOPTIC, *DISCRETE} == set(PUBLISHED)
    assert min(map(len, (WITH_FIGURES, OBJECTS365, UNPUBLISHED, PANOPTIC, DISCRETE))) >= 3


@pytest.mark.parametrize("name", PANOPTIC)
def test_scores_of_masks_stand_beside_those_of_boxes(name, capsys):
    entry, text = info(name, capsys)
    published = entry["published"]
    assert "  ".join(f"{key} {shown(published[key])}" for key in ("AP", "segm_AP", "PQ")) in text
    assert f"PQ_st {shown(published['PQ_st'])}" in " ".join(text.split())
    assert entry["recipes"] == [f"{name.replace('detr_', 'detr/')}_coco_25e", "detr/finetune_masks"]
    assert run_command(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    [row] = [line for line in lines if line[0] == name]
    scores = [shown(published[key]) for key in ("AP", "segm_AP", "PQ")]
    assert [word for word in row if word in scores] == scores
    assert run_command(["info", f"{name}_box"]) == 0
    assert "300 epochs" in capsys.readouterr().out


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_ours_stands_beside_the_published_figure(name, capsys):
    entry, text = info(name, capsys)
    promised = {"name", "family", "params", "macs", "published", "measured", "license", "sources", "recipes"}
    assert promised <= set(entry)
    published = entry["published"]
    printed = recipes.load(recipes.resolve(entry["recipes"][0]))["about"]["printed"]
    assert published["gmacs"] == published["gflops"] * printed["macs_per_flop"]
    words = " ".join(text.split())
    assert f"; published {printed['params']}" in words
    assert f"({printed['counting']})" in words
    assert f"({printed['speed_on']})" in words
    assert re.search(r"^measured +not yet$", text, re.MULTILINE)
    assert entry["measured"] is None
    assert f"AP {shown(published['AP'])}" in text
    for word in ("licence", "schedule", "epochs", "sources", "recipes", "GPU hours"):
        assert word in text


@pytest.mark.parametrize("name", [*WITH_FIGURES, *OBJECTS365])
def test_the_text_is_for_people(name, capsys):
    _, text = info(name, capsys)
    assert not re.search(r"[{}\[\]]|None|True|False|': ", text)
    lines = text.splitlines()
    # an address is never broken
    assert all(len(line) <= 110 or "http" in line for line in lines)
    assert not any(line != line.rstrip() for line in lines)


def test_of_several_schedules_the_one_of_the_published_weights_is_told_and_the_others_named(capsys):
    entry, text = info("detr_r50", capsys)
    assert (entry["tag"], entry["recipes"][0]) == ("coco_500e", "detr/r50_coco_500e")
    assert (entry["schedule"]["epochs"], entry["schedule"]["global_batch_size"]) == (500, 64)
    assert entry["published"]["gpu_hours"] == 2720
    assert entry["published"]["AR"]["AR100"] == 57.5
    assert re.search(r"detr/r50_coco_300e +AP 0\.406", text)
    assert re.search(r"detr/r50_coco_150e +AP 0\.395", text)
    assert "500 epochs, learning rate 0.0001, a tenth after epoch 400, 64 images a step" in text
    assert "detr-r50-e632da11.pth, 159 MB" in text


def test_published_weights_of_another_tag_are_a_model_of_their_own(capsys):
    entry, text = info("rt_detr_r50.o365_coco_24e", capsys)
    assert (entry["name"], entry["tag"]) == ("rt_detr_r50.o365_coco_24e", "o365_coco_24e")
    assert entry["recipes"] == ["rt_detr/r50_o365_coco_24e", "rt_detr/finetune"]
    assert entry["schedule"]["epochs"] == 24
    assert entry["published"]["AP"] == 55.3
    assert "not yet; zoo pull rt_detr_r50.o365_coco_24e" in text
    default, _ = info("rt_detr_r50", capsys)
    assert default["recipes"] == ["rt_detr/r50_coco_72e", "rt_detr/finetune"]
    assert info("rt_detr_r50.coco_72e", capsys)[0] == default


@pytest.mark.parametrize("name", OBJECTS365)
def test_scores_on_objects365_say_so(name, capsys):
    entry, text = info(name, capsys)
    tag = name.partition(".")[2]
    assert entry["recipes"][0].endswith(f"_{tag}")
    assert entry["schedule"]["epochs"] == int(tag.split("_")[1].rstrip("e"))
    assert entry["published"]["dataset"] == "Objects365 val"
    assert entry["input"]["size"] == [640, 640]
    assert "on Objects365 val" in " ".join(text.split())


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_the_recipe_of_a_schedule_that_is_not_all_published_says_what_is_ours(name, capsys):
    _, text = info(name, capsys)
    words = " ".join(text.split())
    assert "batch size, GPUs and learning rate are unpublished" in words
    assert "unpublished, so ours: batch size, GPUs, learning rate" in words
    assert "arXiv 2304.08069" in words


def test_list_shows_a_row_for_every_tag_with_published_weights(capsys):
    assert run_command(["list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(PUBLISHED) <= set(rows)
    assert rows["rt_detr_r18.o365_coco_60e"].endswith("rt_detr/r18_o365_coco_60e")
    assert rows["rt_detr_r18"].endswith("rt_detr/r18_coco_72e")
    assert rows["rt_detr_r18.o365_12e"].endswith("rt_detr/r18_o365_12e; AP on Objects365 val")


def test_both_truths_are_shown_where_a_page_and_the_release_differ(capsys):
    _, text = info("detr_r101", capsys)
    assert "says 300 epochs" in " ".join(text.split())
    assert "500 epochs" in text


def test_a_model_without_published_weights_has_none(capsys):
    entry, text = info("rt_detr_tiny", capsys)
    assert entry["published"] is None
    assert "published" not in text


def test_scores_of_a_registered_model_have_three_digits_and_an_interval():
    measured = {
        "unit": "fraction", "AP": 0.0785305350072414, "AP50": 1.0, "APl": None, "split": "test",
        "interval": {"AP": [0.07, 0.0909], "APl": [None, None]},
        "protocol": {"evaluator": "x", "iou_thresholds": [0.5]},
    }  # fmt: skip
    facts = readable_registered({"license": "MIT", "terms": None, "measured": measured})
    assert facts["licence"] == "MIT"
    assert facts["measured"] == {
        "scores": "AP 0.079  AP50 1.000", "interval": "AP 0.070 to 0.091", "split": "test",
        "protocol": {"evaluator": "x"},
    }  # fmt: skip
    assert readable_registered({"license": "MIT", "terms": None, "measured": None})["measured"] is None


def test_where_the_files_are_is_told(capsys, tmp_path):
    folder = tmp_path / "zoo_cache" / "detr_r50.coco_500e" / "1"
    _, text = info("detr_r50", capsys)
    assert "not yet; zoo pull detr_r50" in text
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text("")
    entry, _ = info("detr_r50", capsys)
    assert entry["pulled"] == str(folder)
