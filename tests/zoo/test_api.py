"""The Python API: its examples run, it prints through its console, and it leaves the caller's process alone."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from empty_store import put_empty_store
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

import zoo
from datamodules.shapes import generate_shapes
from zoo.runs.lightning import ZooCLI

README = Path(zoo.__file__).parents[1] / "README.md"
# small in width: an example is about the call, not about the network
NARROW = {
    "model.backbone.widths": [4, 8, 8, 8, 8], "model.encoder.dim": 16, "model.encoder.ffn_dim": 16,
    "model.decoder.dim": 16, "model.decoder.ffn_dim": 16,
}  # fmt: skip
TINY = {
    **NARROW, "data.root": "shapes", "data.batch_size": 4, "data.num_workers": 0, "data.input.size": [64, 64],
    "model.num_classes": 4, "model.schedule.global_batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with shapes."""
    folder = tmp_path_factory.mktemp("api")
    generate_shapes(folder / "shapes", 8, 2, 0, 64)
    return folder


@pytest.fixture
def shapes(made, tmp_path):
    os.symlink(made / "shapes", tmp_path / "shapes")
    put_empty_store(tmp_path / "mlruns")
    return tmp_path / "shapes"


def fit(**more):
    return zoo.fit(
        zoo.recipe("rt_detr/tiny", TINY), overrides={"trainer.max_steps": 2, "trainer.max_epochs": -1},
        console=zoo.Silent(), **more,
    )  # fmt: skip


# -- examples


# in the order in which they use each other's files
NAMES = ("zoo", "recipe", "finetune", "fit", "evaluate", "load", "export", "publish")


def test_the_examples_of_the_public_functions_run(shapes, capsys):
    for name in NAMES:
        text = zoo.__doc__ if name == "zoo" else inspect.getdoc(getattr(zoo, name))
        test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0, capsys.readouterr().out
        assert result.attempted > 1


def test_every_public_function_has_an_example():
    functions = {n for n in zoo.__all__ if inspect.isfunction(getattr(zoo, n))} - {"available"}
    assert functions == set(NAMES[1:])


def test_the_blocks_of_the_readme_run(shapes, tmp_path):
    """What README shows in Python, in one process: `DIR`, `street.jpg` and the models that it names are put there.

    A block that says `# fetches` needs the network and is only compiled.
    """
    run = fit(output="run")
    for name in ("rt_detr_r18.mine", "rt_detr_tiny.mine"):
        run.publish(name, aliases=["champion"])
    os.symlink("shapes", "DIR")
    Path("street.jpg").symlink_to(next((shapes / "val").iterdir()))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        code = compile(block, "README.md", "exec")
        if "# fetches" not in block:
            exec(code, names)


def test_importing_zoo_and_asking_what_is_in_it_imports_no_torch():
    script = (
        "import sys, zoo; names = dir(zoo)\n"
        "assert set(zoo.__all__) <= set(names), names\n"
        "assert not {'torch', 'lightning', 'mlflow', 'numpy', 'yaml'} & set(sys.modules)\n"
        "zoo.Console, zoo.Silent\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_zoo_has_not_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'finetun'"):
        zoo.finetun  # noqa: B018


# -- a recipe and a trainer of one's own


def test_module_and_data_of_a_recipe_are_those_of_a_run_and_torch_draws_on(shapes):
    recipe = zoo.recipe("rt_detr/tiny", TINY)
    before = torch.random.get_rng_state()
    module, data = recipe.module(), recipe.datamodule()
    assert torch.equal(torch.random.get_rng_state(), before)
    built = ZooCLI(recipe, Path(), [], with_tracker=False)
    for key, value in built.model.state_dict().items():
        assert torch.equal(value, module.state_dict()[key]), key
    assert data.digest() == built.datamodule.digest()
    assert data.input == built.datamodule.input


def test_a_trainer_of_ones_own_trains_a_module_whose_checkpoint_is_loaded_and_published(shapes):
    recipe = zoo.recipe("rt_detr/tiny", TINY)
    trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, log_every_n_steps=0,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(recipe.module(), recipe.datamodule())
    path = trainer.checkpoint_callback.best_model_path
    assert path
    detector = zoo.load(path)
    assert detector.label_map.names == ("circle", "square", "triangle", "cross")
    published = zoo.publish(path, "rt_detr_tiny.own", registry="models")
    assert published.reference == "rt_detr_tiny.own:1"
    assert zoo.load(published.reference, registry="models").label_map == detector.label_map


def test_a_module_without_its_data_starts_from_weights_by_class_name(shapes):
    run = fit(output="run")
    start = {"init_from.source": str(run.checkpoint), "init_from.head": "by_class_name"}
    module = zoo.recipe("rt_detr/tiny", TINY | start).module()
    trained = run.detector().module.evaluation_network.state_dict()
    for key, value in module.network.state_dict().items():
        assert torch.equal(value, trained[key]), key


