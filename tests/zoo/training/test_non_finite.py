"""A step that is not finite: what is said and saved, what a skip leaves, and that a replay finds where it begins."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from test_module import make_data, trainer
from test_saving import build, equal

from datamodules.shapes import generate_shapes
from zoo.layers.hybrid_encoder import HybridEncoder
from zoo.runs.console import Console
from zoo.runs.replay import replay
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.training.module import DetectionModule
from zoo.training.non_finite import NonFinite, StepGuard
from zoo.training.saving import LAST, CheckpointSaver

PLACE = "decoder"  # a module of the network


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 32, 4, seed=0, size=64)


class Poison(Callback):
    """Makes steps, counted from 0, not finite: `loss` in a loss term, `output` of a module, or `gradient` of it."""

    def __init__(self, steps, what="output", policy=None, micro_batch=None):
        self.steps, self.what, self.policy, self.micro_batch = steps, what, policy, micro_batch
        self.before = {}

    def on_fit_start(self, trainer, module):
        module.guard.policy = self.policy or NonFinite()
        module.guard.folder = trainer.checkpoint_callback.folder if trainer.checkpoint_callback else None
        module.guard.names = trainer.datamodule.image_names

    def on_train_batch_start(self, trainer, module, batch, index):
        self.hooks = []
        here = self.micro_batch is None or index % trainer.accumulate_grad_batches == self.micro_batch
        if batch.step.index not in self.steps or not here:
            return
        self.before[batch.step.index] = {k: v.clone() for k, v in module.state_dict().items()}
        if self.what == "loss":
            real = module.losses
            module.losses = lambda batch: {
                **real(batch),
                "mine/label": next(module.parameters()).sum()[None] * torch.nan,
            }
            self.hooks = [lambda: delattr(module, "losses")]
        else:
            part = getattr(module.network, PLACE)
            self.hooks = [part.register_forward_pre_hook(self.spoil).remove]

    def spoil(self, module, inputs):
        first = inputs[0]
        maps = list(first) if isinstance(first, (list, tuple)) else [first]
        if self.what == "output":
            maps[0] = maps[0] * torch.nan
        else:
            maps[0] = maps[0] * 1.0
            maps[0].register_hook(lambda gradient: gradient * torch.inf)
        return (type(first)(maps) if isinstance(first, (list, tuple)) else maps[0], *inputs[1:])

    def on_train_batch_end(self, *arguments):
        for hook in self.hooks:
            hook()


class Keep(Callback):
    """A checkpoint of each epoch."""

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(trainer.checkpoint_callback.folder / f"{trainer.global_step}.ckpt")


def run(shapes, folder, poison, resume=None, batch_size=8, module=None, **options):
    folder.mkdir(exist_ok=True)
    saver = CheckpointSaver(monitor=None)
    saver.folder = folder
    module = module or build()
    callbacks = [poison, saver, Keep()]
    loop = trainer(folder, enable_checkpointing=True, callbacks=callbacks, **({"max_epochs": 2} | options))
    loop.fit(module, make_data(shapes, batch_size), ckpt_path=None if resume is None else str(resume))
    return module, loop


@pytest.mark.parametrize(
    ("what", "said"),
    [("output", "matching cost"), ("loss", "the loss mine/label"), ("gradient", "the gradient of")],
)
def test_a_step_that_is_not_finite_ends_the_run_and_is_saved(shapes, tmp_path, what, said):
    poison = Poison([5], what)
    with pytest.raises(FloatingPointError) as error:
        run(shapes, tmp_path, poison)
    line = str(error.value)
    assert "\n" not in line
    for part in ("step 6 is not finite", said, ".png", "--replay", f"--ckpt-path {tmp_path / LAST}"):
        assert part in line
    saved = read_checkpoint(tmp_path / "non-finite-step=6.pt")
    (part,) = saved["non_finite"]["parts"]
    assert len(part["batch"]["image_ids"]) == 8
    weights = [n for n, _ in build().named_parameters()]
    for name in weights:
        assert torch.equal(saved["state_dict"][name], poison.before[5][name]), name


@pytest.mark.parametrize("what", ["output", "loss", "gradient"])
@pytest.mark.parametrize("batch_size", [8, 4])
def test_a_skipped_step_leaves_weights_average_optimizer_and_statistics(
    shapes, tmp_path, what, batch_size, caplog
):
    poison = Poison([2], what, NonFinite(action="skip"), micro_batch=0)
    seen = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if batch.step.index == 2:
                seen.update({k: v.clone() for k, v in module.state_dict().items()})
                seen["logged"] = trainer.callback_metrics.get("train/skipped_steps")

    folder = tmp_path / "run"
    folder.mkdir()
    saver = CheckpointSaver(monitor=None)
    saver.folder = folder
    module = build()
    loop = trainer(folder, enable_checkpointing=True, max_epochs=1, callbacks=[poison, Look(), saver])
    with caplog.at_level(logging.WARNING):
        loop.fit(module, make_data(shapes, batch_size))
    before = poison.before[2]
    assert float(seen.pop("logged")) == 1
    for name, value in before.items():
        assert torch.equal(value, seen[name]), name
    assert (loop.global_step, module.guard.skipped, module.guard.in_a_row) == (4, 1, 0)
    assert all(bool(v.isfinite().all()) for v in module.state_dict().values())
    assert "step 3 is not finite" in caplog.text
    assert "it is skipped" in caplog.text
    assert (folder / "non-finite-step=3.pt").is_file()


def test_more_than_the_limit_in_a_row_ends_the_run(shapes, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 6 .* after 2 that were skipped in a row"):
        run(shapes, tmp_path, Poison([1, 3, 4, 5], "loss", NonFinite(action="skip", limit=2)))


def test_skipped_steps_survive_a_resume_exactly(shapes, tmp_path):
    policy = NonFinite(action="skip", limit=3)
    steps = [2, 3, 4]
    whole, _ = run(shapes, tmp_path / "whole", Poison(steps, "loss", policy))
    folder = tmp_path / "cut"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "4.ckpt", folder / LAST)  # in the middle of those in a row
    kept = read_checkpoint(folder / LAST)["zoo"]
    assert (kept["skipped_steps"], kept["skipped_in_a_row"]) == (2, 2)
    resumed, _ = run(shapes, folder, Poison(steps, "loss", policy), resume=folder / LAST)
    assert (resumed.guard.skipped, resumed.guard.in_a_row) == (whole.guard.skipped, 0) == (3, 0)
    equal(tmp_path / "whole" / LAST, folder / LAST)
    limit = NonFinite(action="skip", limit=2)
    run(shapes, tmp_path / "limit", Poison([2, 3], "loss", limit), max_steps=4)
    with pytest.raises(FloatingPointError, match="after 2 that were skipped"):
        run(shapes, tmp_path / "limit", Poison([4], "loss", limit), resume=tmp_path / "limit" / LAST)


class Scaler:
    """What the guard needs of a gradient scaler."""

    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(("scale", "what", "ends"), [(1024.0, "gradient", False), (1.0, "gradient", True),
                                                     (1024.0, "loss", True)])  # fmt: skip
def test_a_gradient_that_a_scaler_made_infinite_is_left_to_it(shapes, tmp_path, scale, what, ends):
    class WithScaler(Poison):
        def on_train_start(self, trainer, module):
            trainer.precision_plugin.scaler = Scaler(scale)

    def go():
        run(shapes, tmp_path, WithScaler([1], what), max_steps=2)

    if ends:
        with pytest.raises(FloatingPointError, match="step 2"):
            go()
    else:
        go()


def test_what_is_kept_of_a_step_is_in_the_memory_of_the_host(shapes, tmp_path, monkeypatch):
    moved, kept = [], []

    def to_device(self, batch, device, dataloader_idx):
        moved.append(batch.to("cpu"))
        return moved[-1]

    class Look(Poison):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            kept.append([part.batch for part in module.guard._parts])

    monkeypatch.setattr(DetectionModule, "transfer_batch_to_device", to_device)
    run(shapes, tmp_path, Look([]), batch_size=4, max_steps=2)
    assert [len(parts) for parts in kept] == [1, 0, 1, 0]
    assert not any(part is one for parts in kept for part in parts for one in moved)
    assert kept[0][0].image_ids == moved[0].image_ids


@pytest.mark.parametrize(("value", "bad"), [(1e30, False), (3e38, False), (torch.inf, True), (-torch.inf, True),
                                            (torch.nan, True)])  # fmt: skip
def test_a_gradient_whose_square_overflows_is_finite(value, bad):
    network = torch.nn.Linear(3, 2)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    network.weight.grad[1, 1] = value
    assert StepGuard().is_bad(network, scaled_down=False) is bad


def _guarded(rank):
    network = torch.nn.Linear(1, 1)
    network(torch.ones(1, 1)).sum().backward()
    guard, bad = StepGuard(), []
    for loss in (1.0, torch.nan if rank else 1.0):
        guard.begin(network, first=True)
        guard.note(type("B", (), {"image_ids": (rank,)}), 0, {"a": torch.tensor([loss])})
        bad.append(guard.is_bad(network, scaled_down=False))
    return bad, guard.save(None, "x"), guard.shared(guard.describe(network), Path(str(rank)))


def test_all_ranks_agree_and_the_one_that_is_at_fault_names_it(answers_of_two_ranks):
    answers = answers_of_two_ranks(_guarded)
    assert [answers[rank][0] for rank in (0, 1)] == [[False, True]] * 2
    assert answers[0][1:] == (None, ("not finite: the loss a (images 1)", Path("1")))
    assert answers[1][2] == answers[0][2], "rank zero tells it"


@pytest.mark.parametrize(("action", "limit"), [("ignore", 1), ("skip", 0)])
def test_a_policy_that_means_nothing_is_refused(action, limit):
    with pytest.raises(ValueError, match="non_finite"):
        NonFinite(action=action, limit=limit)


class Said(Console):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_replay_names_the_first_module(shapes, tmp_path):
    module = build()
    name = next(n for n, m in module.network.encoder.named_modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        module.network.encoder.get_submodule(name).weight.fill_(3e38)
    with pytest.raises(FloatingPointError):
        run(shapes, tmp_path, Poison([], "loss"), module=module)
    said = Said()
    found = replay(tmp_path / "non-finite-step=1.pt", said)
    assert found["reproduced"]
    assert found["module"] == f"encoder.{name}"
    assert any(f"encoder.{name} is the first" in line for line in said.lines)
    assert len(found["images"]) == 8


def test_a_replay_names_the_first_gradient(shapes, tmp_path, monkeypatch):
    real = DetectionModule.losses

    def root_of_nothing(self, batch):  # finite, with an infinite slope
        losses = real(self, batch)
        zero = next(p for p in self.network.parameters() if p.requires_grad).sum() * 0.0
        return {**losses, "mine/label": zero.abs().sqrt()[None]}

    monkeypatch.setattr(DetectionModule, "losses", root_of_nothing)
    with pytest.raises(FloatingPointError, match="the gradient of"):
        run(shapes, tmp_path, Poison([], "loss"), batch_size=4)
    found = replay(tmp_path / "non-finite-step=1.pt", Said())
    assert found["reproduced"]
    assert "losses" not in found
    assert len(found["parameters"]) == 1


def test_a_replay_draws_what_the_run_drew(shapes, tmp_path, monkeypatch):
    real, drawn = DetectionModule.losses, []

    def drawing(self, batch):
        drawn.append(float(torch.rand(())))
        losses = real(self, batch)
        return {**losses, "mine/label": next(iter(losses.values())) * torch.nan}

    monkeypatch.setattr(DetectionModule, "losses", drawing)
    with pytest.raises(FloatingPointError):
        run(shapes, tmp_path, Poison([]), batch_size=4)
    replay(tmp_path / "non-finite-step=1.pt", Said())
    assert len(set(drawn)) == 2
    assert drawn[:2] == drawn[2:]


def test_a_replay_names_the_first_module_backwards(shapes, tmp_path, monkeypatch):
    real = HybridEncoder.forward

    def root_of_nothing(self, *inputs):  # adds nothing, with an infinite slope
        maps = list(real(self, *inputs))
        return [maps[0] + (maps[0] * 0.0).abs().sqrt(), *maps[1:]]

    monkeypatch.setattr(HybridEncoder, "forward", root_of_nothing)
    with pytest.raises(FloatingPointError, match="the gradient of"):
        run(shapes, tmp_path, Poison([], "loss"), batch_size=4)
    found = replay(tmp_path / "non-finite-step=1.pt", Said())
    assert found["module"] is None
    assert found["gradient_of"].startswith("encoder.")


def test_a_replay_of_what_is_finite_here_says_so(shapes, tmp_path):
    with pytest.raises(FloatingPointError):
        run(shapes, tmp_path, Poison([0], "output"))
    said = Said()
    assert not replay(tmp_path / "non-finite-step=1.pt", said)["reproduced"]
    assert said.lines[0].startswith("finite ")


def test_another_file_is_no_step(shapes, tmp_path):
    run(shapes, tmp_path, Poison([]), max_steps=1)
    with pytest.raises(ValueError, match="no saved step"):
        replay(tmp_path / LAST, Said())
