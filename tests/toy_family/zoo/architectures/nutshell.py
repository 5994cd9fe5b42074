"""A family that no zoo has: slots read the pixels of one small map. For tests/test_a_new_family.py.

None of its own names is one of another family's: what the pipeline knows of it, it has asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.contract.batch import Batch, Outputs, OutputSet, Predictions
from zoo.contract.input_limits import InputLimits
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossWeights, SetCriterion
from zoo.training.losses import SigmoidFocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.module import DetectionModule
from zoo.training.schedule import Schedule

SELDOM = 0.05  # probability of every class at the start


@dataclass(frozen=True, kw_only=True)
class EyeConfig:
    """Channels of the strided convolutions that see the image."""

    widths: list[int]


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """How many slots read the map, and how often."""

    slots: int
    rounds: int


class Nutshell(nn.Module):
    """Convolutions -> slots that attend to the map, round by round -> a name and a place each."""

    def __init__(self, num_classes: int, eye: EyeConfig, reader: ReaderConfig) -> None:
        super().__init__()
        pairs = zip([3, *eye.widths[:-1]], eye.widths, strict=True)
        self.eye = nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 4, stride=4), nn.ReLU()) for i, o in pairs))
        width = eye.widths[-1]
        self.slots = nn.Parameter(torch.randn(reader.slots, width))
        self.rounds = nn.ModuleList(
            nn.MultiheadAttention(width, 1, batch_first=True) for _ in range(reader.rounds)
        )
        self.name_of = nn.Linear(width, num_classes)
        self.place_of = nn.Linear(width, 4)
        nn.init.constant_(self.name_of.bias, -math.log((1 - SELDOM) / SELDOM))

    def forward(self, batch: Batch) -> Outputs:
        """Normalised float images to outputs; every round is supervised in training."""
        pixels = self.eye(batch.images).flatten(2).transpose(1, 2)
        content, layers = self.slots.expand(len(batch), -1, -1), []
        for attention in self.rounds:
            content = content + attention(content, pixels, pixels, need_weights=False)[0]
            layers.append(Predictions(self.name_of(content), self.place_of(content).sigmoid()))
        if not self.training:
            return Outputs(layers[-1])
        every = Predictions(torch.stack([p.logits for p in layers]), torch.stack([p.boxes for p in layers]))
        return Outputs(layers[-1], (OutputSet("decoder", every),))


class NutshellModule(DetectionModule):
    """Trains the toy.

    Args:
        num_classes: width of the head.
        eye, reader: sizes of the parts.
        prices: weights of the matching cost.
        pulls: weights of the losses.
        schedule: optimizer groups and learning rate.
    """

    class_tensors = r"^name_of\."
    queries_key = "reader.slots"
    class_prior = SELDOM

    @classmethod
    def limits_of(cls, init_args: Mapping[str, Any]) -> InputLimits:
        """Every convolution takes a quarter of each side."""
        return InputLimits(multiple_of=4 ** len(init_args["eye"]["widths"]))

    def __init__(
        self, *, num_classes: int, eye: EyeConfig, reader: ReaderConfig, prices: MatchCosts, pulls: LossWeights,
        schedule: Schedule,
    ) -> None:  # fmt: skip
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = Nutshell(num_classes, eye, reader)
        self.criterion = SetCriterion(
            HungarianMatcher(prices, focal_cost),
            [LabelTerm(pulls.label, SigmoidFocal()), L1Term(pulls.l1), GiouTerm(pulls.giou)],
        )
        self.postprocess = TopKSigmoid(reader.slots)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that the authors gave to the tensors, to ours."""
    return {key.removeprefix("shell."): value for key, value in state.items()}
