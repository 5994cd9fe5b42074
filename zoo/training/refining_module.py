"""What RT-DETR and the families after it answer alike as Lightning modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from zoo.contract.input_limits import InputLimits
from zoo.layers.published_constants import refuse_other_constants
from zoo.layers.refining_decoder import PRIOR
from zoo.training.module import DetectionModule


class RefiningModule(DetectionModule):
    """Trains a `DenoisingNetwork`, whose decoder selects its queries and has `eval_layers`."""

    class_tensors = r"^decoder\.(enc_score_head|dec_score_head\.\d+|denoising_class_embed)\."
    queries_key = "decoder.num_queries"
    class_prior = PRIOR

    @property
    def decoder_layers(self) -> int | None:
        """See `DetectionModule.decoder_layers`; an exported file has the layers that it was made with."""
        return None if self.runtime != "pytorch" else len(self._decoder.decoder.layers)

    def set_decoder_layers(self, count: int) -> int:
        """See `DetectionModule.set_decoder_layers`."""
        if self.decoder_layers is None:
            return super().set_decoder_layers(count)
        before: int = self._decoder.eval_layers
        self._decoder.eval_layers = count
        return before

    def check_published(self, state: Mapping[str, Tensor]) -> None:
        """See `DetectionModule.check_published`."""
        refuse_other_constants(state, self._decoder)

    @property
    def _decoder(self) -> Any:
        return self.evaluation_network.decoder


def selection_limits(num_queries: int, levels: int, training_sides: Sequence[int]) -> InputLimits:
    """What sizes of input a network takes whose queries are the best places of its last `levels` maps.

    Args:
        num_queries: of the decoder.
        levels: maps, the last at stride 32.
        training_sides: of the squares that the network resizes training images to.
    """
    return InputLimits(
        multiple_of=32,
        queries=num_queries,
        strides=(4, 8, 16, 32)[-levels:],
        training_sizes=tuple((side, side) for side in training_sides),
    )
