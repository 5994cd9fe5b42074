"""The gradient through BatchNorm and a flatten is right for a batch of one."""

import torch
from torch import nn

from zoo.layers.memory_format import to_map, to_tokens


def gradient(images: torch.Tensor, flatten) -> torch.Tensor:
    norm = nn.BatchNorm2d(16).double().eval()
    norm.running_mean.copy_(torch.linspace(-1, 1, 16))
    x = images.clone().requires_grad_()
    tokens = flatten(norm(x))
    (tokens * torch.arange(tokens.numel(), dtype=torch.float64).view(tokens.shape).cos()).sum().backward()
    return x.grad


def test_batch_of_one_equals_the_same_image_alone_in_a_batch_of_two():
    image = torch.randn(1, 16, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # numbers of the gradient in elementary operations, where no kernel is involved
    expected = torch.arange(image.numel(), dtype=torch.float64).view(1, 24, 16).cos().transpose(1, 2)
    expected = expected.reshape(image.shape) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(gradient(image, to_tokens), expected)


def test_map_and_tokens_are_inverse():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_map(to_tokens(x), 4, 5), x)
    assert to_map(to_tokens(x[:1]), 4, 5).is_contiguous()
