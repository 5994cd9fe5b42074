"""Layers that a CPU runs through oneDNN give the numbers and gradients of torch's own."""

import copy

import pytest
import torch
from torch import nn

from zoo.layers.onednn import PointwiseConv2d, PointwiseLinear, use_onednn


def gradients(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])]


def assert_same(plain: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    weight = torch.randn(plain(x).shape)
    wanted = gradients(copy.deepcopy(plain).double(), x.double(), weight.double())
    for found, exact in zip(gradients(ours, x, weight), wanted, strict=True):
        assert found.shape == exact.shape
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_convolution(batch, channels_last, bias):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(48, 40, 1, bias=bias))
    plain = copy.deepcopy(network)
    use_onednn(network)
    assert type(network[0]) is PointwiseConv2d
    x = torch.randn(batch, 48, 9, 31)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert_same(plain, network, x)


@pytest.mark.parametrize("shape", [(2, 300, 48), (700, 48), (2, 3, 48)])
def test_linear(shape):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(48, 40))
    plain = copy.deepcopy(network)
    use_onednn(network)
    assert type(network[0]) is PointwiseLinear
    assert_same(plain, network, torch.randn(shape))


@pytest.mark.parametrize("batch", [1, 2])
def test_convolution_before_a_batch_norm(batch):
    """Batches of one are where torch's kernels mix up layouts."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.SiLU(), nn.Conv2d(48, 32, 1), nn.SiLU()
    )
    plain = copy.deepcopy(network)
    use_onednn(network)
    assert_same(plain, network, torch.randn(batch, 32, 24, 40))


def test_names_parameters_and_draws_stay():
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {"a": nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)), "b": nn.Linear(4, 5)}
    )
    before, state = dict(network.named_parameters()), torch.get_rng_state()
    use_onednn(network)
    after = dict(network.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert type(network["a"][1]) is nn.Conv2d
