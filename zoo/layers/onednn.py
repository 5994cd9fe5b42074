"""Matrix products of a CPU through oneDNN instead of MKL: the same numbers at up to twice the rate.

torch gives linear layers, and on one thread 1x1 convolutions of small batches, to MKL, which reaches half
of oneDNN's rate on AMD's processors (105 against 225 GFLOP/s on one core with AVX-512). Dilated convolutions
always go to oneDNN, and a kernel of one pixel does not know that it is dilated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALLEST = 20480  # entries of an input; below, torch does not take oneDNN for a single map


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Full precision on a CPU, and not captured: what reads a graph chooses its own kernels."""
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    full = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and full and not captured


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of stride 1 without padding."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        if runs_eagerly_on_cpu(x):
            return F.conv2d(x, self.weight, self.bias, dilation=2)
        return super().forward(x)


class PointwiseLinear(nn.Linear):
    """A linear layer, computed as a 1x1 convolution of one map whose pixels are the rows."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C']."""
        if not runs_eagerly_on_cpu(x) or x.numel() <= _SMALLEST:  # a captured size stays unknown
            return super().forward(x)
        pixels = x.reshape(1, 1, -1, self.in_features).permute(0, 3, 1, 2)
        y = F.conv2d(pixels, self.weight[..., None, None], self.bias, dilation=2)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


def use_onednn(module: nn.Module) -> None:
    """Replaces the 1x1 convolutions and linear layers below `module`; parameters stay the same objects."""
    for name, child in module.named_children():
        replacement: nn.Conv2d | nn.Linear | None = None
        if type(child) is nn.Conv2d and _is_pointwise(child):
            replacement = PointwiseConv2d(child.in_channels, child.out_channels, 1, device="meta")
        elif type(child) is nn.Linear:
            replacement = PointwiseLinear(child.in_features, child.out_features, device="meta")
        if replacement is None:
            use_onednn(child)
            continue
        assert isinstance(child, (nn.Conv2d, nn.Linear))
        replacement.weight, replacement.bias = child.weight, child.bias
        replacement.train(child.training)
        setattr(module, name, replacement)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    square = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
    return square and conv.groups == 1
