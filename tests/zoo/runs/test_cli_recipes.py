import pytest

from zoo.cli.main import run_command
from zoo.cli.overrides import parse_value, split_overrides
from zoo.runs import recipes


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("rt_detr_r18", "r18_coco_72e"),
        ("rt_detr_r18.o365_coco_60e", "r18_o365_coco_60e"),
        ("detr_r50", "r50_coco_500e"),
        ("detr_r50.coco_150e", "r50_coco_150e"),
    ],
)
def test_a_bare_name_means_the_default_tag(name, stem):
    assert recipes.resolve(name).stem == stem


def test_overrides_are_split_from_the_other_arguments():
    argv = ["fit", "--config", "a", "--model.schedule.lr", "1e-4", "--trainer.max_epochs=3", "--json"]
    plain, overrides = split_overrides(argv)
    assert plain == ["fit", "--config", "a", "--json"]
    assert overrides == {"model.schedule.lr": 1e-4, "trainer.max_epochs": 3}


def test_an_override_without_value_is_refused():
    with pytest.raises(ValueError, match=r"--trainer.max_epochs needs a value"):
        split_overrides(["fit", "--trainer.max_epochs"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("3", 3), ("true", True), ("[1, 2]", [1, 2]), ("null", None), ("a b", "a b")],
)
def test_values_read_as_on_every_command_line(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def small():
    return {
        "model": {
            "class_path": "zoo.architectures.x.X",
            "init_args": {"schedule": {"lr": 1.0, "drop_epochs": []}},
        },
        "data": {"class_path": "datamodules.x.X", "init_args": {"root": "a"}},
        "trainer": {"max_epochs": 1},
    }


def test_init_args_may_be_left_out_of_an_override():
    recipe = small()
    recipes.apply_overrides(recipe, {"model.schedule.lr": 2, "data.init_args.root": "b"})
    assert recipe["model"]["init_args"]["schedule"]["lr"] == 2
    assert recipe["data"]["init_args"]["root"] == "b"


def test_trainer_takes_keys_that_the_recipe_lacks():
    recipe = small()
    recipes.apply_overrides(recipe, {"trainer.limit_val_batches": 2})
    assert recipe["trainer"]["limit_val_batches"] == 2


def test_a_mistyped_override_names_the_nearest_key():
    with pytest.raises(ValueError, match=r"no key 'model.shedule.lr'; did you mean 'model.schedule'"):
        recipes.apply_overrides(small(), {"model.shedule.lr": 1})
    with pytest.raises(ValueError, match=r"no key 'modle.schedule.lr'; did you mean 'model'"):
        recipes.apply_overrides(small(), {"modle.schedule.lr": 1})


def test_merge_goes_key_by_key_and_replaces_lists():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert recipes.merge(base, {"a": {"y": [3]}}) == {"a": {"x": 1, "y": [3]}, "b": 1}
    assert recipes.merge(base, {"a": {"y+": 3}})["a"]["y"] == [1, 2, 3]
    assert base["a"]["y"] == [1, 2]


def test_merge_drops_the_arguments_of_another_class():
    base = {"class_path": "a.B", "init_args": {"x": 1}}
    assert recipes.merge(base, {"class_path": "a.C", "init_args": {"y": 2}})["init_args"] == {"y": 2}
    assert recipes.merge(base, {"class_path": "a.B", "init_args": {"y": 2}})["init_args"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    "name",
    ["rt_detr/r18_coco_72e", "recipes/rt_detr/r18_coco_72e.yaml", "rt_detr_r18", "rt_detr_r18.coco_72e"],
)
def test_a_recipe_is_found_by_every_name(name):
    assert recipes.resolve(name).name == "r18_coco_72e.yaml"


def test_a_path_wins_over_a_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert recipes.load(recipes.resolve(str(tmp_path / "mine.yaml"))) == {"a": 1}


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(
        FileNotFoundError, match=r"no recipe 'rt_detr/r18_coco'.*did you mean 'rt_detr/r18_coco_72e'"
    ):
        recipes.resolve("rt_detr/r18_coco")


@pytest.mark.parametrize(
    ("command", "near"),
    [
        (["info", "rt_detr_r5"], "rt_detr_r50"),
        (["pull", "rt_detr_r5"], "rt_detr_r50"),
        (["pull", "rt_detr_r18.coco_27e"], "rt_detr_r18.coco_72e"),
        (["finetune", "rt_dter_r18", "--data", "."], "rt_detr_r18"),
        (["fit", "--config", "rt_detr/r50_coco_27e"], "rt_detr/r50_coco_72e"),
        (["fit", "--config", "r50_o365_12"], "r50_o365_12e"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest_before_the_long_list(command, near, capsys):
    assert run_command(command) == 2
    error = capsys.readouterr().err
    assert f"(did you mean '{near}'" in error[:120]


def test_a_name_near_to_none_gets_the_list_alone(capsys):
    assert run_command(["fit", "--config", "qqqqqqq"]) == 2
    assert capsys.readouterr().err.startswith("error: no recipe 'qqqqqqq': neither a file nor one of ")


@pytest.mark.parametrize(("text", "reason"), [("a: [", "x.yaml:2: not plain YAML"), ("- 1", "holds a list")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, reason):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        recipes.load(file)


def test_dump_reads_back_as_it_was():
    recipe = recipes.load(recipes.resolve("rt_detr/tiny"))
    assert parse_value(recipes.dump(recipe)) == recipe


def test_a_heading_is_that_of_the_file_as_it_is_now_and_the_callers_own(tmp_path):
    recipe = tmp_path / "mine.yaml"
    about = dict.fromkeys(recipes.ABOUT) | {"name": "a", "seen": []}
    recipe.write_text(recipes.dump({"about": about, "model": {"class_path": "x.Y"}}))
    heading = recipes.load_heading(recipe)
    heading.about["seen"].append("changed by a caller")
    assert recipes.load_heading(recipe) == (about, "x.Y")
    about["name"] = "another"
    recipe.write_text(recipes.dump({"about": about, "model": {"class_path": "x.Y"}}))
    assert recipes.load_heading(recipe).about == about
