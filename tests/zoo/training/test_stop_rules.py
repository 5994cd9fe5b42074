"""Patience and time: when they end a training, and that a resume at any step ends it at the same one."""

import datetime
import shutil
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from test_module import build, make_data, trainer
from test_restart import fit as fit_in_stages
from test_restart import module_of
from test_saving import equal, facts

from datamodules.shapes import generate_shapes
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.training import stop_rules
from zoo.training.saving import LAST, CheckpointSaver
from zoo.training.stop_rules import Stopping, StopRules, clock, spoken, timedelta
from zoo.training.stopping import StopRequest

SCORES = {2: 0.3, 4: 0.3005, 6: 0.1, 8: 0.3009, 10: 0.9}  # by step


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 16, 4, seed=0, size=64)


class Scores(L.Callback):
    """Gives the validation at a step its score."""

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/mine", SCORES[trainer.global_step])


class Kept(CheckpointSaver):
    """Keeps a copy of each last.ckpt, as a kill at that moment would leave it."""

    def _note_saved(self, trainer):
        super()._note_saved(trainer)
        number = len(list(self.folder.glob("*.killed")))
        if (self.folder / LAST).is_file():
            shutil.copyfile(self.folder / LAST, self.folder / f"{number:02d}.killed")


def fit(shapes, folder, rules, *, resume=None, batch_size=8, saver=CheckpointSaver, **options):
    """2 steps of 8 images an epoch; (trainer, rules)."""
    folder.mkdir(exist_ok=True)
    saver = saver(monitor="val/mine", every_n_train_steps=1)
    saver.folder = folder
    run = trainer(
        folder, enable_checkpointing=True, plugins=[AtomicCheckpointIO()], callbacks=[Scores(), rules, saver],
        **({"max_epochs": 5, "limit_val_batches": 1} | options),
    )  # fmt: skip
    with StopRequest() as saver.stop:
        run.fit(build(), make_data(shapes, batch_size), ckpt_path=None if resume is None else str(resume))
    return run, rules


def test_patience_ends_it_and_so_does_every_resume_of_it(shapes, tmp_path):
    run, rules = fit(shapes, tmp_path / "whole", StopRules(Stopping(patience=3)), saver=Kept)
    assert (run.global_step, rules.reason(), rules.better, rules.waited) == (
        8,
        "patience",
        pytest.approx(0.3),
        3,
    )
    whole = tmp_path / "whole" / LAST
    killed = sorted((tmp_path / "whole").glob("*.killed"))
    assert {facts(file)["step"] for file in killed} == set(range(1, 9))
    for file in (killed[4], killed[-1]):
        folder = tmp_path / file.stem
        again, rules = fit(shapes, folder, StopRules(Stopping(patience=3)), resume=file)
        assert (again.global_step, rules.reason()) == (8, "patience"), file
        last = folder / LAST if (folder / LAST).is_file() else file  # nothing was left to train
        equal(whole, last)
        kept = [read_checkpoint(f)["callbacks"]["StopRules"] for f in (whole, last)]
        assert kept[0]["waited"] == kept[1]["waited"] == 3


def test_more_patience_goes_on_with_a_run_that_was_stopped(shapes, tmp_path):
    fit(shapes, tmp_path / "short", StopRules(Stopping(patience=2)))
    assert facts(tmp_path / "short" / LAST)["step"] == 6
    run, rules = fit(
        shapes, tmp_path / "long", StopRules(Stopping(patience=4)), resume=tmp_path / "short" / LAST
    )
    assert (run.global_step, rules.reason(), rules.waited) == (10, None, 0)


@pytest.mark.parametrize(("delta", "better"), [(0.0, 0.3009), (0.00045, 0.3005), (0.001, 0.3)])
def test_the_smallest_difference_that_counts(delta, better):
    rules = StopRules(Stopping(patience=9, min_delta=delta))
    for step in (2, 4, 6, 8):
        rules.on_validation_end(moment(SCORES[step]), None)
    assert rules.better == pytest.approx(better)


def moment(score, mode="max"):
    saver = CheckpointSaver(monitor="val/mine", mode=mode)
    return SimpleNamespace(
        current_epoch=0, callback_metrics={"val/mine": torch.tensor(score)}, checkpoint_callback=saver,
        should_stop=False,
        state=SimpleNamespace(fn="fit"), sanity_checking=False, strategy=SimpleNamespace(broadcast=lambda x: x),
    )  # fmt: skip


def test_a_loss_is_better_when_it_is_lower_and_a_score_that_is_none_never():
    rules = StopRules(Stopping(patience=2))
    for score in (0.5, float("nan"), 0.4):
        rules.on_validation_end(moment(score, "min"), None)
    assert (rules.better, rules.waited) == (pytest.approx(0.4), 0)
    for score in (float("nan"), 0.9):
        rules.on_validation_end(last := moment(score, "min"), None)
    assert last.should_stop


