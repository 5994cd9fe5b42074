"""Options of the trainer that are passed through do what they say: a few steps of a training with each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.runs import recipes
from zoo.storage.checkpoint_io import read_checkpoint

SMALL = (
    "--model.backbone.widths", "[4, 8, 8, 8, 8]", "--model.encoder.dim", "16", "--model.encoder.ffn_dim", "16",
    "--model.decoder.dim", "16", "--model.decoder.ffn_dim", "16", "--model.decoder.num_queries", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 16, 6, seed=0, size=64)


@pytest.fixture(autouse=True)
def _no_trace_in_torch():
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)


def finetune(shapes: Path, *options: str) -> int:
    return run_command(
        ["finetune", "rt_detr_tiny", "--data", str(shapes), "--image-size", "64", "--batch-size", "4",
         "--output", "run", *SMALL, *options]
    )  # fmt: skip


@pytest.mark.slow
def test_bf16_mixed_trains_clips_validates_and_is_registered(shapes, capsys, monkeypatch):
    """With what else a training of two steps can hold."""
    clipped = []
    clip = MixedPrecision.clip_gradients

    def seen(self, optimizer, clip_val=0.0, *rest, **more):
        clipped.append((clip_val, optimizer.param_groups[0]["fused"], torch.get_autocast_dtype("cpu")))
        return clip(self, optimizer, clip_val, *rest, **more)

    monkeypatch.setattr(MixedPrecision, "clip_gradients", seen)
    assert finetune(
        shapes, "--max-steps", "2", "--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_algorithm", "value",
        "--trainer.num_sanity_val_steps", "1", "--trainer.log_every_n_steps", "1", "--trainer.benchmark", "false",
        "--trainer.limit_val_batches", "1", "--data.eval_batch_size", "2", "--trainer.profiler", "simple",
        "--trainer.detect_anomaly", "true", "--trainer.deterministic", "true", "--json",
    ) == 0  # fmt: skip
    assert recipes.load(Path("run/recipe.yaml"))["trainer"].get("accumulate_grad_batches", 1) == 1
    assert [(value, fused) for value, fused, _ in clipped] == [(0.1, False)] * 2
    document = json.loads(capsys.readouterr().out)
    assert document["registered"]
    assert document["val"]["images"] == 6, "what is released is scored on the whole split"
    assert list(Path("run").glob("*profile*")), "the profiler's findings are nowhere"
    state = read_checkpoint(document["checkpoint"])["state_dict"]
    assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}
    picture = next((shapes / "val").glob("*.*"), None) or next(shapes.rglob("*.png"))
    assert run_command(["predict", document["registered"], str(picture)]) == 0
    evaluated = ["validate", "--config", "run/recipe.yaml", "--ckpt-path", document["checkpoint"], "--json"]
    assert run_command([*evaluated, "--output", "scores"]) == 0


# one training each; what the line above holds too is here alone, so that a fault has a name
ALONE = {
    "strategy ddp on one device": ["--trainer.strategy", "ddp"],
    "unused parameters are looked for": ["--trainer.strategy", "ddp_find_unused_parameters_true"],
    "no clipping": ["--trainer.gradient_clip_val", "null"],
    "clipping by value": ["--trainer.gradient_clip_algorithm", "value"],
    "mixed without clipping": ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "0"],
    "no logger": ["--trainer.logger", "false"],
    "a csv logger": ["--trainer.logger", "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: "
                     "{save_dir: logs}}"],
    "early stopping": ["--trainer.callbacks", "[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: "
                       "{monitor: val/AP, mode: max, patience: 1}}]"],
    "a time limit": ["--trainer.max_time", "'00:00:01:00'"],
    "minima": ["--trainer.min_steps", "1", "--trainer.min_epochs", "1"],
    "part of the training batches": ["--trainer.limit_train_batches", "2"],
    "a share of the training batches": ["--trainer.limit_train_batches", "0.5"],
    "part of the validation batches": ["--trainer.limit_val_batches", "1"],
    "a share of the validation batches": ["--trainer.limit_val_batches", "1.0"],
    "validation twice an epoch": ["--trainer.val_check_interval", "0.5"],
    "validation every two steps": ["--trainer.val_check_interval", "2"],
    "validation over epochs": ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "3"],
    "validation never within the training": ["--trainer.check_val_every_n_epoch", "50"],
    "Lightning's progress bar": ["--trainer.enable_progress_bar", "true"],
    "Lightning's summary": ["--trainer.enable_model_summary", "true"],
    "all of the sanity check": ["--trainer.num_sanity_val_steps", "-1"],
    "determinism with a warning": ["--trainer.deterministic", "warn"],
    "no inference mode": ["--trainer.inference_mode", "false"],
    "the advanced profiler": ["--trainer.profiler", "advanced"],
    "torch's profiler": ["--trainer.profiler", "pytorch"],
    "synchronised norms": ["--trainer.sync_batchnorm", "true"],
    "no hyperparameters": ["--trainer.enable_autolog_hparams", "false"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_an_option_that_is_passed_through_trains_to_a_released_model(shapes, capsys, monkeypatch, name):
    monkeypatch.chdir(shapes.parent)  # one store for all: to make it is most of a small training
    folder = f"run_{list(ALONE).index(name)}"
    assert finetune(shapes, "--epochs", "2", *ALONE[name], "--json", "--output", folder) == 0
    out = capsys.readouterr().out
    document = json.loads(out[out.index("{") :])
    assert document["val"]["images"] == 6
    assert Path(document["checkpoint"]).is_file()
    assert 0 < document["step"] <= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.limit_train_batches", "0.0001"], "limit_train_batches"),
        (["--trainer.limit_val_batches", "0.0001"], "limit_val_batches"),
        (["--trainer.val_check_interval", "100"], "val_check_interval"),
        (["--trainer.limit_train_batches", "3", "--data.batch_size", "2"], "set it to a multiple of 2"),
    ],
)
def test_what_only_the_data_tell_is_one_line_too(shapes, capsys, options, says):
    assert finetune(shapes, "--epochs", "1", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert says in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.accumulate_grad_batches", "2"], "use model.schedule.global_batch_size"),
        (["--trainer.limit_val_batches", "0"], "chosen by validation"),
        (["--trainer.enable_checkpointing", "false"], "the weights that are released are a checkpoint"),
        (["--trainer.precision", "bf16-true"], "use trainer.precision bf16-mixed"),
    ],
)
def test_what_cannot_work_ends_before_a_run_begins(shapes, capsys, options, says):
    assert finetune(shapes, "--epochs", "1", *options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert not Path("run").exists()
