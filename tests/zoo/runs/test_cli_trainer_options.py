"""Every option of Lightning's Trainer works or is refused in one line, before the data are read."""

from __future__ import annotations

import inspect
import re

import pytest
from lightning.pytorch import Trainer

from zoo.cli.main import run_command
from zoo.runs import recipes
from zoo.runs.schema import check
from zoo.runs.trainer_options import RULES

# name, values that are refused, what the line says besides the name
REFUSED = [
    ("accelerator", ["tpu", "hpu", 3, None, {"class_path": "x.Y"}, "gpus"], "must be one of auto, cpu"),
    ("accelerator", ["gpu", "cuda"], "no CUDA GPU here; use trainer.accelerator cpu"),
    ("accelerator", ["mps"], "no Apple GPU here"),
    ("strategy", ["fsdp", "deepspeed", "deepspeed_stage_2", "ddp_spawn", "ddp_fork", "ddp_notebook",
                  "single_device", "dp", "horovod", None, 2, {"class_path": "a.B"}], "use trainer.strategy auto"),
    ("devices", [0, -1, "0", "-1", "all", 1.5, True, [0], [], None, "0,1", {"a": 1}], "auto or a number of devices"),
    ("devices", [1_000_000, "1000000"], "a process each"),
    ("num_nodes", [0, -1, "2", None, 1.0], "whole number of at least 1"),
    ("num_nodes", [2], "torchrun"),
    ("precision", [17, "float16", "bf16-tru", 16.0, True, [16], {"a": 1}], "must be 32-true, bf16-mixed"),
    ("precision", [16, "16", "16-mixed"], "use trainer.precision bf16-mixed or 32-true"),
    ("precision", ["16-true", "bf16-true"], "use trainer.precision bf16-mixed"),
    ("precision", [64, "64", "64-true", "transformer-engine", "transformer-engine-float16"],
     "use trainer.precision 32-true"),
    ("logger", ["csv", 1, {"save_dir": "x"}, [True]], "class_path: lightning.pytorch.loggers.CSVLogger"),
    ("callbacks", ["EarlyStopping", True, [3], {"monitor": "x"}], "class_path: lightning.pytorch.callbacks."),
    ("callbacks", [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}], "under checkpoint"),
    ("fast_dev_run", [True, 1, 3, "yes"], "use trainer.max_steps 1"),
    ("max_epochs", [0], "nothing would be trained"),
    ("max_epochs", [-2, 1.5, "3", True], "whole number of at least 1, or -1, or null"),
    ("min_epochs", [-1, "1", 0.5], "whole number of at least 0"),
    ("min_epochs", [100], "more than trainer.max_epochs"),
    ("max_steps", [0], "nothing would be trained"),
    ("max_steps", [-2, 1e3, "10", None, True], "whole number of at least 1, or -1"),
    ("min_steps", [-1, "1", 0.5], "whole number of at least 0"),
    ("max_time", ["1h", 60, {"hour": 1}, {"hours": "1"}, True], "DD:HH:MM:SS"),
    ("limit_train_batches", [0, 0.0], "nothing would be trained"),
    ("limit_val_batches", [0, 0.0], "use trainer.check_val_every_n_epoch N"),
    ("limit_test_batches", [0, 0.0], "nothing would be tested"),
    *((f"limit_{part}_batches", ["many", -1, 1.5, -0.5, True, [1]], "number of batches, or their share")
      for part in ("train", "val", "test")),
    ("limit_predict_batches", [0, 1, 0.5, "x"], "no effect"),
    ("overfit_batches", [1, 0.1, "x", True], "--preflight"),
    ("val_check_interval", [0], "leave it out"),
    ("val_check_interval", [-1, 1.5, "00:00:10:00", {"hours": 1}, True], "number of optimizer steps, or their share"),
    ("check_val_every_n_epoch", [None], "needs trainer.val_check_interval"),
    ("check_val_every_n_epoch", [0, -1, 0.5, "1"], "whole number of at least 1"),
    ("num_sanity_val_steps", [-2, 0.5, "1"], "whole number of at least 0, or -1"),
    ("log_every_n_steps", [0, -1, 0.5, "1"], "whole number of at least 1"),
    ("enable_checkpointing", [False, 0, "no"], "checkpoint.save_top_k"),
    ("enable_progress_bar", ["yes", 1, []], "true or false"),
    ("enable_model_summary", ["yes", 1, []], "true or false"),
    ("accumulate_grad_batches", [2, 0, None, True, 1.0, {0: 2}], "use model.schedule.global_batch_size"),
    ("gradient_clip_val", [-0.1, "1", True, float("nan"), float("inf"), [1]], "number of at least 0"),
    ("gradient_clip_algorithm", ["max", 2, True], "norm or value"),
    ("deterministic", ["yes", 1, []], "true or false, or 'warn'"),
    ("benchmark", ["yes", 1], "true or false"),
    ("inference_mode", ["yes", None], "true or false"),
    ("use_distributed_sampler", [True, None, 0], "leave it out"),
    ("profiler", ["xla", "x", True, {"class_path": "a.B"}], "simple, advanced, pytorch"),
    ("detect_anomaly", ["yes", None], "true or false"),
    ("barebones", [True, "x"], "leave it out"),
    ("plugins", ["x", {"class_path": "lightning.pytorch.plugins.DoublePrecision"}, [3]], "cluster environment"),
    ("sync_batchnorm", ["yes", None, 1], "true or false"),
    ("reload_dataloaders_every_n_epochs", [1, "1", True], "leave it out"),
    ("default_root_dir", ["x", 3], "--output"),
    ("enable_autolog_hparams", ["yes", None], "true or false"),
    ("model_registry", ["x"], "zoo publish"),
]  # fmt: skip
# values that pass; what they do in a training is tests/zoo/runs/test_cli_trainer_options_work.py
ACCEPTED = {
    "accelerator": ["auto", "cpu"],
    "strategy": ["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"],
    "devices": ["auto", 1, 2, "1"],
    "num_nodes": [1],
    "precision": [None, 32, "32", "32-true", "bf16", "bf16-mixed"],
    "logger": [None, True, False, {"class_path": "lightning.pytorch.loggers.CSVLogger"}, []],
    "callbacks": [None, {"class_path": "EarlyStopping"}, [{"class_path": "EarlyStopping", "init_args": {}}]],
    "fast_dev_run": [False, 0],
    "max_epochs": [1],
    "min_epochs": [None, 0, 1],
    "max_steps": [-1, 1],
    "min_steps": [None, 0, 1],
    "max_time": [None, "00:00:00:10", {"hours": 1, "minutes": 2}],
    "limit_train_batches": [None, 1, 0.5, 1.0],
    "limit_val_batches": [None, 1, 0.5, 1.0],
    "limit_test_batches": [None, 1, 0.5, 1.0],
    "limit_predict_batches": [None, 1.0],
    "overfit_batches": [0, 0.0],
    "val_check_interval": [None, 1, 0.5, 1.0],
    "check_val_every_n_epoch": [1, 5],
    "num_sanity_val_steps": [None, -1, 0, 2],
    "log_every_n_steps": [None, 1, 50],
    "enable_checkpointing": [None, True],
    "enable_progress_bar": [None, True, False],
    "enable_model_summary": [None, True, False],
    "accumulate_grad_batches": [1],
    "gradient_clip_val": [None, 0, 0.1, 5],
    "gradient_clip_algorithm": [None, "norm", "value"],
    "deterministic": [None, True, False, "warn"],
    "benchmark": [None, True, False],
    "inference_mode": [True, False],
    "use_distributed_sampler": [False],
    "profiler": [None, "simple", "advanced", "pytorch"],
    "detect_anomaly": [True, False],
    "barebones": [False],
    "plugins": [None, [], [{"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}]],
    "sync_batchnorm": [True, False],
    "reload_dataloaders_every_n_epochs": [0],
    "default_root_dir": [None],
    "enable_autolog_hparams": [True, False],
    "model_registry": [None],
}


@pytest.fixture(autouse=True)
def _a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)


@pytest.fixture
def tiny():
    return recipes.load(recipes.resolve("rt_detr/tiny"))


def test_the_table_has_every_option_of_this_lightning():
    options = set(inspect.signature(Trainer).parameters)
    assert set(RULES) == options
    assert set(ACCEPTED) == options
    refused = {name for name, _, _ in REFUSED}
    assert refused == options


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in ACCEPTED.items() for v in values], ids=str
)
def test_what_works_passes(tiny, name, value):
    tiny["trainer"][name] = value
    check(tiny)


