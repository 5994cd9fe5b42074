"""A recipe, manifest or checkpoint of a stranger imports nothing, reads no variable and writes nowhere else."""

import copy
import inspect
import os
import pickle
from pathlib import Path

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import pytest
import torch
from registry_case import safetensors_bytes, tiny_manifest

from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.registry.store import LocalRegistry, with_files
from zoo.runs import recipes, schema, trust
from zoo.runs.building import recipe as recipe_of
from zoo.runs.finetune import Choices, complete_recipe, starting_point
from zoo.runs.fit import fit
from zoo.runs.lightning import ZooCLI
from zoo.runs.schema import check
from zoo.training.module import DetectionModule, build_module

NAMED = {"class_path": "strangers_code.Thing", "init_args": {}}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Whether a stranger's module was imported: a file that the import leaves."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "strangers_code.py").write_text(
        "from pathlib import Path\nfrom lightning.pytorch import Callback\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\nclass Thing(Callback): pass\ndef run(*a, **k): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(__import__("sys").modules, "strangers_code", raising=False)
    return (tmp_path / "imported").exists


@pytest.fixture
def tiny():
    return recipes.load(recipes.resolve("rt_detr/tiny"))


def put(recipe, dotted, value):
    *parents, last = dotted.split(".")
    node = recipe
    for parent in parents:
        node = node[parent]
    node[last] = value


def of_lightning(path, **arguments):
    return {"class_path": f"lightning.pytorch.{path}", "init_args": arguments}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("trainer.callbacks", [NAMED]),
        ("trainer.callbacks", NAMED),
        ("trainer.callbacks+", [NAMED]),
        ("trainer+", {"callbacks": [NAMED]}),
        ("trainer.callbacks", "strangers_code.Thing"),
        ("trainer.callbacks", "[{class_path: strangers_code.Thing}]"),
        ("trainer.callbacks", [of_lightning("callbacks.LambdaCallback", on_fit_start="strangers_code.run")]),
        ("trainer.callbacks", [of_lightning("callbacks.BackboneFinetuning", lambda_func="strangers_code.run")]),
        ("trainer.callbacks", [of_lightning("callbacks.EarlyStopping", monitor=NAMED)]),
        ("trainer.callbacks", [of_lightning("callbacks.EarlyStopping") | {"dict_kwargs": {"a": NAMED}}]),
        ("trainer.callbacks", [of_lightning("callbacks.EarlyStopping.strangers_code.Thing")]),
        ("trainer.callbacks", [{"class_path": "strangers_code.EarlyStopping"}]),
        ("trainer.callbacks", [of_lightning("callbacks.OnExceptionCheckpoint", dirpath="/tmp")]),
        ("trainer.logger", NAMED),
        ("trainer.logger", [NAMED]),
        ("trainer.logger", of_lightning("loggers.MLFlowLogger", tracking_uri="http://192.0.2.1")),
        ("trainer.logger", of_lightning("loggers.CSVLogger", save_dir="/tmp/elsewhere")),
        ("trainer.logger", of_lightning("loggers.CSVLogger", save_dir="logs/../../elsewhere")),
        ("trainer.logger", of_lightning("loggers.CSVLogger", save_dir="logs", name="../../elsewhere")),
        ("trainer.logger", of_lightning("loggers.TensorBoardLogger", save_dir="s3://bucket")),
        ("trainer.logger", of_lightning("loggers.TensorBoardLogger", save_dir="~/elsewhere")),
        ("trainer.logger", of_lightning("loggers.TensorBoardLogger", save_dir="logs/$HOME")),
        ("trainer.profiler", NAMED),
        ("trainer.profiler", {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {}}),
        ("trainer.plugins", [NAMED]),
        ("trainer.plugins", [of_lightning("plugins.environments.strangers_code.Thing")]),
        ("trainer.strategy", NAMED),
        ("trainer.strategy", "strangers_code.Thing"),
        ("trainer.accelerator", NAMED),
        ("trainer.default_root_dir", "/tmp/elsewhere"),
        ("trainer.__default_config__", "/etc/hostname"),
        ("checkpoint.dirpath", "/tmp/elsewhere"),
        ("checkpoint.monitor", NAMED),
        ("config", "/etc/hostname"),
        ("model.class_path", "strangers_code.Thing"),
        ("model.class_path", "zoo.architectures.rt_detr.RtDetr"),
        ("model.class_path", "zoo.architectures.rt_detr.strangers_code.Thing"),
        ("model.dict_kwargs", {"a": NAMED}),
        ("model.init_args.schedule", NAMED),
        ("model.init_args.schedule", "strangers_code.Thing"),
        ("model.init_args.ema", NAMED),
        ("model.init_args.ema", "strangers_code.Thing"),
        ("model.init_args.backbone", NAMED),
        ("model.init_args.backbone", "strangers_code.Thing"),
        ("model.init_args.backbone.weights", NAMED),
        ("model.init_args.schedule.rules", [NAMED]),
        ("model.init_args.schedule.rules", ["strangers_code.Thing"]),
        ("model.init_args.multi_scale", [NAMED]),
        ("data.class_path", "strangers_code.Thing"),
        ("data.class_path", "datamodules.published.unpacking.ZipFile"),
        ("data.init_args.input", NAMED),
        ("data.init_args.input", "strangers_code.Thing"),
        ("data.init_args.root", NAMED),
        ("data.init_args.train_transform", NAMED),
        ("tracking", NAMED),
        ("init_from", NAMED),
        ("init_from.source", NAMED),
        ("seed_everything", NAMED),
    ],
)  # fmt: skip
def test_a_recipe_names_no_code_and_no_place(tiny, imported, tmp_path, place, value):
    put(tiny, place, copy.deepcopy(value))
    with pytest.raises(ValueError, match=r"^.") as refused:
        ZooCLI(tiny, tmp_path / "run", [], with_tracker=False)
    assert "\n" not in str(refused.value)
    assert not imported()


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (of_lightning("callbacks.EarlyStopping", monitor=NAMED), "no word and no number"),
        (of_lightning("callbacks.EarlyStopping", monitor=["a"]), "no word and no number"),
        (of_lightning("callbacks.EarlyStopping") | {"dict_kwargs": {"a": NAMED}}, "and nothing else"),
    ],
)
def test_the_rules_do_not_lean_on_the_parser(item, said):
    with pytest.raises(ValueError, match=said):
        trust.refuse_strangers({"callbacks": [item]})


