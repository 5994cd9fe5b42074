import copy

import pytest

from zoo.cli.main import run_command
from zoo.runs import recipes
from zoo.runs.lightning import ZooCLI
from zoo.runs.schema import check


@pytest.fixture
def tiny():
    return recipes.load(recipes.resolve("rt_detr/tiny"))


@pytest.mark.parametrize("name", sorted(recipes.bundled()))
def test_every_recipe_fits_its_signatures(name):
    check(recipes.load(recipes.resolve(name)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trainr", r"trainr is no key of a recipe; did you mean 'trainer'"),
        ("trainer.max_epoch", r"trainer.max_epoch .*did you mean 'max_epochs'"),
        ("model.init_args.num_clases", r"model.num_clases .*did you mean 'num_classes'"),
        ("model.init_args.decoder.num_querys", r"model.decoder.num_querys .*did you mean 'num_queries'"),
        (
            "model.init_args.schedule.rules.0.wieght_decay",
            r"rules\[0\].wieght_decay .*did you mean 'weight_decay'",
        ),
        ("data.init_args.batchsize", r"data.batchsize .*did you mean 'batch_size'"),
        ("data.init_args.input.resise", r"data.input.resise .*did you mean 'resize'"),
        ("checkpoint.save_topk", r"did you mean 'save_top_k'"),
        ("init_from.sauce", r"did you mean 'source'"),
    ],
)
def test_a_typo_names_the_nearest_valid_key(tiny, path, message):
    node = tiny
    *parents, last = path.split(".")
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node[parent]
    node[last] = 1
    with pytest.raises(ValueError, match=message):
        check(tiny)


def test_a_missing_number_is_an_error(tiny):
    del tiny["model"]["init_args"]["schedule"]["weight_decay"]
    with pytest.raises(ValueError, match=r"lacks model.schedule.weight_decay; it has no default"):
        check(tiny)


@pytest.mark.parametrize(
    "path", ["os.system", "zoo.training.module.DetectionModule", "zoo.architectures", None, 3]
)
def test_a_recipe_imports_nothing_but_architectures(tiny, path):
    tiny["model"]["class_path"] = path
    with pytest.raises(ValueError, match=r"must be a class under zoo.architectures."):
        check(tiny)


def test_a_mistyped_class_names_the_nearest(tiny):
    tiny["model"]["class_path"] = "zoo.architectures.rt_detr.RtDetModule"
    with pytest.raises(ValueError, match="did you mean 'RtDetrModule'"):
        check(tiny)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_classes", "abc", r"num_classes: Expected a <class 'int'>. Got value: abc$"),
        ("backbone", "abc", r"model.backbone is 'abc'; it must be a mapping"),
    ],
)
def test_a_wrong_value_is_one_short_line(tiny, tmp_path, key, value, message):
    tiny["model"]["init_args"][key] = value
    with pytest.raises(ValueError, match=message) as caught:
        ZooCLI(tiny, tmp_path, [])
    assert len(str(caught.value)) < 200


def test_an_argument_check_of_the_class_is_told_without_the_frame(tiny, tmp_path):
    tiny["data"]["init_args"]["train_transform"] = "flips"
    with pytest.raises(ValueError, match=r"^train_transform 'flips' is unknown; choose one of") as caught:
        ZooCLI(tiny, tmp_path, [])
    assert "\n" not in str(caught.value)


def test_the_recipe_is_left_as_it_was(tiny, tmp_path):
    before = copy.deepcopy(tiny)
    cli = ZooCLI(tiny, tmp_path, [])
    assert tiny == before
    assert cli.trainer.checkpoint_callback.folder == tmp_path
    assert cli.trainer.checkpoint_callback.monitor == "val/AP"


def test_a_mistyped_override_names_the_nearest_key(capsys):
    arguments = ["--config", "rt_detr/tiny", "--model.schedule.drop_epoch", "[1]", "--data.limit_eval", "1"]
    assert run_command(["fit", *arguments]) == 2
    said = capsys.readouterr().err
    assert said == "error: model.schedule.drop_epoch is no key of a recipe; did you mean 'drop_epochs'?\n"


@pytest.mark.parametrize("value", [3, "x", [1, 2], None])
@pytest.mark.parametrize(
    "place",
    [
        "about",
        "model",
        "data",
        "trainer",
        "checkpoint",
        "tracking",
        "init_from",
        "model.init_args",
        "data.init_args",
    ],
)
def test_a_block_that_is_no_mapping_is_told(place, value):
    recipe = recipes.load(recipes.resolve("rt_detr/tiny"))
    node = recipe
    *above, last = place.split(".")
    for key in above:
        node = node[key]
    node[last] = value
    with pytest.raises(ValueError, match=r"must be a mapping|lacks"):
        check(recipe)
