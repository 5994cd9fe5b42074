"""Which checkpoints a run keeps, what they hold, and that a resume neither repeats nor skips anything."""

import errno
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from test_module import build, make_data, trainer

from datamodules.shapes import generate_shapes
from zoo.runs.train import score_last_steps
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.training.callbacks import History, Progress
from zoo.training.position import Position
from zoo.training.restart import SecondStage
from zoo.training.saving import BEFORE, LAST, CheckpointSaver
from zoo.training.stop_rules import Stopping, StopRules
from zoo.training.stopping import StopRequest


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 32, 4, seed=0, size=64)


class Journal(L.Callback):
    """What happened: `(step, row of each image)` of a training micro-batch, or `(val, epoch, step)`."""

    def __init__(self, at=None, do=None):
        self.lines, self.at, self.do = [], at, do

    def _note(self, *line):
        self.lines.append(line)
        if line == self.at:
            self.do()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self._note("train", trainer.current_epoch, trainer.global_step, index)

    def on_validation_start(self, trainer, module):
        self._note("val begins", trainer.current_epoch, trainer.global_step)

    def on_validation_end(self, trainer, module):
        self._note("val", trainer.current_epoch, trainer.global_step)


class Scores(L.Callback):
    """Gives validations the scores of a list."""

    def __init__(self, scores):
        self.scores = list(scores)

    def on_validation_epoch_end(self, trainer, module):
        module.log("val/mine", self.scores.pop(0) if self.scores else 0.0)


