"""Gradients are clipped together, or the norm of each optimizer group on its own."""

import pytest
import torch
from lightning.pytorch import Trainer

from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module

RATES = {"backbone": 1e-4, "^decoder": 1e-3}


def module(clip_by_group: bool) -> DetectionModule:
    block = recipes.load(recipes.resolve("rt_detr/tiny"))["model"]
    rules = [{"match": match, "lr": lr} for match, lr in RATES.items()]
    schedule = block["init_args"]["schedule"] | {"rules": rules, "clip_by_group": clip_by_group}
    return build_module({**block, "init_args": {**block["init_args"], "schedule": schedule}})


def norms(clip_by_group: bool, limit: float | None) -> list[float]:
    """Of the groups after clipping; before it those of the backbone are 1000 times those of the others."""
    trained = module(clip_by_group)
    trained.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    optimizer = trained.schedule.optimizer(trained.network)
    for group, size in zip(optimizer.param_groups, (1000.0, 1.0, 1.0), strict=True):
        count = sum(p.numel() for p in group["params"])
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, size / count**0.5)
    trained.configure_gradient_clipping(optimizer, limit, "norm")
    return [
        float(torch.stack([p.grad.norm() for p in group["params"]]).norm())
        for group in optimizer.param_groups
    ]


def test_large_gradients_of_one_group_leave_the_others_alone():
    assert norms(True, 0.5) == pytest.approx([0.5, 0.5, 0.5], rel=1e-3)
    assert norms(True, 2.0) == pytest.approx([2.0, 1.0, 1.0], rel=1e-3)


def test_clipped_together_they_shrink_by_one_factor():
    assert norms(False, 0.5) == pytest.approx([0.5, 5e-4, 5e-4], rel=1e-3)


@pytest.mark.parametrize("limit", [None, 0.0])
def test_without_a_limit_nothing_is_clipped(limit):
    assert norms(True, limit) == pytest.approx([1000.0, 1.0, 1.0], rel=1e-3)