@pytest.mark.parametrize("value", [NAMED, [NAMED], {"a": NAMED}, "strangers_code.Thing"])
def test_an_argument_that_takes_any_module_takes_none_from_a_recipe(tiny, imported, monkeypatch, value):
    class Open(DetectionModule):
        def __init__(self, *, part: torch.nn.Module) -> None:
            raise AssertionError

    real = schema.load_class
    monkeypatch.setattr(schema, "load_class", lambda key, path: Open if key == "model" else real(key, path))
    tiny["model"]["init_args"] = {"part": value}
    with pytest.raises(ValueError, match=r"model\.part.* is (no key of a recipe|'strangers_code)"):
        check(tiny)
    assert not imported()


@pytest.mark.parametrize("key", trust.OF_LIGHTNING)
def test_no_argument_of_an_allowed_class_imports_what_it_names(tiny, imported, tmp_path, key):
    place = {"callbacks": lightning.pytorch.callbacks, "logger": lightning.pytorch.loggers}[key]
    for name in trust.OF_LIGHTNING[key]:
        for argument in inspect.signature(getattr(place, name)).parameters:
            tiny["trainer"][key] = {"class_path": name, "init_args": {argument: "strangers_code.Thing"}}
            try:
                ZooCLI(tiny, tmp_path / "run", [], parts=("trainer",))
            except (ValueError, TypeError):
                pass
            assert not imported(), f"{name}.{argument}"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (key, path)
        for key, home in (("callbacks", "callbacks"), ("logger", "loggers"))
        for name in trust.OF_LIGHTNING[key]
        for path in (name, f"lightning.pytorch.{home}.{name}")
    ],
)
def test_what_lightning_has_is_built_by_its_name(tiny, tmp_path, key, path):
    needed = {
        "EarlyStopping": {"monitor": "val/AP"},
        "CSVLogger": {"save_dir": "logs"},
        "TensorBoardLogger": {"save_dir": "logs"},
    }
    name = path.rpartition(".")[2]
    tiny["trainer"] |= {
        key: {"class_path": path, "init_args": needed.get(name, {})},
        "enable_progress_bar": True,
    }
    if name == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    trainer = ZooCLI(tiny, tmp_path / "run", [], parts=("trainer",), with_tracker=key == "logger").trainer
    found = trainer.callbacks if key == "callbacks" else trainer.loggers
    assert name in [type(one).__name__ for one in found]


