"""How the same numbers are computed: with less memory, or by compiled code."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.layers.recompute import set_recompute
from zoo.training.module import DetectionModule


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What changes memory and time of a training, and its numbers by rounding at most.

    Attributes:
        checkpointing: stages of the backbone and layers of encoder and decoder keep their inputs alone and are computed
            again in the backward pass: about a third more time for a fraction of the memory.
        search_batch: `data.batch_size` becomes the most that a device holds, before the first step; it then stands
            there instead of this.
    """

    checkpointing: bool = False
    search_batch: bool = False

    def apply(self, module: DetectionModule) -> None:
        """Once, after the network is built."""
        set_recompute(module.network, self.checkpointing)
