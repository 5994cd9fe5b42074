"""Compiled parts: one graph each, the same gradients, the same names; and what goes together."""

from __future__ import annotations

import copy

import pytest
import torch
from partitions import Case, small_module, step_of_images
from tiny_families import first_of_each_class

from zoo.runs.options.chosen import Options
from zoo.training.computing import Computing, _parts, compile_parts

FAMILIES = first_of_each_class()


def gradients(module, batch):
    torch.manual_seed(0)
    losses = module.losses(batch)
    torch.stack([value.sum() for value in losses.values()]).sum().backward()
    return {n: p.grad for n, p in module.network.named_parameters() if p.grad is not None}


def same_when_compiled(key):
    case = Case(key, dtype=torch.float32)
    module, batch = small_module(case).train(), step_of_images(case).part(0, 2)
    compiled = copy.deepcopy(module)
    torch._dynamo.reset()
    compile_parts(compiled.network, backend="aot_eager", fullgraph=True)  # raises where a graph breaks
    exact, found = gradients(module, batch), gradients(compiled, batch)
    largest = max(float(g.abs().max()) for g in exact.values())
    for name, value in exact.items():
        assert (value - found[name]).abs().max() <= 1e-5 * largest, name
    buffers = dict(compiled.network.named_buffers())
    for name, value in module.network.named_buffers():
        assert torch.allclose(value, buffers[name], atol=1e-5), name
    assert list(compiled.state_dict()) == list(module.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


def test_backbone_and_encoder_are_one_graph_each():
    same_when_compiled(next(key for key in FAMILIES if key.startswith("detr/")))


@pytest.mark.slow
@pytest.mark.parametrize("key", FAMILIES)
def test_of_every_family(key):
    same_when_compiled(key)


@pytest.mark.parametrize("key", FAMILIES)
def test_the_parts_are_run_by_themselves_and_a_copy_is_not_compiled(key):
    network = small_module(Case(key)).network
    called = []
    parts = list(_parts(network))
    for part in parts:
        part.register_forward_hook(lambda module, given, out: called.append(module))
    with torch.no_grad():
        network.eval()(step_of_images(Case(key)).part(0, 1))
    assert set(called) == set(parts)
    parts[0].compile(backend="eager")
    assert parts[0]._compiled_call_impl is not None
    assert copy.deepcopy(parts[0])._compiled_call_impl is None


def test_it_is_applied_by_the_recipe(monkeypatch):
    module = small_module(Case(FAMILIES[0]))
    Computing().apply(module)
    assert all(part._compiled_call_impl is None for part in _parts(module.network))
    Computing(compile=True).apply(module)
    assert all(part._compiled_call_impl is not None for part in _parts(module.network))


def test_what_does_not_go_together():
    with pytest.raises(
        ValueError, match=r"computing.compile and computing.checkpointing cannot be used together"
    ):
        Computing(compile=True, checkpointing=True)


def test_the_option_stands_in_the_recipe_and_says_what_a_cpu_makes_of_it():
    recipe = {"trainer": {"accelerator": "cpu", "precision": "bf16-mixed"}}
    (note,) = Options(compile=True).write(recipe, ())
    assert recipe["computing"] == {"compile": True}
    assert note.startswith("--compile: on a CPU it takes a minute")
