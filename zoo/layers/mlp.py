"""The multilayer perceptron that reads and writes boxes: box heads and query positions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.precision import autocast_dtype, autocast_to, full


class MLP(nn.Module):
    """Linear layers and activations; in float32 also under autocast, for its results are coordinates."""

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        num_layers: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim_in] to [..., dim_out]."""
        if autocast_dtype(x.device) is None:
            return self.layered(x)
        with autocast_to(None, x.device):
            return self.layered(full(x))

    def layered(self, x: Tensor) -> Tensor:
        """`forward` in the precision of `x`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def multiply_adds(*parts: nn.Module) -> int:
    """Multiply-adds of the linear layers of parts, for one row."""
    layers = (layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)
