"""Activation checkpointing: the same gradients, statistics and draws for less memory, in every family."""

from __future__ import annotations

import copy

import pytest
import torch
from partitions import Case, small_module, step_of_images
from tiny_families import first_of_each_class
from torch import nn

from zoo.layers.recompute import recomputed, set_recompute
from zoo.runs.step_cost import KeptTensors


def step(module, batch):
    """(losses, gradients, buffers, bytes kept for the backward pass, draw that comes next)."""
    torch.manual_seed(3)
    module.zero_grad()
    kept = KeptTensors(module)
    with kept:
        losses = module.losses(batch)
    total = torch.stack([value.sum() for value in losses.values()]).sum()
    total.backward()
    gradients = {n: p.grad for n, p in module.network.named_parameters() if p.requires_grad}
    return losses, gradients, dict(module.network.named_buffers()), kept.bytes, torch.rand(())


@pytest.mark.parametrize("key", first_of_each_class())
def test_gradients_statistics_and_draws_are_the_same_for_less_memory(key):
    case = Case(key, statistics="batch")
    module, batch = small_module(case).train(), step_of_images(case).part(0, 4)
    for part in module.network.modules():  # dropout that draws, where a family has it
        if isinstance(part, nn.Dropout):
            part.p = 0.1
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.1
    again = copy.deepcopy(module)
    set_recompute(again.network, True)
    losses, gradients, buffers, kept, draw = step(module, batch)
    losses2, gradients2, buffers2, kept2, draw2 = step(again, batch)
    assert torch.equal(draw, draw2)
    for one, two in ((losses, losses2), (buffers, buffers2)):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for name, value in gradients.items():
        other = gradients2[name]
        assert (value is None) == (other is None)
        if value is not None:
            assert (value - other).abs().max() <= 1e-6 * largest, name
    assert kept2 < 0.75 * kept, (kept, kept2)


def test_stages_and_layers_of_a_real_size_keep_little():
    """Of RT-DETR R18 with published widths, at 256 pixels: what is kept beside the inputs of the layers."""
    from zoo.runs import recipes
    from zoo.runs.step_cost import made_up, trial_module

    module = trial_module(recipes.load(recipes.resolve("rt_detr/r18_coco_72e")))
    batch = made_up(1, (256, 256), 80, masks=False)
    kept = []
    for on in (False, True):
        set_recompute(module.network, on)
        kept.append(step(module, batch)[3])
    assert kept[1] < 0.45 * kept[0], kept


def test_a_layer_is_computed_again_in_training_alone():
    class Counting(nn.Linear):
        runs = 0

        def forward(self, x):
            self.runs += 1
            return super().forward(x)

    layer, x = Counting(2, 2), torch.ones(1, 2)
    recomputed(layer, x).sum().backward()
    assert layer.runs == 1
    set_recompute(layer, True)
    recomputed(layer, x).sum().backward()
    assert layer.runs == 3
    with torch.no_grad():
        recomputed(layer, x)
    layer.eval()
    recomputed(layer, x).sum().backward()
    assert layer.runs == 5
    layer.requires_grad_(False).train()
    recomputed(layer, x)
    assert layer.runs == 6
    assert copy.deepcopy(layer).recompute
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_precision_is_that_of_the_first_time():
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    set_recompute(layer, True)
    seen = []
    layer[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = recomputed(layer, torch.rand(8, 4))
    y.sum().backward()
    assert seen == [torch.bfloat16] * 2
    assert int(layer[1].num_batches_tracked) == 1
