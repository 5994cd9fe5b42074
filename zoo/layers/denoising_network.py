"""What RT-DETR and the families after it do around backbone, encoder and decoder in training.

Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/zoo/rtdetr/rtdetr.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Batch, Outputs, Step
from zoo.contract.input_limits import InputLimits
from zoo.contract.seeds import derived_generator
from zoo.layers.denoising import DenoisingConfig, DenoisingQueries, contrastive_denoising


class DenoisingNetwork(nn.Module):
    """Backbone -> encoder -> decoder, trained at several sizes and with denoising queries.

    Images are RGB in [0, 1]. `decoder` takes the encoder's maps and the denoising queries or None, and has
    `denoising_class_embed`.
    """

    title: ClassVar[str]  # in messages
    empty_group = False  # see `contrastive_denoising`
    uncross = False  # see `contrastive_denoising`

    def __init__(
        self,
        *,
        backbone: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        num_classes: int,
        denoising: DenoisingConfig,
        multi_scale: Sequence[int],
        multi_scale_epochs: int | None = None,
        limits: InputLimits,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder = backbone, encoder, decoder
        self.num_classes = num_classes
        self.denoising = denoising
        self.multi_scale, self.multi_scale_epochs = tuple(multi_scale), multi_scale_epochs
        self.limits = limits

    def forward(self, batch: Batch) -> Outputs:
        """Normalised float images to outputs.

        Raises:
            ValueError: the network does not take images of this size.
        """
        images, denoising = self.prepare(batch)
        self.limits.refuse((images.shape[-2], images.shape[-1]), self.title)
        return self.compute(images, denoising)

    def prepare(self, batch: Batch) -> tuple[Tensor, DenoisingQueries | None]:
        """All draws of a step, made on the host: images at the step's scale and denoising queries."""
        if not self.training:
            return batch.images, None
        if batch.step is None:
            raise ValueError("training needs Batch.step, the facts of the whole optimizer step")
        return self.rescale(batch.images, batch.step), self.denoise(batch)

    def compute(self, images: Tensor, denoising: DenoisingQueries | None) -> Outputs:
        """The network itself: tensors in, tensors out, one graph for `torch.compile`."""
        outputs: Outputs = self.decoder(self.encoder(self.backbone(images)), denoising)
        if self.training and denoising is None:
            outputs = self.keep_in_graph(outputs)
        return outputs

    def rescale(self, images: Tensor, step: Step) -> Tensor:
        """The published multi-scale training: the whole step at one square size, drawn from (seed, step).

        In the first `multi_scale_epochs` epochs, or in all; after them images stay as they come.
        """
        over = self.multi_scale_epochs is not None and step.epoch >= self.multi_scale_epochs
        if over or not self.multi_scale:
            return images
        draw = torch.randint(
            len(self.multi_scale), (), generator=derived_generator(step.seed, step.index, -1)
        )
        side = self.multi_scale[int(draw)]
        # nearest is the default that the official code leaves interpolate at
        return images if images.shape[-2:] == (side, side) else F.interpolate(images, (side, side))

    def denoise(self, batch: Batch) -> DenoisingQueries | None:
        """Noised objects of the batch, or None."""
        config = self.denoising
        return contrastive_denoising(
            batch,
            num_classes=self.num_classes,
            num_queries=config.num_queries,
            num_denoising=config.num_denoising,
            label_noise=config.label_noise,
            box_noise=config.box_noise,
            empty_group=self.empty_group,
            uncross=self.uncross,
        )

    def keep_in_graph(self, outputs: Outputs) -> Outputs:
        """Without objects there is no denoising; its embedding must still take part for DDP."""
        nothing = 0.0 * self.decoder.denoising_class_embed.weight.sum()  # type: ignore[union-attr, operator]
        first = outputs.supervised[0]
        logits = first.predictions.logits + nothing.to(first.predictions.logits.dtype)
        kept = replace(first, predictions=first.predictions._replace(logits=logits))
        return replace(outputs, supervised=(kept, *outputs.supervised[1:]))
