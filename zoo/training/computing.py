"""How the same numbers are computed: with less memory, or by compiled code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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
        compile: backbone and encoder are compiled by torch, see `compile_parts`.
    """

    checkpointing: bool = False
    search_batch: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.compile and self.checkpointing:
            raise ValueError(
                "computing.compile and computing.checkpointing cannot be used together: torch does not compile what is "
                "computed again with norms at rest; take --checkpointing where memory is short, else --compile"
            )

    def apply(self, module: DetectionModule) -> None:
        """Once, after the network is built."""
        set_recompute(module.network, self.checkpointing)
        if self.compile:
            compile_parts(module.network)


def compile_parts(network: nn.Module, **options: Any) -> None:
    """Compiles backbone and encoder, each one graph in every family; names of tensors stay; copies are not compiled.

    The rest stays as it is. The number of denoising queries follows the objects of each batch and that of a decoder's
    inputs with it, matching runs on the host, and `forward` takes a batch with ids and sizes of images, at whose values
    torch would compile anew. Sizes of images that change are compiled anew too: once for two of them, then for all.

    Args:
        network: of a module.
        options: of `torch.compile`.
    """
    if not torch.cuda.is_available():  # of which torch would warn whoever trains on a CPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    for part in _parts(network):
        part.compile(**options)


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    encoder: Any = getattr(network, "encoder", None)
    if encoder is None:
        encoder = network.transformer.encoder  # type: ignore[union-attr]
    yield network.backbone  # type: ignore[misc]
    # Deformable DETR calls the layers by themselves: its encoder is a list of them
    yield from [encoder] if type(encoder).forward is not nn.Module.forward else encoder.layers
