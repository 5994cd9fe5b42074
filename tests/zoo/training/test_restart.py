"""The second stage starts from the first one's best checkpoint, and wherever a run is cut it does the same."""

import errno
import math
import os
import signal
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
from test_module import build, make_data, tiny_block, trainer
from test_saving import LAST, Journal, equal

from datamodules.shapes import generate_shapes
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.training.restart import FIRST_STAGE
from zoo.training.saving import CheckpointSaver
from zoo.training.stopping import StopRequest

EPOCH = 2  # of the restart
# by epoch: the first stage's best is epoch 0; epoch 2 does not beat it, 3 opens a streak, 4 does not go on
SCORES = (0.5, 0.4, 0.3, 0.1, 0.05, 0.2)
STEPS = 4  # of an epoch


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 32, 4, seed=0, size=64)


class ByEpoch(L.Callback):
    """The same score for an epoch, however often it is validated."""

    def __init__(self, scores):
        self.scores = scores

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/mine", self.scores[trainer.current_epoch])


class Weights(L.Callback):
    """A weight, a moment and the average's count as each step begins and ends."""

    def __init__(self):
        self.before, self.after, self.rates = {}, {}, {}

    def _now(self, trainer, module):
        state = next(iter(trainer.optimizers[0].state.values()), None)
        moment = 0.0 if state is None else float(state["exp_avg"].double().sum())
        tensors = module.network.state_dict().values()
        return (sum(float(t.double().sum()) for t in tensors), moment, module.ema.count)

    def on_train_batch_start(self, trainer, module, batch, index):
        self.before[trainer.global_step] = self._now(trainer, module)
        self.rates[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.after[trainer.global_step] = self._now(trainer, module)


def module_of(**schedule):
    arguments = tiny_block()["init_args"]["schedule"] | {"restart_epoch": EPOCH} | schedule
    return build(schedule=arguments, ema={"decay": 0.9, "warmup_steps": 10})


def fit(
    shapes, folder, *callbacks, resume=None, scores=SCORES, saver=None, module=None, batch_size=8, **options
):
    folder.mkdir(exist_ok=True)
    saver = saver or CheckpointSaver(monitor="val/mine")
    saver.folder = folder
    run = trainer(
        folder, enable_checkpointing=True, callbacks=[ByEpoch(scores), *callbacks, saver],
        plugins=[AtomicCheckpointIO()], **({"max_epochs": 6, "limit_val_batches": 1} | options),
    )  # fmt: skip
    module = module or module_of()
    with StopRequest() as saver.stop:
        run.fit(module, make_data(shapes, batch_size), ckpt_path=None if resume is None else str(resume))
    return module, saver


def test_weights_average_and_optimizer_go_back_and_the_rest_goes_on(shapes, tmp_path):
    seen, said = Weights(), []
    module = module_of(decay="cosine", final_factor=0.0)
    module.second_stage.say = said.append
    fit(shapes, tmp_path, seen, module=module)
    best = seen.after[STEPS]  # the end of epoch 0
    assert best[2] == STEPS
    starts = [step for step in range(STEPS, 6 * STEPS, STEPS) if seen.before[step] == best]
    # epoch 1 begins where epoch 0 ended; 2 is the restart; 2 was no gain; 3 opened a streak that 4 did not go on with
    assert [step // STEPS for step in starts] == [1, 2, 3, 5]
    assert seen.before[4 * STEPS] == seen.after[4 * STEPS]
    assert module.ema.config.decay == 0.9
    assert module.ema.count == 2 * STEPS  # of the last restart and one epoch
    assert [line.split()[1] for line in said] == ["3", "4", "6"]
    assert said[0] == "epoch   3  starts from step 4, the first stage's best"
    total = 6 * STEPS
    rates = {step: module.schedule.lr * module.schedule.factor(step, STEPS, total) for step in range(total)}
    assert seen.rates == pytest.approx(rates, rel=1e-12)  # the schedule's, also after a restart


def test_the_first_stages_best_outlives_a_better_one(shapes, tmp_path):
    _, saver = fit(shapes, tmp_path, scores=(0.1, 0.2, 0.3, 0.25, 0.1, 0.1))
    assert saver.best_score == pytest.approx(0.3)
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["best-step=12.ckpt", FIRST_STAGE, LAST]
    assert read_checkpoint(tmp_path / FIRST_STAGE)["zoo"]["step"] == 2 * STEPS


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fit(shapes, folder)
    return folder


PLACES = [
    ("train", 1, 7, 2),  # the step before the first stage ends
    ("train", 1, 8, 3),  # its end, before the validation
    ("val begins", 1, 8),
    ("val", 1, 8),
    ("train", 2, 9, 0),  # the first step after the restart
    ("train", 2, 12, 3),  # before the validation that decides on the next restart
    ("val", 2, 12),
    ("train", 3, 14, 1),
    ("val", 3, 16),  # of a streak that goes on
    ("train", 4, 18, 1),
    ("val begins", 4, 20),
]


@pytest.mark.parametrize(
    "at",
    [pytest.param(at, marks=[] if n in (3, 5) else pytest.mark.slow) for n, at in enumerate(PLACES)],
)
def test_a_run_that_is_cut_anywhere_ends_the_same(shapes, tmp_path, whole, at):
    journal = Journal(at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(BaseException) as left:
        fit(shapes, tmp_path, journal)
    assert left.type.__name__ == "SIGTERMException"
    fit(shapes, tmp_path, resume=tmp_path / LAST)
    equal(tmp_path / LAST, whole / LAST)
    mine, theirs = (read_checkpoint(folder / LAST)["callbacks"] for folder in (tmp_path, whole))
    assert (mine["SecondStage"], mine["CheckpointSaver"]) == (
        theirs["SecondStage"],
        theirs["CheckpointSaver"],
    )


def test_a_kill_after_the_restart_and_before_its_first_step(shapes, tmp_path, whole):
    class Killed(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.global_step == EPOCH * STEPS:
                raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="gone"):
        fit(shapes, tmp_path, Killed())
    fit(shapes, tmp_path, resume=tmp_path / LAST)
    equal(tmp_path / LAST, whole / LAST)


def test_an_older_checkpoint_whose_best_was_overtaken_goes_back_to_the_same(shapes, tmp_path):
    scores = (0.1, 0.2, 0.3, 0.25, 0.1, 0.1)
    saver = CheckpointSaver(monitor="val/mine", every_n_train_steps=7)

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_step == 9:
                (tmp_path / "kept.ckpt").write_bytes((tmp_path / LAST).read_bytes())

    fit(shapes, tmp_path, Keep(), saver=saver, scores=scores)
    first, last = read_checkpoint(tmp_path / LAST), (tmp_path / LAST).read_bytes()
    assert read_checkpoint(tmp_path / "kept.ckpt")["zoo"]["step"] == EPOCH * STEPS
    fit(shapes, tmp_path, resume=tmp_path / "kept.ckpt", scores=scores)
    (tmp_path / "first.ckpt").write_bytes(last)
    equal(tmp_path / LAST, tmp_path / "first.ckpt")
    assert read_checkpoint(tmp_path / LAST)["callbacks"]["SecondStage"] == first["callbacks"]["SecondStage"]


@pytest.mark.parametrize(
    ("saver", "options", "message"),
    [
        (
            {"monitor": None},
            {},
            "no best is kept: set checkpoint.monitor and checkpoint.save_top_k, or go on",
        ),
        ({"save_top_k": 0}, {}, "no best is kept"),
        ({}, {"limit_val_batches": 0}, "no epoch before it is validated: validate more often, or go on"),
        ({}, {"check_val_every_n_epoch": 3}, "no epoch before it is validated"),
    ],
)
def test_what_will_have_no_best_is_refused_before_it_trains(shapes, tmp_path, saver, options, message):
    with pytest.raises(ValueError, match=message):
        fit(shapes, tmp_path, saver=CheckpointSaver(**({"monitor": "val/mine"} | saver)), **options)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_training_that_ends_before_it_needs_no_best(shapes, tmp_path):
    fit(shapes, tmp_path, saver=CheckpointSaver(save_top_k=0), max_epochs=1)


def test_no_score_and_a_lost_file_are_told_and_the_run_can_go_on_without(shapes, tmp_path):
    way_out = "go on without it, with --model.schedule.restart_epoch null"
    with pytest.raises(FileNotFoundError, match=f"nothing was scored by val/mine: {way_out}"):
        fit(shapes, tmp_path / "a", scores=(math.nan,) * 6)
    lost = tmp_path / "b" / FIRST_STAGE
    fit(shapes, tmp_path / "b", max_epochs=3)
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{lost} is gone: {way_out}"):
        fit(shapes, tmp_path / "b", resume=tmp_path / "b" / LAST)
    fit(
        shapes,
        tmp_path / "b",
        resume=tmp_path / "b" / LAST,
        module=module_of(restart_epoch=None),
        max_epochs=4,
    )


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr("zoo.training.saving.os.link", none)
    saver = CheckpointSaver(monitor="val/mine")
    saver.folder, saver.best = tmp_path, {"best-step=4.ckpt": 0.5}
    (tmp_path / "best-step=4.ckpt").write_text("weights")
    alone = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda value: value))
    saver.keep_best_as(alone, FIRST_STAGE)
    assert (tmp_path / FIRST_STAGE).read_text() == "weights"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_criterion_sees_the_epoch_of_every_step_also_after_a_resume(shapes, tmp_path):
    def noted(module):
        seen, criterion = [], module.criterion

        def forward(sets, targets, step):
            seen.append((step.epoch, step.index))
            return criterion(sets, targets, step)

        module.criterion = forward
        return seen

    module = module_of(restart_epoch=None)
    before = noted(module)
    fit(shapes, tmp_path, module=module, max_epochs=-1, max_steps=6)
    assert before == [(step // STEPS, step) for step in range(6)]
    module = module_of(restart_epoch=None)
    after = noted(module)
    fit(shapes, tmp_path, module=module, resume=tmp_path / LAST, batch_size=4, max_epochs=3)
    assert after == [(step // STEPS, step) for step in range(6, 3 * STEPS) for _ in range(2)]
