import json
import re
from pathlib import Path

import msgspec
import pytest
import torch

from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.registry.manifest import read_manifest
from zoo.runs import recipes
from zoo.runs.console import Console
from zoo.runs.finetune import (
    Choices,
    announce,
    complete_recipe,
    fit_to_data,
    parse_size,
    queries_of,
    read_data,
    scale_learning_rate,
    slug,
    starting_point,
)
from zoo.runs.quick_check import quick_check, seen_as
from zoo.tracking.backend import connect, resolve_store


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return generate_shapes(tmp_path / "Blood cells", num_train=20, num_val=6, seed=0, size=64)


def build(model: str, data: Path, **choices):
    start = starting_point(model, None)
    chosen = Choices(model=model, data=data, **choices)
    recipe, notes = complete_recipe(start, chosen)
    notes += fit_to_data(recipe, read_data(recipe), chosen)
    return recipe, notes


def test_the_architecture_is_the_size_and_the_rest_the_finetune_recipe(shapes):
    recipe, _ = build("rt_detr_r50", shapes)
    size = recipes.load(recipes.resolve("rt_detr_r50"))["model"]["init_args"]
    finetune = recipes.load(recipes.resolve("rt_detr/finetune"))
    written = recipe["model"]["init_args"]
    assert {k: written[k] for k in ("encoder", "decoder", "costs", "losses")} == {
        k: size[k] for k in ("encoder", "decoder", "costs", "losses")
    }
    assert written["schedule"]["decay"] == finetune["model"]["init_args"]["schedule"]["decay"] == "cosine"
    assert written["num_classes"] == 4
    assert recipe["data"]["init_args"]["root"] == str(shapes)


def test_published_weights_are_the_default_and_carry_classes_by_name(shapes):
    recipe, notes = build("rt_detr_r50", shapes)
    assert recipe["init_from"] == {"source": "rt_detr_r50.coco_72e", "head": "by_class_name"}
    # they hold the backbone too, so nothing else is to be fetched
    assert recipe["model"]["init_args"]["backbone"]["weights"] == "random"
    assert any("rt_detr_r50.coco_72e" in note for note in notes)


@pytest.mark.parametrize("name", ["rt_detr_r50.o365_coco_24e", "rt_detr_r50.o365_12e"])
def test_another_tag_starts_from_its_own_weights_on_the_same_network(shapes, name):
    recipe, _ = build(name, shapes)
    assert recipe["init_from"] == {"source": name, "head": "by_class_name"}
    assert recipe["about"]["name"] == "rt_detr_r50"
    bare, _ = build("rt_detr_r50", shapes)
    assert recipe["model"] == bare["model"]


def test_random_weights_say_so_and_nothing_stays_slow_or_frozen(shapes):
    recipe, notes = build("rt_detr_r50", shapes, weights="random")
    arguments = recipe["model"]["init_args"]
    assert recipe["init_from"]["source"] == "none"
    assert arguments["backbone"]["weights"] == "random"
    assert not arguments["backbone"]["freeze_stem"]
    assert not arguments["backbone"]["frozen_norm"]
    assert all(rule.get("lr") is None for rule in arguments["schedule"]["rules"])
    assert any(note.startswith("weights: random") for note in notes)


def test_a_model_without_published_weights_is_random_aloud_and_never_published(shapes):
    _, notes = build("rt_detr_tiny", shapes)
    assert any(note.startswith("weights: random") for note in notes)
    with pytest.raises(ValueError, match=r"rt_detr_tiny has no published weights.*--weights random"):
        build("rt_detr_tiny", shapes, weights="published")


def test_weights_that_are_no_file(shapes):
    with pytest.raises(FileNotFoundError, match=r"'gone.pth' is neither published nor random nor a file"):
        build("rt_detr_tiny", shapes, weights="gone.pth")


