"""What a training says of itself before its first step, and while it is scored."""

from types import SimpleNamespace

from zoo.training import callbacks
from zoo.training.callbacks import Progress


def trainer(step=0, fn="fit", **metrics):
    return SimpleNamespace(
        global_step=step, estimated_stepping_batches=9, callback_metrics=metrics, is_global_zero=True,
        datamodule=SimpleNamespace(padding_ratio=None, micro_batches=(8, 2)), state=SimpleNamespace(fn=fn),
        num_val_batches=[4], num_test_batches=[5], current_epoch=0,
    )  # fmt: skip


def test_before_the_first_step_there_is_no_loss_and_no_speed(monkeypatch):
    monkeypatch.setattr(callbacks, "PLAIN_SECONDS", 0.0)
    said = []
    progress = Progress(said.append, bar=False)
    progress.on_train_start(trainer(), None)
    assert said == ["accumulate  8 batches of 2 images for each step of a device"]
    progress.on_train_batch_end(trainer(), None, None, None, 0)
    assert said[1:] == ["step 1 of 9 is being computed"]
    progress.on_train_batch_end(trainer(1, **{"train/loss": 2.5}), None, None, None, 0)
    assert said[2].startswith("step 1/9  loss 2.500  ")


def test_a_long_evaluation_says_how_far_it_is(monkeypatch):
    said = []
    progress = Progress(said.append, bar=False)
    for fn in ("validate", "test"):
        monkeypatch.setattr(callbacks, "PLAIN_SECONDS", 1000.0)
        progress.on_validation_start(trainer(fn=fn), None)
        progress.on_validation_batch_end(trainer(fn=fn), None, None, None, 0)
        monkeypatch.setattr(callbacks, "PLAIN_SECONDS", 0.0)
        progress.on_test_start(trainer(fn=fn), None)
        progress.on_test_batch_end(trainer(fn=fn), None, None, None, 1)
    assert said == ["val batch 2/4", "test batch 2/5"]
