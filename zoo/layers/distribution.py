"""Boxes from distributions over distances (fine-grained distribution refinement, arXiv 2410.13842, §4.1).

Each side of a box is a distribution over `bins` distances from a reference box, which the weighting function spaces:
close together around 0, wide apart at the ends. Distances count in sizes of the reference over `reg_scale`, sides
are left, top, right, bottom.

Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/dfine_utils.py, dfine_decoder.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.contract.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from zoo.layers.mlp import MLP
from zoo.layers.precision import autocast_to, full

CORNERS, REFERENCE = (
    "corners",
    "reference",
)  # extras of predictions: [L, B, Q, 4 x bins] logits, [L, B, Q, 4] cxcywh
UP = 0.5  # of all published models: see `weighting_function`


def weighting_function(bins: int, reg_scale: float, up: float = UP) -> Tensor:
    """W(n) of all bins, [bins] float64, ascending and odd around the middle bin.

    The outermost are 2 up reg_scale; those between grow as powers, to up reg_scale at the last but one.
    """
    bound, half = abs(up * reg_scale), (bins - 1) // 2
    step = (bound + 1) ** (1 / (half - 1))
    inner = step ** torch.arange(half, dtype=torch.float64) - 1  # from 0
    outermost = inner.new_tensor([2 * bound])
    return torch.cat([-outermost, -inner.flip(0), inner[1:], outermost])


def expected_distances(corners: Tensor, weighting: Tensor) -> Tensor:
    """[..., 4 x bins] logits to the mean distance of each side, [..., 4]."""
    probabilities = full(side_probabilities(corners, len(weighting)))
    with autocast_to(None, corners.device):  # the product of two float32 would be one of 16 bits
        return probabilities @ weighting


def side_probabilities(corners: Tensor, bins: int) -> Tensor:
    """[..., 4 x bins] logits to probabilities, [..., 4, bins]."""
    return corners.unflatten(-1, (4, bins)).softmax(-1)


def boxes_around(reference: Tensor, distances: Tensor, reg_scale: float) -> Tensor:
    """The boxes cxcywh whose sides lie so far from those of `reference` [..., 4] cxcywh.

    Sides may cross: sizes can be negative, and nothing is clipped.
    """
    size = reference[..., 2:]
    reach = (0.5 * reg_scale + distances) * (torch.cat([size, size], -1) / reg_scale)
    centre = reference[..., :2]
    return xyxy_to_cxcywh(torch.cat([centre - reach[..., :2], centre + reach[..., 2:]], -1))


class Bins(NamedTuple):
    """Where a distance lies between two neighbouring bins."""

    left: Tensor  # [...] int64; its right neighbour is one more
    right_share: Tensor  # [...] in [0, 1]; the left one has the rest


def distances_of(boxes: Tensor, reference: Tensor, reg_scale: float) -> Tensor:
    """How far the sides of `boxes` [..., 4] cxcywh lie from those of `reference`: `boxes_around` undone."""
    corners, (centre, size) = cxcywh_to_xyxy(boxes), reference.split(2, -1)
    reach = torch.cat([centre - corners[..., :2], corners[..., 2:] - centre], -1)
    return reach / (torch.cat([size, size], -1) / reg_scale + 1e-16) - 0.5 * reg_scale


def bins_of(distances: Tensor, weighting: Tensor) -> Bins:
    """The two bins around each distance and its share in the right one; beyond the ends the outermost has all."""
    last = len(weighting) - 1
    left = (torch.searchsorted(weighting, distances.contiguous(), right=True) - 1).clamp(0, last - 1)
    low, high = weighting[left], weighting[left + 1]
    return Bins(left, ((distances - low) / (high - low)).clamp(0, 1))


class LocationQuality(nn.Module):
    """Raises or lowers all class logits of a query by how sure its distributions are (LQE).

    Args:
        bins: of each side.
        top: so many largest probabilities of a side, and their mean, are read.
        hidden: width between the two linear layers.
        activation: between them.
    """

    def __init__(
        self, bins: int, activation: Callable[[Tensor], Tensor], top: int = 4, hidden: int = 64
    ) -> None:
        super().__init__()
        self.bins, self.top = bins, top
        self.reg_conf = MLP(4 * (top + 1), hidden, 1, 2, activation)
        for parameter in self.reg_conf.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: Tensor, corners: Tensor) -> Tensor:
        """(logits [..., C], corners [..., 4 x bins]) to logits."""
        best = side_probabilities(corners, self.bins).topk(self.top, -1).values
        read = torch.cat([best, best.mean(-1, keepdim=True)], -1).flatten(-2)
        return logits + self.reg_conf(read)
