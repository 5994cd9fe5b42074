"""Mixed precision: the losses of every family, what stays in float32, and a training that clips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from zoo.contract.batch import Batch, Step, Targets
from zoo.layers.deformable_attention import multi_scale_deformable_attention
from zoo.layers.mlp import MLP
from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module

SIZE = (192, 256)  # GroupNorm over the two pixels of a smaller coarsest map would be all rounding
RESIDUAL = {"name": "residual", "weights": "random", "freeze_stem": False, "frozen_norm": False}
FAMILIES = ("detr", "detr_masks", "deformable_detr", "deformable_two_stage", "rt_detr")


def tiny(family: str) -> DetectionModule:
    """A few thousand parameters of the family, with its own criterion."""
    name = {
        "detr": "detr/r50_coco_500e",
        "detr_masks": "detr/r50_panoptic_coco_25e",
        "deformable_detr": "deformable_detr/r50_coco_50e",
        "deformable_two_stage": "deformable_detr/r50_two_stage_coco_50e",
        "rt_detr": "rt_detr/tiny",
    }[family]
    block = recipes.load(recipes.resolve(name))["model"]
    arguments = block["init_args"]
    arguments["num_classes"] = 3
    arguments["schedule"] |= {"rules": []}
    widths = [8, 16, 16, 32, 32, 32] if family == "detr_masks" else [8, 16, 16, 32, 32]
    arguments["backbone"] = RESIDUAL | {"widths": widths}
    if family == "rt_detr":
        arguments["encoder"] |= {"dim": 32, "num_heads": 4, "ffn_dim": 32}
        arguments["decoder"] |= {"dim": 32, "num_heads": 4, "ffn_dim": 32, "num_queries": 10, "num_layers": 2}
    else:
        dim = 128 if family == "detr_masks" else 64
        arguments["transformer"] |= {
            "dim": dim, "num_heads": 8, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 2,
            "num_queries": 10, "dropout": 0.0,
        }  # fmt: skip
    torch.manual_seed(0)
    return build_module(block).train()


def batch_of(counts: tuple[int, ...], masks: bool) -> Batch:
    generator = torch.Generator().manual_seed(1)
    boxes = 0.25 + 0.3 * torch.rand(sum(counts), 4, generator=generator)
    labels = torch.randint(3, (sum(counts),), generator=generator)
    outlines = torch.rand(sum(counts), *SIZE, generator=generator) > 0.5 if masks else None
    return Batch(
        images=torch.rand(len(counts), 3, *SIZE, generator=generator),
        padding=torch.zeros(len(counts), *SIZE, dtype=torch.bool),
        targets=Targets(labels, boxes, counts, outlines),
        image_ids=tuple(range(len(counts))),
        original_sizes=(SIZE,) * len(counts),
        step=Step(torch.tensor(counts), SIZE, 0, seed=7),
    )


def step_of(module: DetectionModule, batch: Batch, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Losses of one step; the gradients stay on the parameters."""
    module.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        losses = module.losses(batch)
    torch.stack([v.sum() for v in losses.values()]).sum().backward()
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_under_bfloat16_are_those_of_float32(family):
    module, batch = tiny(family), batch_of((3, 0, 1, 2), family == "detr_masks")
    exact = step_of(module, batch, None)
    gradients = {n: p.grad.clone() for n, p in module.network.named_parameters()}
    rough = step_of(module, batch, torch.bfloat16)
    assert rough.keys() == exact.keys()
    assert {v.dtype for v in rough.values()} == {torch.float32}
    total, mixed = (sum(float(v.detach().sum()) for v in losses.values()) for losses in (exact, rough))
    assert total != mixed, "nothing ran in 16 bits"
    assert abs(mixed - total) < 0.02 * total
    for name, value in exact.items():
        assert torch.allclose(rough[name], value, rtol=0.02, atol=0.002 * total), name
    dots = sum((p.grad * gradients[n]).sum() for n, p in module.network.named_parameters())
    norms = [
        sum((g.square()).sum() for g in each).sqrt()
        for each in (gradients.values(), [p.grad for p in module.network.parameters()])
    ]
    assert float(dots / (norms[0] * norms[1])) > 0.95, "the gradient points elsewhere"


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_under_autocast_are_float32(family):
    module, batch = tiny(family), batch_of((1, 2), masks=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.predictions(batch)
    assert found.boxes.dtype == torch.float32
    # more digits than 16 bits hold: they were not rounded on the way
    assert not torch.equal(found.boxes, found.boxes.bfloat16().float())


def test_the_masks_of_a_mixed_run_can_be_asked_for_outside_autocast():
    module, batch = tiny("detr_masks"), batch_of((1, 2), masks=False)
    pair = torch.tensor([0, 1]), torch.tensor([3, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.predictions(batch)
        inside = found.masks(*pair)
    assert torch.equal(found.masks(*pair), inside)
    exact = module.predictions(batch).masks(*pair)
    assert (inside.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_attention_samples_at_float32_places_under_autocast():
    """256 pixels wide: a place of 16 bits would be up to half a pixel off."""
    values = torch.arange(256.0).view(1, 256, 1, 1)
    places = torch.full((1, 1, 1, 1, 2), 0.5)
    places[..., 0] = (200.3 + 0.5) / 256
    weights = torch.ones(1, 1, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled = multi_scale_deformable_attention(values, [(1, 256)], [places], [weights.bfloat16()])
    assert sampled.item() == pytest.approx(200.3, abs=1e-3)


def test_a_perceptron_of_boxes_keeps_float32_under_autocast():
    torch.manual_seed(0)
    perceptron, x = MLP(4, 8, 4, num_layers=3), torch.rand(5, 4)
    exact = perceptron(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(perceptron(x), exact)
        assert perceptron(x.bfloat16()).dtype == torch.float32
    assert perceptron.double()(x.double()).dtype == torch.float64


@pytest.mark.slow
def test_an_epoch_in_bfloat16_loses_what_float32_loses():
    """Every family through the training loop: clipping, optimizer and average included."""
    root = Path(__file__).parents[3]
    command = [sys.executable, str(root / "benchmarks" / "precision.py"), "--images", "48", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 5
    for row in rows:
        assert row["epoch"] != row["epoch_mixed"], row["family"]
        assert abs(row["epoch_difference"]) < 0.02, row["family"]
        assert abs(row["last_quarter_difference"]) < 0.02, row["family"]


def test_averaged_weights_stay_float32():
    module, batch = tiny("rt_detr"), batch_of((1, 2), masks=False)
    step_of(module, replace(batch), torch.bfloat16)
    module.ema.update(module.network)
    kinds = {v.dtype for v in module.ema.network.state_dict().values()}
    assert kinds <= {torch.float32, torch.int64}


def test_costs_and_losses_never_run_under_autocast():
    module, batch = tiny("rt_detr"), batch_of((1, 2), masks=False)
    seen = []

    class Spy:
        name, weight = "spy", 1.0

        def __call__(self, matches):
            seen.append(torch.is_autocast_enabled("cpu"))
            return {}

    cost = module.criterion.matcher.label_cost
    module.criterion.matcher.label_cost = lambda *given: [
        seen.append(torch.is_autocast_enabled("cpu")),
        cost(*given),
    ][1]
    module.criterion.terms = (*module.criterion.terms, Spy())
    step_of(module, batch, torch.bfloat16)
    assert seen
    assert not any(seen)


def test_the_preflight_runs_in_the_precision_of_the_training(tmp_path, monkeypatch):
    from zoo.runs import train as training
    from zoo.runs.console import Console
    from zoo.training.preflight import PreflightReport, check_one_step

    module, batch = tiny("rt_detr"), batch_of((1, 2), masks=False)
    given = {}
    monkeypatch.setattr(
        training, "run_preflight", lambda *_, **options: given.update(options) or PreflightReport()
    )
    trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    training.preflight(trainer, module, None, tmp_path, False, Console(as_json=True))
    kinds = []
    monkeypatch.setattr(
        type(module), "losses", lambda self, _: kinds.append(torch.get_autocast_dtype("cpu")
        if torch.is_autocast_enabled("cpu") else None) or {"x": sum(p.sum() for p in self.network.parameters())}
    )  # fmt: skip
    check_one_step(module, batch, given["precision"])
    assert kinds == [torch.bfloat16]