@pytest.mark.parametrize(
    ("name", "value", "says"), [(n, v, says) for n, values, says in REFUSED for v in values], ids=str
)
def test_what_does_not_work_is_refused_in_one_line_with_key_and_way_out(tiny, name, value, says):
    tiny["trainer"][name] = value
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        check(tiny)
    text = str(caught.value)
    assert text.startswith(f"trainer.{name} is ")
    assert "\n" not in text
    assert len(text) < 300
    assert "{'" not in text, "a Python dict"


@pytest.mark.parametrize("epochs", [None, -1])
def test_a_training_without_an_end_is_refused(tiny, epochs):
    tiny["trainer"]["max_epochs"] = epochs
    with pytest.raises(ValueError, match="neither max_epochs nor max_steps"):
        check(tiny)
    tiny["trainer"]["max_steps"] = 5
    check(tiny)


def test_seldom_validation_counts_batches_over_epochs(tiny):
    tiny["trainer"] |= {"check_val_every_n_epoch": None, "val_check_interval": 7}
    check(tiny)
    tiny["trainer"]["val_check_interval"] = 0.5
    with pytest.raises(ValueError, match=r"needs trainer\.val_check_interval in steps"):
        check(tiny)


def test_an_algorithm_without_clipping_is_refused(tiny):
    tiny["trainer"] |= {"gradient_clip_val": None, "gradient_clip_algorithm": "value"}
    with pytest.raises(ValueError, match=r"no effect without trainer\.gradient_clip_val"):
        check(tiny)


def test_on_a_gpu_half_precision_passes_and_strict_determinism_does_not(tiny, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for options in ({"precision": "16-mixed"}, {"devices": -1}, {"devices": [0, 1]}, {"devices": "0,1"}):
        check(tiny | {"trainer": tiny["trainer"] | options})
    for options, says in (
        ({"deterministic": True}, "use warn"),
        ({"devices": 3}, "this machine has 2"),
        ({"devices": [0, 2]}, "GPUs 0 to 1"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "needs a CUDA GPU"),
    ):
        with pytest.raises(ValueError, match=says):
            check(tiny | {"trainer": tiny["trainer"] | options})


def test_several_nodes_pass_where_something_started_them(tiny, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    tiny["trainer"]["num_nodes"] = 2
    check(tiny)


def test_a_refused_option_leaves_the_data_unread(capsys, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("zoo.runs.finetune.read_data", lambda recipe: pytest.fail("the data were read"))
    arguments = ["finetune", "rt_detr_tiny", "--data", "data", "--trainer.accumulate_grad_batches", "2"]
    assert run_command([*arguments, "--output", "run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: trainer.accumulate_grad_batches is 2; ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