def fit(
    shapes,
    folder,
    *,
    batch_size=8,
    resume=None,
    journal=None,
    scores=None,
    saver=None,
    said=None,
    more=(),
    **options,
):
    """A tiny training into `folder`: 4 steps an epoch, of 8 images; (module, trainer, saver, journal)."""
    folder.mkdir(exist_ok=True)
    saver = saver or CheckpointSaver(monitor="val/mine")
    saver.folder = folder
    journal = journal or Journal()
    callbacks = [Scores(scores or [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), journal, *more]
    if said is not None:
        callbacks.append(Progress(said.append, bar=False))
    run = trainer(
        folder, enable_checkpointing=True, callbacks=[*callbacks, saver], plugins=[AtomicCheckpointIO()],
        **({"max_epochs": 2, "limit_val_batches": 1} | options),
    )  # fmt: skip
    module = build()
    with StopRequest() as saver.stop:
        run.fit(module, make_data(shapes, batch_size), ckpt_path=None if resume is None else str(resume))
    return module, run, saver, journal


def facts(path: Path) -> dict:
    return {
        k: v
        for k, v in read_checkpoint(path)["zoo"].items()
        if k in ("step", "epoch", "step_in_epoch", "validated")
    }


def equal(a: Path, b: Path) -> None:
    one, two = read_checkpoint(a), read_checkpoint(b)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        mine, theirs = list(_leaves(one[part])), list(_leaves(two[part]))
        assert len(mine) == len(theirs)
        for x, y in zip(mine, theirs, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, part


def _leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def test_the_last_is_of_the_last_epoch_whatever_its_score(shapes, tmp_path):
    _, _, saver, _ = fit(shapes, tmp_path, scores=[0.9, 0.1])
    assert facts(tmp_path / LAST) == {"step": 8, "epoch": 2, "step_in_epoch": 0, "validated": True}
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["best-step=4.ckpt", LAST]
    assert (saver.best_model_path, saver.best_score) == (
        str(tmp_path / "best-step=4.ckpt"),
        pytest.approx(0.9),
    )


def test_an_epoch_without_validation_and_an_end_inside_an_epoch_are_saved_too(shapes, tmp_path):
    steps = []

    class Saved(CheckpointSaver):
        def _save(self, trainer, name):
            super()._save(trainer, name)
            steps.append((trainer.global_step, name))

    fit(shapes, tmp_path, saver=Saved(), max_epochs=-1, max_steps=6, limit_val_batches=0)
    assert steps == [(4, LAST), (6, LAST)]
    assert facts(tmp_path / LAST) == {"step": 6, "epoch": 1, "step_in_epoch": 2, "validated": True}


class Lines(Logger):
    """Steps of the training loss that a logger was given."""

    name, version = "lines", "0"

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        self.steps += [step] if "train/loss" in metrics else []

    def log_hyperparams(self, params):
        pass

    def after_save_checkpoint(self, saver):
        pass


@pytest.mark.parametrize("cut", [8, 2])
def test_a_step_is_logged_before_it_is_saved(shapes, tmp_path, cut):
    """Else a kill between the two loses the records of the step, as a resume begins after it."""
    logger, seen = Lines(), []

    class Saved(CheckpointSaver):
        def _save(self, trainer, name):
            seen.append((trainer.global_step, len(logger.steps)))
            super()._save(trainer, name)

    saver = Saved(every_n_train_steps=1)
    options = {"logger": logger, "log_every_n_steps": 1, "val_check_interval": 2}
    fit(shapes, tmp_path, batch_size=cut, saver=saver, **options)
    assert sorted(set(seen)) == [(step, step) for step in range(1, 9)]
    last, before = facts(tmp_path / LAST), facts(tmp_path / BEFORE)
    assert last == {"step": 8, "epoch": 2, "step_in_epoch": 0, "validated": True}
    assert before == last | {"validated": False}


def test_the_one_before_is_never_the_last_itself(tmp_path, monkeypatch):
    """A save that fails leaves the last and the one before it as two names of one file; the next keeps both."""
    saver = CheckpointSaver()
    saver.folder = tmp_path
    saver._save(Moment(1, 0.0), LAST)
    saver._save(Moment(2, 0.0), LAST)

    class Full(Moment):
        def save_checkpoint(self, path):
            raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            saver._save(Full(3, 0.0), LAST)
    saver._save(Moment(4, 0.0), LAST)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {LAST: "4", BEFORE: "2"}


def test_the_one_before_where_a_file_has_one_name(tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("zoo.training.saving.os.link", refuse)
    saver = CheckpointSaver("val/mine")
    saver.folder = tmp_path
    saver.on_validation_end(Moment(1, 0.5), None)
    saver.on_validation_end(Moment(2, 0.1), None)
    saver.on_validation_end(Moment(3, 0.9), None)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        LAST: "3", BEFORE: "2", "best-step=3.ckpt": "3"
    }  # fmt: skip


def test_time_and_steps_save_only_at_the_end_of_a_step(shapes, tmp_path):
    saved = []

    class Saved(CheckpointSaver):
        def _save(self, trainer, name):
            saved.append(
                (trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.processed % 4)
            )
            super()._save(trainer, name)

    every_moment = Saved(every_n_minutes=1e-9)
    fit(shapes, tmp_path, batch_size=2, saver=every_moment, max_epochs=1, limit_val_batches=0)
    assert saved == [(1, 0), (2, 0), (3, 0), (4, 0)]
    saved.clear()
    fit(shapes, tmp_path, batch_size=2, saver=Saved(every_n_train_steps=3), max_epochs=1, limit_val_batches=0)
    assert saved == [(3, 0), (4, 0)]


class Moment:
    """As much of a trainer as the saver asks when a validation has ended."""

    world_size, is_global_zero, sanity_checking, loggers = 1, True, False, ()

    def __init__(self, step, score):
        self.global_step = step
        self.callback_metrics = {"val/mine": torch.tensor(score)}
        self.state = SimpleNamespace(fn="fit")
        self.lightning_module = SimpleNamespace(position=lambda: Position(step=step))
        self.strategy = SimpleNamespace(broadcast=lambda value: value)

    def save_checkpoint(self, path):
        path.unlink(missing_ok=True)  # a new file, as the real one
        path.write_text(str(self.global_step))


@pytest.mark.parametrize(("mode", "k", "scores", "kept", "best"), [
    ("max", 1, [math.nan, math.nan, math.nan], [], [0, 0, 0]),
    ("max", 1, [0.1, math.nan, 0.05], [1], [1, 0, 0]),
    ("max", 1, [math.nan, 0.0, 0.5], [3], [0, 1, 1]),
    ("max", 1, [0.0, 0.0, 0.0], [1], [1, 0, 0]),
    ("min", 1, [0.3, 0.1, math.nan], [2], [1, 1, 0]),
    ("max", 2, [0.3, 0.1, 0.2], [1, 3], [1, 0, 0]),
    ("max", -1, [0.3, 0.1, 0.2], [1, 2, 3], [1, 0, 0]),
    ("max", 0, [0.3, 0.1, 0.2], [], [1, 1, 1]),
])  # fmt: skip
def test_the_best_are_kept_and_a_score_that_is_none_chooses_nothing(tmp_path, mode, k, scores, kept, best):
    saver = CheckpointSaver("val/mine", mode, k)
    saver.folder = tmp_path
    said = []
    for step, score in enumerate(scores, 1):
        said.append(int(saver.is_best(saver.score(Moment(step, score)))))
        saver.on_validation_end(Moment(step, score), None)
        assert (tmp_path / LAST).read_text() == str(step)
    assert said == best
    best_ones = {f"best-step={step}.ckpt" for step in kept}
    assert {p.name for p in tmp_path.iterdir()} == {LAST, BEFORE, *best_ones}
    assert (tmp_path / BEFORE).read_text() == str(len(scores) - 1)
    again = CheckpointSaver("val/mine", mode, k)
    again.folder = tmp_path
    again.load_state_dict(saver.state_dict())
    assert again.best == saver.best


def test_a_validation_without_objects_is_never_the_best_so_far(shapes, tmp_path):
    said = []
    fit(shapes, tmp_path, scores=[math.nan, math.nan], said=said)
    assert [line for line in said if "best" in line] == []
    assert [p.name for p in tmp_path.glob("*.ckpt")] == [LAST]


def test_a_moved_folder_keeps_its_best_and_the_old_place_stays_empty(shapes, tmp_path):
    fit(shapes, tmp_path / "old", scores=[0.9], max_epochs=1)
    (tmp_path / "old").rename(tmp_path / "new")
    said = []
    _, _, saver, _ = fit(shapes, tmp_path / "new", resume=tmp_path / "new" / LAST, scores=[0.2], said=said)
    assert Path(saver.best_model_path) == tmp_path / "new" / "best-step=4.ckpt"
    assert not (tmp_path / "old").exists()
    assert [line.endswith("best so far") for line in said] == [False]


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_resume_inside_an_epoch_goes_on_at_the_step_however_it_is_cut(shapes, tmp_path, cut):
    """Images of a step are the same, so the position is; the weights are to rounding."""
    saver = CheckpointSaver("val/mine", "max", -1)
    fit(shapes, tmp_path, saver=saver, val_check_interval=0.5)
    half = tmp_path / "best-step=2.ckpt"
    assert facts(half) == {"step": 2, "epoch": 0, "step_in_epoch": 2, "validated": True}
    *_, journal = fit(shapes, tmp_path / "again", batch_size=cut, resume=half, val_check_interval=0.5)
    assert [line for line in journal.lines if line[0] == "val"] == [
        ("val", 0, 4),
        ("val", 1, 6),
        ("val", 1, 8),
    ]
    trained = [line[1:3] for line in journal.lines if line[0] == "train" and (line[3] + 1) % (8 // cut) == 0]
    assert trained == [(0, 3), (0, 4), (1, 5), (1, 6), (1, 7), (1, 8)]
    assert facts(tmp_path / "again" / LAST)["step"] == 8


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    """(folder, journal) of two epochs in micro-batches of 2."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    return folder, fit(shapes, folder, batch_size=2)[-1]


PLACES = [
    ("train", 0, 0, 1),  # inside the window of the first step
    ("train", 0, 1, 5),  # inside that of the second
    ("train", 0, 4, 15),  # the last of an epoch, before its validation
    ("val begins", 0, 4),
    ("val", 0, 4),
    ("train", 1, 6, 7),  # the end of a step
]


@pytest.mark.parametrize(("number", "at"), [
    *((signal.SIGTERM, at) for at in PLACES),
    (signal.SIGUSR1, PLACES[1]),  # of SLURM
    # Ctrl+C differs in how it ends alone: in the fast suite once in training and once in validation
    *(pytest.param(signal.SIGINT, at, marks=[] if n in (1, 3) else pytest.mark.slow) for n, at in enumerate(PLACES)),
])  # fmt: skip
def test_a_signal_is_obeyed_at_the_end_of_a_step_and_nothing_is_repeated_or_skipped(
    shapes, uninterrupted, tmp_path, number, at
):
    uncut, whole = uninterrupted
    journal = Journal(at, lambda: os.kill(os.getpid(), number))
    with pytest.raises(BaseException) as left:
        fit(shapes, tmp_path / "cut", batch_size=2, journal=journal)
    assert left.type.__name__ == ("SystemExit" if number == signal.SIGINT else "SIGTERMException")
    assert at in journal.lines
    *_, rest = fit(shapes, tmp_path / "cut", batch_size=2, resume=tmp_path / "cut" / LAST)
    happened = [line for line in journal.lines + rest.lines if line[0] != "val begins"]
    assert happened == [line for line in whole.lines if line[0] != "val begins"]
    equal(uncut / LAST, tmp_path / "cut" / LAST)


class Scored(Lines):
    """(step, epoch) of each validation."""

    def log_metrics(self, metrics, step=None):
        self.steps += [(step, metrics["epoch"])] if "val/mine" in metrics else []


def test_the_last_validation_that_is_made_up_for_is_recorded_in_its_epoch(shapes, tmp_path):
    """Nothing is left to train, so it is done after the fit, when Lightning has counted on."""
    logged = {}
    for name in ("whole", "cut"):
        logger = Scored()
        journal = Journal(("val begins", 1, 8), lambda: os.kill(os.getpid(), signal.SIGTERM))
        if name == "cut":
            with pytest.raises(SIGTERMException):
                fit(shapes, tmp_path / name, journal=journal, logger=logger)
        resume = tmp_path / name / LAST if name == "cut" else None
        scores = [0.2] if name == "cut" else [0.1, 0.2]
        module, run, _, _ = fit(shapes, tmp_path / name, resume=resume, scores=scores, logger=logger)
        history = History()
        if name == "whole":  # its callback has seen the last validation
            history.series["val/AP"] = [(run.global_step, 0.2)]
        score_last_steps(run, module, run.datamodule, history)
        logged[name] = logger.steps
    assert logged["cut"] == logged["whole"] == [(3, 0), (7, 1)]


@pytest.mark.parametrize(("steps", "epoch"), [(3, 1), (4, 1)])
def test_a_validation_beyond_the_recipes_is_recorded_the_same_when_a_resume_does_it(
    shapes, tmp_path, steps, epoch
):
    options = {"max_epochs": -1, "max_steps": steps, "check_val_every_n_epoch": 2}
    logger = Scored()
    module, run, *_ = fit(shapes, tmp_path / "run", logger=logger, **options)
    score_last_steps(run, module, run.datamodule, History())
    fit(shapes, tmp_path / "cut", **options)  # it is killed before that validation
    module, run, *_ = fit(shapes, tmp_path / "cut", resume=tmp_path / "cut" / LAST, logger=logger, **options)
    score_last_steps(run, module, run.datamodule, History())
    assert logger.steps == [(steps, epoch)] * 2


def test_a_validation_that_is_made_up_for_counts_for_the_rules_that_end_a_training(shapes, tmp_path):
    """Else a run that is given more epochs would wait for one more."""
    counted = []
    for resume in (None, tmp_path / LAST):
        rules, stage = StopRules(Stopping()), SecondStage(0)
        journal = Journal(("val begins", 0, 4), lambda: os.kill(os.getpid(), signal.SIGTERM))
        if resume is None:
            with pytest.raises(SIGTERMException):
                fit(shapes, tmp_path, journal=journal, more=[rules], max_epochs=1)
        else:
            module, run, *_ = fit(shapes, tmp_path, resume=resume, scores=[0.25], more=[rules], max_epochs=1)
            run.callbacks.append(stage)
            score_last_steps(run, module, run.datamodule, History())
        counted.append((rules.waited, rules.better))
    assert counted == [(0, None), (0, 0.25)]
    assert stage.streak == 0.25


def test_two_resumes_in_a_row_from_the_end_of_an_epoch_change_nothing(shapes, tmp_path):
    *_, whole = fit(shapes, tmp_path / "whole", max_epochs=3)
    lines = []
    for epochs in (1, 2, 3):
        resume = tmp_path / "parts" / LAST if epochs > 1 else None
        *_, journal = fit(shapes, tmp_path / "parts", resume=resume, max_epochs=epochs)
        lines += journal.lines
    assert lines == whole.lines


def rates(path: Path) -> list[float]:
    return [group["lr"] for group in read_checkpoint(path)["optimizer_states"][0]["param_groups"]]


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_more_epochs_follow_the_schedule_of_all_of_them_and_say_so(
    shapes, tmp_path, monkeypatch, caplog, decay
):
    """A cosine over 4 steps has fallen to its end; over 8 it stands in the middle. A constant rate stays."""
    small = build

    def with_decay():
        module = small()
        module.schedule = replace(module.schedule, decay=decay, final_factor=0.1, drop_epochs=[])
        return module

    monkeypatch.setattr("test_saving.build", with_decay)
    fit(shapes, tmp_path / "run", max_epochs=1)
    short = rates(tmp_path / "run" / LAST)
    fit(shapes, tmp_path / "run", resume=tmp_path / "run" / LAST)
    fit(shapes, tmp_path / "long")
    assert rates(tmp_path / "run" / LAST) == rates(tmp_path / "long" / LAST)
    said = [r.getMessage() for r in caplog.records if "another one than the checkpoint's" in r.getMessage()]
    assert len(said) == (decay == "cosine")
    if said:
        assert "(now 8 steps): from step 4 on lr" in said[0]
        assert f"lr {short[0]:.3g} -> " in said[0]


def test_a_resume_takes_the_learning_rate_of_its_recipe(shapes, tmp_path, monkeypatch, caplog):
    fit(shapes, tmp_path / "run", max_epochs=1)
    small = build

    def slower():
        module = small()
        module.schedule = replace(module.schedule, lr=module.schedule.lr / 2)
        return module

    monkeypatch.setattr("test_saving.build", slower)
    fit(shapes, tmp_path / "run", resume=tmp_path / "run" / LAST, scores=[0.0])
    fit(shapes, tmp_path / "slow")
    assert rates(tmp_path / "run" / LAST) == rates(tmp_path / "slow" / LAST)
    assert "another one than the checkpoint's" in caplog.text


def test_a_finished_training_is_not_trained_again(shapes, tmp_path):
    fit(shapes, tmp_path)
    before = (tmp_path / LAST).read_bytes()
    module, run, _, journal = fit(shapes, tmp_path, resume=tmp_path / LAST)
    assert (journal.lines, run.global_step) == ([], 8)
    assert module.position() == module.begun
    assert (tmp_path / LAST).read_bytes() == before


def test_fewer_epochs_than_the_checkpoint_has_are_refused(shapes, tmp_path):
    fit(shapes, tmp_path)
    with pytest.raises(
        ValueError, match=r"has trained 2 epochs and trainer.max_epochs is 1: nothing is left"
    ):
        fit(shapes, tmp_path, resume=tmp_path / LAST, max_epochs=1)


def test_a_checkpoint_of_format_1_goes_on_and_one_of_the_future_is_refused(shapes, tmp_path):
    """Format 1 knew the optimizer step, whose place in the epoch follows."""
    *_, whole = fit(
        shapes, tmp_path / "whole", val_check_interval=0.5, saver=CheckpointSaver("val/mine", "max", -1)
    )
    old = read_checkpoint(tmp_path / "whole" / "best-step=6.ckpt")
    for name in ("step_in_epoch", "step_size", "validated"):
        del old["zoo"][name]
    old["zoo"] |= {"format": 1, "consumed_batches": 2}
    old["callbacks"] = {"ModelCheckpoint{'monitor': 'val/AP'}": {"best_model_path": "/gone"}}
    (tmp_path / "old").mkdir()
    torch.save(old, tmp_path / "old" / LAST)
    *_, rest = fit(shapes, tmp_path / "old", resume=tmp_path / "old" / LAST, val_check_interval=0.5)
    after = whole.lines.index(("val", 1, 6)) + 1
    assert rest.lines == whole.lines[after:]
    equal(tmp_path / "whole" / LAST, tmp_path / "old" / LAST)
    old["zoo"]["format"] = 3
    torch.save(old, tmp_path / "old" / LAST)
    with pytest.raises(
        ValueError, match=r"has format 3 and this version reads up to 2; go on with the version"
    ):
        fit(shapes, tmp_path / "old", resume=tmp_path / "old" / LAST)


def test_a_full_disk_names_the_file_and_the_last_good_one(shapes, tmp_path, monkeypatch):
    fit(shapes, tmp_path, max_epochs=1)
    before = (tmp_path / LAST).read_bytes()

    def full(checkpoint, file):
        file.write(b"0" * 10)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zoo.storage.checkpoint_io.torch.save", full)
    with pytest.raises(
        OSError, match=r"No space left on device; last.ckpt before it is whole.*zoo fit --ckpt-path"
    ) as told:
        fit(shapes, tmp_path, resume=tmp_path / LAST)
    assert Path(told.value.filename).parent == tmp_path
    assert (tmp_path / LAST).read_bytes() == before
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(("score", "best"), [(0.9, 6), (0.1, 6), (0.05, 4), (math.nan, 4)])
def test_weights_that_are_scored_after_the_fit_are_taken_as_any_others(shapes, tmp_path, score, best):
    """A training may end inside an epoch; a tie goes to the later weights."""
    _, run, saver, _ = fit(shapes, tmp_path, scores=[0.1], max_epochs=-1, max_steps=6)
    saver.best = {name: round(value, 6) for name, value in saver.best.items()}
    saver.adopt_last(run, score)
    assert saver.best_model_path == str(tmp_path / f"best-step={best}.ckpt")
    assert [p.name for p in tmp_path.glob("best*")] == [f"best-step={best}.ckpt"]
    last = read_checkpoint(tmp_path / LAST)
    assert last["callbacks"][saver.state_key] == saver.state_dict()
    assert (last["zoo"]["step"], last["zoo"]["validated"]) == (6, True)
    if best == 6:
        equal(tmp_path / LAST, tmp_path / "best-step=6.ckpt")
    saver.best = {"best-step=4.ckpt": 0.1}
    (tmp_path / "best-step=4.ckpt").write_bytes(b"")
    saver.adopt_last(run, 0.1, wins_tie=False)  # of a validation that an interrupted fit owed
    assert saver.best_model_path == str(tmp_path / "best-step=4.ckpt")
    saver.best = {f"best-step={best}.ckpt": 0.5}
    run.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 2
    saver.adopt_last(run, 1.0)  # resumed at step 2, where nothing was left: last.ckpt is of step 6
    assert saver.best_model_path == str(tmp_path / f"best-step={best}.ckpt")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"save_last": False}, "save_last is false"),
    ({"save_top_k": -2}, "save_top_k is -2"),
    ({"every_n_minutes": 0}, "every_n_minutes is 0"),
    ({"every_n_train_steps": 0}, "every_n_train_steps is 0"),
])  # fmt: skip
def test_options_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointSaver(**arguments)


def test_a_signal_before_the_first_step_ends_all_ranks_together(monkeypatch):
    saver = CheckpointSaver()
    asked = []

    def agreed(trainer, stop, due):
        asked.append(stop)
        return True, False  # another rank has been sent one

    monkeypatch.setattr(saver, "_agreed", agreed)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with pytest.raises(SIGTERMException):
            saver.on_train_start(SimpleNamespace(world_size=2), None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked == [False]