def test_no_network_is_an_error_that_names_random(shapes, capsys):
    assert run_command(["finetune", "rt_detr_r18", "--data", str(shapes)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the weights of rt_detr_r18.coco_72e cannot be fetched")
    assert "--weights random" in error
    assert not Path("mlruns/checkpoints").exists()


def test_every_option_is_in_the_recipe(shapes):
    recipe, notes = build(
        "rt_detr_tiny", shapes, batch_size=4, image_size="64x96", lr=1e-3, seed=7, max_steps=100, devices="1",
        overrides={"model.decoder.num_queries": 9, "trainer.limit_val_batches": 1},
    )  # fmt: skip
    arguments, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    assert (arguments["schedule"]["global_batch_size"], data["batch_size"]) == (4, 4)
    assert data["input"]["size"] == [64, 96]
    assert arguments["schedule"]["lr"] == 1e-3
    assert (recipe["seed_everything"], data["seed"]) == (7, 7)
    assert (
        recipe["trainer"]["max_steps"],
        recipe["trainer"]["max_epochs"],
        recipe["trainer"]["devices"],
    ) == (100, -1, 1)
    assert (arguments["decoder"]["num_queries"], recipe["trainer"]["limit_val_batches"]) == (9, 1)
    assert arguments["schedule"]["warmup_steps"] == 10
    assert "100 steps of 4 images, 5 an epoch" in notes


def test_a_small_set_lowers_the_batch_and_says_so(shapes):
    few = generate_shapes(shapes.parent / "few", 5, 2, 0, 64)
    recipe, notes = build("rt_detr_r18", few, weights="random")
    assert recipe["model"]["init_args"]["schedule"]["global_batch_size"] == 4
    assert "global_batch_size 16 -> 4: only 5 images" in notes


def test_more_objects_than_queries_is_said(shapes):
    _, notes = build("rt_detr_tiny", shapes, overrides={"model.decoder.num_queries": 2})
    (told,) = [note for note in notes if "num_queries" in note]
    assert "2 queries find at most 2: give the model more with --model.decoder.num_queries 50, or cut" in told


def test_rates_of_rules_keep_their_ratio():
    schedule = {"lr": 1e-4, "rules": [{"match": "a", "lr": 1e-5}, {"match": "b", "weight_decay": 0.0}]}
    scale_learning_rate(schedule, 4e-4)
    assert schedule["lr"] == 4e-4
    assert schedule["rules"][0]["lr"] == pytest.approx(4e-5)
    assert "lr" not in schedule["rules"][1]


@pytest.mark.parametrize(("text", "size"), [("640", [640, 640]), ("160x192", [160, 192])])
def test_image_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [("600", "multiples of 32; the nearest is 608x608"), ("big", "neither N nor HxW"), ("0", "32")],
)
def test_bad_image_size(text, message):
    with pytest.raises(ValueError, match=message):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "name"), [("Blood cells", "blood_cells"), ("--", "custom"), ("a.b-C__d", "a_b_c_d")]
)
def test_slug(text, name):
    assert slug(text) == name


def held_by_mlflow(run_id):
    """Everything of a run that a second start may not log again."""
    client = connect(resolve_store())
    run = client.get_run(run_id)
    metrics = {
        name: [(m.step, repr(m.value)) for m in client.get_metric_history(run_id, name)]
        for name in run.data.metrics
    }
    inputs = [entry.dataset.name for entry in run.inputs.dataset_inputs]
    return metrics, run.data.params, inputs, [model.model_id for model in run.outputs.model_outputs]