def strings(value, where=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, str):
        yield where


def test_no_string_of_a_recipe_reads_a_variable_or_another_key(tiny, monkeypatch):
    monkeypatch.setenv("SECRET", "a-secret-word")
    places = list(strings(tiny))
    assert len(places) > 15
    for resolver in (
        "${oc.env:SECRET}",
        "${oc.decode:${oc.env:SECRET}}",
        "x${about.name}",
        "${oc.create:{}}",
    ):
        for place in places:
            hostile = copy.deepcopy(tiny)
            put(hostile, place, resolver)
            with pytest.raises(ValueError, match=r"nothing is filled in for \$\{\.\.\.\}") as refused:
                check(hostile)
            assert "a-secret-word" not in str(refused.value)


def test_a_trusted_recipe_is_told_of(tiny, imported, tmp_path, capsys):
    tiny["trainer"]["callbacks"] = [NAMED]
    Path("recipe.yaml").write_text(recipes.dump(tiny))
    assert run_command(["fit", "--config", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert "'strangers_code.Thing'" in said
    assert "--trust-recipe" in said
    assert said.count("\n") == 1
    assert not imported()
    assert run_command(["fit", "--config", "recipe.yaml", "--trust-recipe"]) == 2  # the data are absent
    out, err = capsys.readouterr()
    assert "trusted     the recipe's word alone imports strangers_code.Thing\n" in out
    assert "strangers_code" not in err
    with pytest.raises(ValueError, match="trust=True"):
        recipe_of("recipe.yaml").trainer("a")
    assert not imported()
    trainer = recipe_of("recipe.yaml", trust=True).trainer("b", logger=False)
    assert imported()
    assert "Thing" in [type(callback).__name__ for callback in trainer.callbacks]
    Path("b").mkdir(exist_ok=True)
    Path("b", "last.ckpt").write_bytes(b"")
    assert trainer.checkpoint_callback.resume_command() == "zoo fit --ckpt-path b/last.ckpt --trust-recipe"


@pytest.mark.parametrize("key", ["schedule", "backbone", "ema", "encoder"])
@pytest.mark.parametrize(
    "value", [NAMED, "strangers_code.Thing", {"__path__": "x", "class_path": "strangers_code.Thing"}]
)
def test_the_model_of_a_manifest_or_checkpoint_names_no_code(tiny, imported, key, value):
    tiny["model"]["init_args"][key] = value
    with pytest.raises(ValueError, match=r"init_args do not fit|the backbone of"):
        build_module(tiny["model"])
    assert not imported()


@pytest.mark.parametrize(
    ("part", "key"), [("decoder", "num_layers"), ("decoder", "eval_layers"), ("encoder", "num_blocks")]
)
def test_a_tower_of_layers_is_not_built(tiny, part, key):
    tiny["model"]["init_args"][part][key] = 100_000
    with pytest.raises(ValueError, match=f"{key} is 100000; no network here has more than 256"):
        build_module(tiny["model"])
    with pytest.raises(ValueError, match=f"{key} is 100000"):
        ZooCLI(tiny, Path("run"), [], parts=("model",))


@pytest.mark.parametrize("workers", [-1, 10**6])
def test_no_recipe_starts_a_million_processes(tiny, workers):
    tiny["data"]["init_args"]["num_workers"] = workers
    with pytest.raises(ValueError, match=f"num_workers is {workers}; it is a number of processes, 0 to 1024"):
        ZooCLI(tiny, Path("run"), [], parts=("data",))


@pytest.fixture
def registered(tmp_path):
    """The recipe file of a model in the registry, to be written by a stranger."""

    def make(folder):
        (folder / "model.safetensors").write_bytes(safetensors_bytes())
        return with_files(tiny_manifest(name="rt_detr_tiny.theirs"), folder)

    store = LocalRegistry(tmp_path / "registry")
    added = store.add(make, "rt_detr_tiny.theirs")
    return store.folder(added.name, added.version) / "recipe.yaml"


def started(path):
    start = starting_point("rt_detr_tiny.theirs", path.parents[2])
    return complete_recipe(start, Choices(model="rt_detr_tiny.theirs", data="images"))


def test_of_a_registered_recipe_model_data_and_numbers_are_taken(tiny, registered, imported):
    tiny["trainer"] |= {
        "callbacks": [NAMED], "logger": of_lightning("loggers.MLFlowLogger", tracking_uri="http://192.0.2.1"),
        "profiler": "advanced", "plugins": [NAMED], "strategy": NAMED, "default_root_dir": "/tmp", "max_epochs": 7,
    }  # fmt: skip
    tiny["tracking"] = {"experiment": "theirs", "run_id": "f" * 32}
    tiny["about"] = NAMED
    tiny["init_from"] = {"source": "/etc/passwd"}
    registered.write_text(recipes.dump(tiny))
    recipe, notes = started(registered)
    check(recipe)
    assert recipe["trainer"]["max_epochs"] == 7
    assert not {"callbacks", "logger", "profiler", "plugins", "default_root_dir"} & recipe["trainer"].keys()
    assert recipe["tracking"] == {"experiment": "rt_detr"}
    assert recipe["init_from"]["source"] == "rt_detr_tiny.theirs:1"
    assert "strangers_code" not in recipes.dump(recipe)
    told = next(note for note in notes if "left out" in note)
    assert (
        "trainer.callbacks, trainer.default_root_dir, trainer.logger, trainer.plugins, trainer.profiler"
        in told
    )
    assert not imported()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.class_path", "strangers_code.Thing"),
        ("data.class_path", "strangers_code.Thing"),
        ("model.init_args.schedule", NAMED),
        ("model.init_args.schedule", "strangers_code.Thing"),
        ("model.init_args.schedule.lr", "fast"),
        ("model.init_args.schedule.rules", [3]),
        ("model.init_args", None),
        ("data.init_args.input.mean", ["${oc.env:SECRET}"]),
        ("data.init_args", []),
        ("checkpoint.dirpath", "/tmp"),
        ("trainer", "x"),
        ("trainer.max_epochs", NAMED),
        ("model", None),
        ("data", 3),
    ],
)
def test_a_registered_recipe_that_is_refused_is_one_line_with_its_file(
    tiny, registered, imported, capsys, place, value
):
    put(tiny, place, value)
    registered.write_text(recipes.dump(tiny))
    images = generate_shapes(Path("images"), num_train=2, num_val=1, seed=0, size=32)
    arguments = ["--data", str(images), "--registry", str(registered.parents[2]), "--output", "run"]
    assert run_command(["finetune", "rt_detr_tiny.theirs", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {registered}: ")
    assert said.count("\n") == 1
    assert not imported()
    assert not Path("run").exists()


class Hostile:
    """Runs a command when it is unpickled the usual way."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def test_no_way_to_a_checkpoint_unpickles_code(tiny, tmp_path, capsys):
    images = generate_shapes(Path("images"), num_train=4, num_val=1, seed=0, size=64)
    tiny["data"]["init_args"] |= {"root": str(images), "batch_size": 2}
    tiny["model"]["init_args"] |= {"num_classes": 4}
    tiny["model"]["init_args"]["schedule"]["global_batch_size"] = 2
    hostile = tmp_path / "hostile.ckpt"
    hostile.write_bytes(pickle.dumps({"zoo": Hostile(), "state_dict": {}}))
    with pytest.raises(ValueError, match="Nothing in it was executed"):
        fit(tiny, resume=hostile, output="run")
    for option in ("--model.backbone.weights", "--init_from.source"):
        Path("recipe.yaml").write_text(recipes.dump(tiny))
        assert run_command(["fit", "--config", "recipe.yaml", option, str(hostile), "--output", "other"]) == 2
        assert "Nothing in it was executed" in capsys.readouterr().err
    assert run_command(["predict", str(hostile), str(next(images.rglob("*.png")))]) == 2
    assert run_command(["finetune", "rt_detr_tiny", "--data", str(images), "--weights", str(hostile)]) == 2
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "state", [{"conv1.weight": 3}, {"x": 1}, {3: 4}, {"res_layers.a.blocks.0.short.conv.x": 1}]
)
def test_a_file_that_is_no_backbone_is_one_line(tiny, tmp_path, state):
    torch.save(state, tmp_path / "weights.pth")
    tiny["model"]["init_args"]["backbone"] |= {"weights": str(tmp_path / "weights.pth")}
    with pytest.raises(ValueError, match=r"backbone.weights"):
        ZooCLI(tiny, tmp_path, [], parts=("model",))