class Seen(Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1


def test_the_trainer_of_a_recipe_takes_options_and_objects_and_gives_the_signals_back(shapes):
    recipe, seen = zoo.recipe("rt_detr/tiny", TINY), Seen()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = recipe.trainer("kept", max_steps=2, accelerator="cpu", logger=False, callbacks=[seen])
    trainer.fit(recipe.module(), recipe.datamodule())
    assert (trainer.max_steps, seen.steps) == (2, 2)
    assert Path("kept/last.ckpt").is_file()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(FileExistsError, match="kept holds a run already"):
        recipe.trainer("kept")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda r: r.trainer("x", max_stepz=2), r"trainer.max_stepz is no key of a recipe; did you mean 'max_steps'"),
        (lambda r: r.trainer("x", callback=Seen()), r"trainer.callback is no key of a recipe; did you mean"),
        (lambda r: r.trainer("x", overfit_batches=3), r"trainer.overfit_batches is 3; .*--preflight"),
        (lambda r: zoo.recipe(r, {"model.num_classs": 4}).module(), r"model.num_classs.*did you mean 'num_classes'"),
        (lambda r: zoo.recipe(r, {"data.rot": "x"}).datamodule(), r"data.rot is no key"),
        (lambda r: zoo.recipe(r, {"modle.x": 1}), r"no key 'modle.x'; did you mean 'model'"),
        (lambda r: zoo.recipe("rt_detr/tin"), r"did you mean 'rt_detr/tiny'"),
        (lambda r: zoo.fit(), r"config is missing: a recipe.s path or name"),
        (lambda r: zoo.fit(r, resume="nothing.ckpt"), r"nothing.ckpt does not exist"),
        (lambda r: zoo.finetune("rt_detr_tinny", "shapes"), r"did you mean 'rt_detr_tiny'"),
        (lambda r: zoo.finetune("rt_detr_tiny", "nowhere"), r"nowhere"),
        (lambda r: zoo.finetune("rt_detr_tiny", "shapes", image_size=(60, 64)), r"60x64: both sides must be"),
        (lambda r: zoo.evaluate("rt_detr_tinny", "shapes"), r"did you mean"),
        (lambda r: zoo.evaluate("x", "shapes", split="train"), r"split is 'train'; it is val or test"),
        (lambda r: zoo.load("rt_detr_tinny"), r"did you mean"),
        (lambda r: zoo.publish("nowhere", "rt_detr_tiny.x"), r"nowhere"),
        (lambda r: zoo.Run.open("nowhere"), r"nowhere has no metrics.json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_of_a_value_or_os_error(use, message, shapes):
    with pytest.raises((ValueError, OSError), match=message) as told:
        use(zoo.recipe("rt_detr/tiny", TINY))
    assert "\n" not in str(told.value)
    assert not Path("x").exists()


def test_overrides_may_be_what_python_has(shapes):
    recipe = zoo.recipe("rt_detr/tiny", TINY | {"data.root": Path("shapes"), "data.input.size": (64, 96)})
    assert recipe["data"]["init_args"]["root"] == "shapes"
    assert recipe.datamodule().input.size == (64, 96)
    changed = zoo.recipe(recipe, {"model.num_classes": 5})
    assert recipe["model"]["init_args"]["num_classes"] == 4
    assert changed["model"]["init_args"]["num_classes"] == 5


# -- a run


def test_a_run_is_its_folder_wherever_that_lies(shapes, capsys):
    run = fit(output="run")
    assert capsys.readouterr().out == ""
    os.rename("run", "moved")
    moved = zoo.Run.open("moved")
    assert moved.scores == run.scores
    assert moved.checkpoint == Path("moved", run.checkpoint.name)
    assert moved.curves["val/AP"][-1] == (2, pytest.approx(run.scores["val"]["AP"] or 0.0))
    assert moved.recipe["model"]["init_args"]["num_classes"] == 4
    assert moved.detector().predict(str(next((shapes / "val").iterdir()))).size == (64, 64)


def test_a_notebook_shows_scores_and_pictures_and_goes_on_after_an_interrupt(shapes, monkeypatch):
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("IPYTHONDIR", "ipython")
    shell = InteractiveShell()  # no singleton: the next test has none
    shell.user_ns |= {"TINY": TINY, "os": os, "signal": signal, "Callback": Callback, "zoo": zoo}
    stop = (
        "class Stop(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 0: os.kill(os.getpid(), signal.SIGINT)\n"
        "import zoo.runs.fit, zoo.runs.train as train\n"
        "kept, train.History = train.History, type('History', (Stop, train.History), {})\n"
    )
    cell = "run = zoo.fit(zoo.recipe('rt_detr/tiny', TINY), overrides={'trainer.max_steps': 2}, output='run')"
    shell.run_cell(stop)
    interrupted = shell.run_cell(cell)
    shell.run_cell("train.History = kept")
    assert isinstance(interrupted.error_in_exec, KeyboardInterrupt)
    assert f"zoo.fit(resume={str(Path('run/last.ckpt').absolute())!r})" in str(interrupted.error_in_exec)
    unfinished = zoo.Run.open("run")
    assert "not finished" in unfinished._repr_html_()
    assert unfinished.scores == {}
    done = shell.run_cell("zoo.fit(resume='run')")
    assert done.success
    page = shell.display_formatter.format(done.result)[0]["text/html"]
    assert page.count("data:image/png;base64,") == 2
    assert f"{done.result.scores['val']['AP']:.3f}" in page
    image = next(shapes.glob("val/*.png"))
    found = shell.run_cell(f"zoo.load('run').predict({str(image)!r})").result
    assert shell.display_formatter.format(found)[0]["image/png"].startswith(b"\x89PNG")
    shell.history_manager.end_session()