def check_what_mlflow_holds(document, client, folder, data):
    run = client.get_run(document["run"])
    kind = client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    assert re.fullmatch(r"rt_detr_tiny\.mine \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", run.info.run_name)
    params = run.data.params
    recipe = recipes.load(folder / "recipe.yaml")
    assert params["model"] == "rt_detr_tiny.mine"
    assert params["model.schedule.lr"] == str(recipe["model"]["init_args"]["schedule"]["lr"])
    assert params["data.input.size"] == "[64, 64]"
    assert (params["init_from.source"], params["trainer.max_steps"]) == ("none", "3")
    assert params["version.torch"] == torch.__version__.partition("+")[0]
    assert params.keys() >= recipes.flat(recipe).keys()
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.source_type) == ("Blood cells", "local")
    assert document["data_digest"].startswith(entry.dataset.digest)
    assert json.loads(entry.dataset.source)["uri"] == str(data)
    assert json.loads(entry.dataset.profile)["val_images"] == 6
    assert run.data.tags["zoo.checkpoint"] == document["checkpoint"]
    last, best = (
        client.get_metric_history(run.info.run_id, f"{name}/AP")[-1] for name in ("val", "best/val")
    )
    assert (last.step, last.value, best.step) == (3, document["val"]["AP"], document["step"])
    assert best.value == document["val"]["AP"]
    [model] = run.outputs.model_outputs
    [version] = client.search_model_versions("name = 'rt_detr_tiny.mine'")
    assert version.tags["zoo.logged_model"] == model.model_id
    logged = client.get_logged_model(model.model_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": version.name, "version": 1}]
    assert logged.params == params
    assert {m.key: m.value for m in logged.metrics} == {
        k: v for k, v in run.data.metrics.items() if "best/" in k
    }
    assert {(m.step, m.dataset_name, m.dataset_digest) for m in logged.metrics} == {
        (document["step"], entry.dataset.name, entry.dataset.digest)
    }
    assert len(client.get_metric_history(run.info.run_id, "best/val/AP")) == 1  # the run has it once


def check_the_report(document, run, said):
    numbers = json.loads((run / "report.json").read_text())
    assert numbers["scores"]["AP"] == document["val"]["AP"]
    assert numbers["interval"]["AP"] == document["val"]["interval"]["AP"]
    assert f"report      {run.absolute() / 'report.html'}  (val)\n" in said
    assert numbers["why"][0] in said
    page = (run / "report.html").read_text()
    assert "Scores on val" in page
    assert "global_batch_size" in page  # the recipe
    point, manifest = (
        numbers["threshold"]["chosen"],
        read_manifest(Path("mlruns/registry/rt_detr_tiny.mine/1/manifest.yaml")),
    )
    if point is None:  # nothing is right after three steps
        assert manifest.thresholds is msgspec.UNSET
    else:
        assert manifest.thresholds.all == point["threshold"] == document["thresholds"]["all"]


def test_from_a_folder_to_a_registered_model_that_predicts(shapes, capsys):
    arguments = ["finetune", "rt_detr_tiny", "--data", str(shapes), "--max-steps", "3", "--image-size", "64"]
    arguments += ["--name", "rt_detr_tiny.mine", "--output", "run", "--json"]
    assert run_command(arguments) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    run = Path("run")
    assert document["registered"] == "rt_detr_tiny.mine:1"
    assert document["val"]["images"] == 6
    assert len(document["val"]["interval"]["AP"]) == 2
    assert json.loads((run / "metrics.json").read_text())["val"] == document["val"]
    assert {"recipe.yaml", "gallery.png", "curves.png", "training_images.png", "last.ckpt"} <= {
        p.name for p in run.iterdir()
    }
    check_the_report(document, run, said.err)
    assert "zoo predict rt_detr_tiny.mine:1" in said.err
    assert "zoo alias rt_detr_tiny.mine:1 champion\n" in said.err
    assert f"mlflow ui --backend-store-uri sqlite:///{Path('mlruns/mlflow.db').absolute()}\n" in said.err
    [experiment, run_id] = re.search(
        r"\n  http://127.0.0.1:5000/#/experiments/(\d+)/runs/(\w+)\?workflowType=machine_learning\n", said.err
    ).groups()
    assert (run_id, experiment) == (
        document["run"],
        connect(resolve_store()).get_run(run_id).info.experiment_id,
    )
    assert "evaluating  val: 6 images\n" in said.err
    client, before = connect(resolve_store()), held_by_mlflow(document["run"])
    check_what_mlflow_holds(document, client, run, shapes)
    assert run_command([*arguments, "--ckpt-path", "auto"]) == 0  # as a queue starts a job again
    assert held_by_mlflow(document["run"]) == before
    said = capsys.readouterr()
    assert "finished    step 3 of 3: nothing is left to train" in said.err
    assert "registered  rt_detr_tiny.mine:1 " in said.err
    assert "there is no new version" in said.err
    assert json.loads(said.out)["registered"] == "rt_detr_tiny.mine:1"
    # the recipe in the run folder is complete: fit runs on it as it stands
    assert (
        run_command(["fit", "--config", "run/recipe.yaml", "--trainer.max_steps", "1", "--output", "again"])
        == 0
    )
    said = capsys.readouterr().out
    assert f"zoo predict {Path('again').absolute()} {shapes}/".replace(str(shapes), f"'{shapes}") in said
    assert f"zoo publish {Path('again').absolute()} --name rt_detr_tiny.mine\n" in said
    image = next((shapes / "val").glob("*.png"))
    assert run_command(["predict", "rt_detr_tiny.mine", str(image), "--threshold", "0", "--json"]) == 0
    prediction = json.loads(capsys.readouterr().out)["predictions"][0]
    assert Path(prediction["picture"]).is_file()
    assert {"label", "score", "box_xyxy", "source_id"} <= set(prediction["detections"][0])
    assert (
        run_command(
            ["validate", "rt_detr_tiny.mine", "--data", str(shapes), "--decoder-layers", "1", "--json"]
        )
        == 0
    )
    assert Path("mlruns/scores/rt_detr_tiny.mine.val/metrics.json").is_file()
    assert {p.name for p in Path.cwd().iterdir()} <= {shapes.name, "again", "mlruns", "run", "zoo_cache"}
    layers = json.loads(capsys.readouterr().out)["decoder_layers"]
    assert layers[0]["layers"] == 1
    assert layers[0]["AP"] == pytest.approx(document["val"]["AP"], abs=1e-9)
    assert layers[0]["ms_per_image"] > 0
    assert run_command(["pull", "rt_detr_tiny.mine"]) == 0
    assert "checked" in capsys.readouterr().out
    assert (
        run_command(["publish", "run", "--name", "rt_detr_tiny.mine", "--alias", "champion", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["version"] == 1  # it was registered by finetune
    assert run_command(["info", "rt_detr_tiny.mine@champion", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1


def test_data_check_as_json(shapes, capsys):
    assert run_command(["data", "check", str(shapes), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "coco"
    assert document["splits"]["train"]["images"] == 20
    assert [c["name"] for c in document["classes"]] == ["circle", "square", "triangle", "cross"]
    assert document["faults"] == []


def test_data_check_fails_on_errors_and_names_them(shapes, capsys):
    next((shapes / "train").glob("*.png")).write_bytes(b"no picture")
    assert run_command(["data", "check", str(shapes), "--json"]) == 1
    [fault] = json.loads(capsys.readouterr().out)["faults"]
    assert set(fault) == {"severity", "kind", "file", "id", "message", "box"}
    assert (fault["severity"], fault["kind"]) == ("error", "unreadable_image")
    assert fault["file"].endswith(".png")


def test_another_machine_and_budget_are_not_inherited(shapes):
    start = starting_point("rt_detr_tiny", None)
    start.recipe["trainer"] |= {"devices": 8, "accelerator": "gpu", "num_nodes": 4, "max_steps": 30}
    chosen = Choices(model="rt_detr_tiny", data=shapes, epochs=2)
    trainer = complete_recipe(start, chosen)[0]["trainer"]
    assert (trainer["devices"], trainer["accelerator"], trainer["num_nodes"]) == ("auto", "auto", 1)
    assert trainer["max_epochs"] == 2
    assert "max_steps" not in trainer


def test_objects_that_would_be_learned_wrong_are_refused_before_anything_else(shapes, capsys):
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [0.1, 0.2, 0.3, 0.4]
    file.write_text(json.dumps(content))
    arguments = ["finetune", "rt_detr_tiny", "--data", str(shapes), "--max-steps", "1"]
    assert run_command(arguments) == 2
    said = capsys.readouterr().err
    assert "normalised_box" in said
    assert "--data.skip_broken true" in said


def test_faults_are_grouped_by_kind_before_training(shapes, capsys):
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 10**6})
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    chosen = Choices(model="rt_detr_tiny", data=shapes, overrides={"model.decoder.num_queries": 1})
    recipe, _ = complete_recipe(starting_point("rt_detr_tiny", None), chosen)
    data = read_data(recipe)
    announce(recipe, data, quick_check(data, 1), [], Console())
    said = capsys.readouterr().out
    number = int(re.search(r"warning more_objects_than_queries: (\d+)\n", said)[1])
    assert number > 3
    assert said.count("1 queries find at most 1") == 2
    assert f"... and {number - 2} more (zoo data check lists them)" in said
    assert "warning duplicate_object: 1\n" in said
    assert " objects and 1 crowd, " in said
    assert "raise num_queries" not in said


def test_the_doctor_speaks_before_training(shapes):
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 10**6})
    file.write_text(json.dumps(content))
    recipe, _ = complete_recipe(
        starting_point("rt_detr_tiny", None), Choices(model="rt_detr_tiny", data=shapes, image_size="32")
    )
    data = read_data(recipe)
    assert (seen_as(data.input), queries_of(recipe)) == ("32x32", 20)
    kinds = {f.kind for f in quick_check(data, 1)}
    assert {"duplicate_object", "more_objects_than_queries", "below_stride"} <= kinds


def test_blocks_of_the_data_may_be_written_as_in_a_recipe(shapes):
    later = [{"from_epoch": 4, "name": "flip"}]
    dense = {"group": 4, "mixup": {"probability": 0.5, "epochs": [1, 3]}}
    overrides = {"data.later_transforms": later, "data.dense_o2o": dense}
    recipe, _ = build("deimv2_atto", shapes, weights="random", overrides=overrides)
    data = read_data(recipe)
    assert data._transforms.at(4).name == "flip"
    assert data.dense_o2o.mixup.epochs == (1, 3)