def test_time_ends_it_at_the_end_of_a_step_with_a_validation_and_counts_over_resumes(
    shapes, tmp_path, monkeypatch
):
    """The clock goes on by a second whenever a micro-batch ends."""
    now = [0.0]
    monkeypatch.setattr(stop_rules, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Tick(L.Callback):
        def on_train_batch_end(self, *_):
            now[0] += 1

    def rules():
        return StopRules(Stopping(), datetime.timedelta(seconds=9))

    class Ticking(Scores, Tick):
        pass

    monkeypatch.setitem(globals(), "Scores", Ticking)
    monkeypatch.setitem(SCORES, 3, 0.5)
    run, kept = fit(shapes, tmp_path / "whole", rules(), batch_size=2, saver=Kept)  # 4 micro-batches a step
    assert (run.global_step, kept.reason()) == (3, "max_time")
    assert facts(tmp_path / "whole" / LAST) == {"step": 3, "epoch": 1, "step_in_epoch": 1, "validated": True}
    assert (tmp_path / "whole" / "best-step=3.ckpt").is_file()
    file = next(f for f in sorted((tmp_path / "whole").glob("*.killed")) if facts(f)["step"] == 1)
    now[0] = 1000.0
    run, kept = fit(shapes, tmp_path / "again", rules(), batch_size=2, resume=file)
    assert run.global_step == 3
    equal(tmp_path / "whole" / LAST, tmp_path / "again" / LAST)
    run, _ = fit(shapes, tmp_path / "over", rules(), batch_size=2, resume=tmp_path / "again" / LAST)
    assert run.global_step == 3
    longer = StopRules(Stopping(), datetime.timedelta(seconds=13))
    run, _ = fit(shapes, tmp_path / "more", longer, batch_size=2, resume=tmp_path / "again" / LAST)
    assert run.global_step == 4


@pytest.mark.parametrize(("begin", "ends_at"), [(2, 6), (5, 4)])
def test_the_first_stage_is_not_ended_by_patience_unless_no_second_will_come(
    shapes, tmp_path, begin, ends_at
):
    """2 steps an epoch, 5 epochs; the best is epoch 0, so a patience of 1 is over after epoch 1."""

    def ended(folder, **options):
        rules, saver = StopRules(Stopping(patience=1)), Kept(monitor="val/mine", every_n_train_steps=1)
        module = module_of(restart_epoch=begin)
        options = {"max_epochs": 5, "batch_size": 4, "saver": saver, "module": module} | options
        fit_in_stages(shapes, folder, rules, **options)
        assert rules.reason() == "patience"
        return facts(folder / LAST)["step"]

    assert ended(tmp_path / "whole") == ends_at
    file = next(f for f in sorted((tmp_path / "whole").glob("*.killed")) if facts(f)["step"] == 3)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")  # the best is gone back to
    assert ended(tmp_path / "again", resume=file) == ends_at
    equal(tmp_path / "whole" / LAST, tmp_path / "again" / LAST)


def test_the_words_of_a_stop_name_what_set_it_and_a_line_that_goes_on(tmp_path):
    rules = StopRules(Stopping(patience=1), datetime.timedelta(minutes=90))
    run = moment(0.5)
    (tmp_path / LAST).write_bytes(b"")
    run.checkpoint_callback.folder = tmp_path
    for _ in range(2):
        rules.count(run)
    assert rules.told(run, True) == (
        f"by --patience 1: in 1 validation no val/mine was better than 0.5000 by more than 0.001; for more: "
        f"zoo fit --ckpt-path {tmp_path / LAST} --stopping.patience 2"
    )
    assert rules.told(run, False).startswith("by stopping.patience 1: ")
    rules.waited, rules._seconds = 0, 5400.0
    assert rules.told(run, True).startswith("by --max-time 1h30m: it is over; for more: zoo fit --ckpt-path ")
    assert rules.told(run, False).startswith("by trainer.max_time 00:01:30:00: ")
    assert rules.told(run, False).endswith("last.ckpt --trainer.max_time 00:03:00:00")


@pytest.mark.parametrize(("seconds", "words"), [(45, "45s"), (5400, "1h30m"), (129600, "1d12h"), (0.2, "0s")])
def test_times_as_the_option_takes_them(seconds, words):
    assert spoken(datetime.timedelta(seconds=seconds)) == words


def test_patience_without_a_score_is_refused(shapes, tmp_path):
    saver = CheckpointSaver()
    saver.folder = tmp_path
    run = trainer(
        tmp_path, enable_checkpointing=True, callbacks=[StopRules(Stopping(patience=1)), saver], max_epochs=1
    )
    with pytest.raises(ValueError, match=r"stopping.patience 1 waits.*--checkpoint.monitor val/AP"):
        run.fit(build(), make_data(shapes, 8))


@pytest.mark.parametrize(
    "values", [{"patience": 0}, {"patience": -1}, {"min_delta": -0.1}, {"min_delta": float("nan")}]
)
def test_refused(values):
    with pytest.raises(ValueError, match=f"stopping.{next(iter(values))} is"):
        Stopping(**values)


@pytest.mark.parametrize("value", ["01:02:03:04", {"days": 1, "hours": 2, "minutes": 3, "seconds": 4}])
def test_times_of_a_recipe(value):
    assert clock(timedelta(value)) == "01:02:03:04"
