"""`zoo plan`: every cut keeps the step, says truly what it changes, and `zoo fit` of it takes as many steps."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import overlay

import zoo
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.runs import step_cost
from zoo.runs.cuts import Cut, Published, cuts, steps_of
from zoo.runs.plan import Plan, bytes_of, plan
from zoo.storage.checkpoint_io import read_checkpoint

TINY = {
    "model.schedule.warmup_steps": 0,
    **{f"model.{k}": v for k, v in overlay("rt_detr").items() if k == "multi_scale"},
}
SYNCED = Published(global_batch=16, micro_batch=16, statistics=16, padded=False)
PADDED = Published(global_batch=16, micro_batch=2, statistics=None, padded=True)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 21, 2, seed=0, size=64)


def planned(**options: Any) -> Plan:
    options = {"images": 1000, "measure": False, **options}
    return plan(options.pop("recipe", "rt_detr/tiny"), **options)


# ------------------------------------------------------------------ the solver


@pytest.mark.parametrize("published", [SYNCED, PADDED, Published(24, 6, 6, True)])
def test_every_cut_keeps_the_step_and_the_best_changes_least(published: Published) -> None:
    whole = published.global_batch
    for devices in range(1, 10):
        for most in range(1, whole + 2):
            for synchronise in (False, True):
                found = cuts(whole, published, devices, 1, lambda _, most=most: most, synchronise)
                assert all(c.images == whole and c.batch_size <= most for c in found)
                assert [c.devices for c in sorted(found, key=lambda c: c.devices)] == [
                    n for n in range(1, devices + 1) if whole % n == 0
                ]
                every = [
                    Cut(n, b, whole // n // b, synchronise)
                    for n in range(1, devices + 1)
                    for b in range(1, min(most, whole // n) + 1)
                    if whole % (n * b) == 0 and whole % n == 0 and (whole // n) % b == 0
                ]
                fewest = min(len(c.differences(published)) for c in every)
                equal = [c for c in every if len(c.differences(published)) == fewest]
                assert len(found[0].differences(published)) == fewest
                assert found[0].devices == max(c.devices for c in equal)


@pytest.mark.parametrize(
    ("published", "most", "devices", "synchronise", "cut", "differences"),
    [
        (SYNCED, 16, 1, False, (1, 16, 1), []),
        (SYNCED, 8, 2, True, (2, 8, 1), []),
        (SYNCED, 16, 3, True, (2, 8, 1), []),  # 3 do not divide 16
        (SYNCED, 16, 2, False, (1, 16, 1), []),  # two would see half the statistics each
        (SYNCED, 4, 1, True, (1, 4, 4), ["batch statistics of 4 images, published 16"]),
        (SYNCED, 5, 2, True, (2, 4, 2), ["batch statistics of 8 images, published 16"]),
        (PADDED, 8, 4, False, (4, 2, 2), []),
        (PADDED, 1, 4, False, (4, 1, 4), ["padded to the largest of 1 image, published 2"]),
    ],
)
def test_the_cut_that_keeps_most(published, most, devices, synchronise, cut, differences) -> None:
    best = cuts(16, published, devices, 1, lambda _: most, synchronise)[0]
    assert (best.devices, best.batch_size, best.accumulation) == cut
    assert best.differences(published) == differences


def test_there_may_be_none() -> None:
    assert cuts(16, SYNCED, 4, 1, lambda _: 0, True) == []
    with pytest.raises(ValueError, match="16 images cannot be divided over 3 nodes"):
        cuts(16, SYNCED, 4, 3, lambda _: 16, True)


def test_steps_are_counted_as_the_loop_counts_them() -> None:
    cut = Cut(2, 2, 2, False)
    assert steps_of(21, cut, 3, -1, None) == (2, 6)
    assert steps_of(21, cut, 3, 5, None) == (2, 5)
    assert steps_of(21, cut, -1, 50, None) == (2, 50)
    assert steps_of(80, cut, 1, -1, 0.5) == (5, 5)
    assert steps_of(80, cut, 1, -1, 6) == (3, 3)
    with pytest.raises(ValueError, match="leaves 3 micro-batches an epoch, and a step has 2"):
        steps_of(80, cut, 1, -1, 3)
    with pytest.raises(ValueError, match="7 images, fewer than one step of global_batch_size 8"):
        steps_of(7, cut, 1, -1, None)


# ------------------------------------------------------------------ recipes


def test_a_step_that_is_not_the_published_one_is_marked() -> None:
    assert planned().differences == ()
    assert planned(batch_size=4).differences == ("batch statistics of 4 images, published 8",)
    assert planned(memory="64GB", measure=True, batch_size=4, devices=2).differences == ()
    changed = planned(overrides={"model.schedule.global_batch_size": 4})
    assert changed.differences == (
        "steps of 4 images, published 8",
        "batch statistics of 4 images, published 8",
    )
    assert planned(devices=2).notes == ("1 of 2 devices used: 2 give another gradient",)
    assert planned(devices=3, images=1001).notes == (
        "1 of 3 devices used: 3 do not divide a step of 8", "1 image left over in each epoch, others each time",
    )  # fmt: skip


def test_a_network_without_batch_statistics_may_be_cut_but_for_its_padding() -> None:
    small = {f"model.{part}.{k}": v for part, changes in overlay("detr").items() for k, v in changes.items()}
    options = {"recipe": "detr/r50_coco_500e", "overrides": small, "images": 118287}
    found = planned(**options, devices=8, batch_size=16)
    assert (found.cut.batch_size, found.cut.accumulation, found.differences) == (2, 4, ())
    assert found.steps == 118287 // 64 * 500
    assert planned(**options, batch_size=1).differences == ("padded to the largest of 1 image, published 2",)
    assert (
        planned(**options | {"overrides": small | {"data.input.padding": "step"}}, batch_size=1).differences
        != ()
    )


def test_memory_bounds_the_micro_batch() -> None:
    one = planned(measure=True, memory="1TB", batch_size="auto")
    assert one.cut.batch_size == 8
    assert one.memory is not None
    assert one.measured == "not measured: no GPU here; give it with --step-seconds"
    fixed = step_cost.fixed_bytes(step_cost.trial_module(zoo.recipe("rt_detr/tiny")))
    half = planned(measure=True, memory=int((fixed + (one.memory - fixed) * 0.6) / 0.9), batch_size="auto")
    assert half.cut.batch_size == 4
    with pytest.raises(
        ValueError, match=r"one image of 128x128 needs 0\.\d GB of memory, and of 0\.0 GB a tenth"
    ):
        planned(measure=True, memory="1MB")
    with pytest.raises(ValueError, match="leave --no-measure out, or give --batch-size"):
        planned(memory="1GB", batch_size="auto")


def test_what_is_kept_for_the_backward_pass_is_counted_once() -> None:
    layer = torch.nn.Linear(10, 20, bias=False)
    kept = step_cost.KeptTensors(layer)
    x = torch.rand(7, 10)
    with kept:
        (layer(x).sigmoid().sum() + layer(x).exp().sum()).backward()
    assert kept.bytes == 4 * (7 * 10 + 2 * 7 * 20)  # the input once, two outputs, and no weight


def test_time_is_measured_here_or_given_or_not_told() -> None:
    here = planned(measure=True, batch_size=2)
    assert here.step_seconds is not None
    assert here.step_seconds > 0
    assert "CPU" in here.measured
    assert here.kilowatt_hours is None
    given = planned(step_seconds=0.36)
    assert given.hours == pytest.approx(given.steps * 0.36 / 3600)
    assert (planned().step_seconds, planned().measured) == (None, "not measured")


def test_energy_is_what_the_card_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 100.5\necho 101.5\nexec sleep 60\n")
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    teller = step_cost._start("GPU-0")
    assert teller is not None
    assert [teller.stdout.readline() for _ in range(2)] == ["100.5\n", "101.5\n"]
    teller.kill()
    teller.communicate()
    assert step_cost.mean_of("100.5\n101.5\n") == 101.0
    assert step_cost.mean_of("[N/A]\n") is None
    assert step_cost.mean_of("") is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert step_cost._start("GPU-0") is None


# ------------------------------------------------------------------ what trains


def trained_steps(folder: Path) -> int:
    return int(read_checkpoint(folder / "last.ckpt")["zoo"]["step"])


def test_fit_takes_as_many_steps(shapes: Path) -> None:
    changes = {"trainer.max_epochs": 2, "trainer.limit_train_batches": 4, "trainer.logger": False}
    overrides = {"data.root": str(shapes), "data.input.size": [64, 64], **TINY, **changes}
    found = plan("rt_detr/tiny", overrides=overrides, batch_size=3, measure=False)
    assert (found.cut.batch_size, found.cut.accumulation) == (2, 4)
    run = zoo.fit("rt_detr/tiny", overrides=found.overrides, output="run", console=zoo.Silent())
    assert trained_steps(run.folder) == found.steps == 2  # micro-batches of another size would give 4
    again = plan(run.folder / "recipe.yaml", measure=False)
    assert (again.steps, again.cut, again.workers) == (found.steps, found.cut, found.workers)


@pytest.mark.slow
def test_the_printed_line_trains_on_two_processes(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--data.root",
        str(shapes),
        "--data.input.size",
        "[64, 64]",
        "--trainer.max_epochs",
        "1",
        "--trainer.sync_batchnorm",
        "false",
        "--data.batch_size",
        "4",
    ]
    assert run_command(["plan", "rt_detr/tiny", *options, "--devices", "2", "--json", "--no-measure"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cut"]["devices"] == 2
    words = shlex.split(document["command"])[1:]
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli.main", *words, "--output", "run"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert trained_steps(tmp_path / "run") == document["steps"]


# ------------------------------------------------------------------ the command


def test_the_command(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.root", str(shapes), "--data.input.size", "[64, 64]"]
    assert run_command(["plan", "rt_detr/tiny", *data, "--batch-size", "4", "--step-seconds", "2"]) == 0
    said = capsys.readouterr().out
    for line in (
        "recipe      rt_detr/tiny: steps of 8 images, batch statistics of 8",
        "not equivalent: batch statistics of 4 images, published 8",
        "steps       2 an epoch, 40 in all",
        "time        2 s a step (as given)",
        "energy      not measured",
        f"next: zoo fit --config rt_detr/tiny --data.root {shapes} --data.input.size '[64, 64]' --data.batch_size 4",
    ):
        assert line in said
    assert run_command(["plan", "rt_detr/tiny", *data, "--json", "--no-measure"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["equivalent"], document["hours"], document["kilowatt_hours"]) == (True, None, None)
    assert document["cut"] == {"devices": 1, "batch_size": 8, "accumulation": 1, "synchronised": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rt_detr/r18_coco_72e"], "data/coco is not a folder; give the data set's with --data.root FOLDER, or"),
        (["rt_detr/tiny", "--images", "7"], "the training set has 7 images, fewer than one step"),
        (["rt_detr/tiny", "--images", "70", "--memory", "much"], "--memory 'much' is no size of a memory; write"),
        (["rt_detr/tiny", "--images", "70", "--batch-size", "none"], "--batch-size is 'none'; it must be auto"),
        (["rt_detr/tinny", "--images", "70"], "rt_detr/tiny"),
        (["rt_detr/tiny", "--images", "70", "--model.backbon.x", "1"], "did you mean 'model.backbone'"),
    ],
)  # fmt: skip
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", "--no-measure", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_sizes_of_memory() -> None:
    assert bytes_of("24GB") == 24_000_000_000
    assert bytes_of(" 1.5 gib ") == 3 * 2**29
    assert bytes_of(7) == 7
    for text in ("9" * 400 + "GB", "9" * 10**5 + "GB"):
        with pytest.raises(ValueError, match="is no size of a memory"):
            bytes_of(text)


@pytest.mark.parametrize("options", [{"devices": 0}, {"images": 0}, {"step_seconds": -1.0}, {"memory": -5}])
def test_numbers_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=f"--{next(iter(options)).replace('_', '-')} (is )?'?-?[0-9.]+'?(;| is no size)"
    ):
        planned(**options)
