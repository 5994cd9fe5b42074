"""The whole of a detector as one module of tensors: levels in, detections out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.contract.batch import Batch, Outputs, Targets
from zoo.contract.preprocess import InputContract
from zoo.prediction.postprocess import in_pixels
from zoo.training.module import DetectionModule


class DetectionGraph(nn.Module):
    """Normalisation, network and post-processing of a detector.

    Args:
        module: of the detector.
        contract: of its input; images that it stretches have no padding.
    """

    def __init__(self, module: DetectionModule, contract: InputContract) -> None:
        super().__init__()
        self.network = module.evaluation_network
        self.rule = module.postprocess
        self.contract = contract
        self.has_masks = module.instances is not None

    def forward(self, images: Tensor, sizes: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        """All that the graph can give, by name.

        Args:
            images: [B, 3, H, W] uint8 RGB, zero-padded at the bottom and right.
            sizes: [B, 2] int64 (h, w) of the original images, to which boxes are scaled.
            padding: [B, H, W] bool, True on padding; None: there is none.
        """
        outputs: Outputs = self.network(self.normalized(images, padding))
        raw = outputs.final
        scores, labels, query = self.rule.best(raw.logits)
        found = {
            "labels": labels,
            "boxes": in_pixels(raw.boxes, query, sizes),
            "scores": scores,
            "logits": raw.logits,
            "pred_boxes": raw.boxes,
        }
        if self.has_masks:
            found["masks"] = raw.masks_of_all()
        return found

    def normalized(self, images: Tensor, padding: Tensor | None) -> Batch:
        """A batch of float images, as `InputContract.normalize` makes them."""
        levels = images.to(torch.float32) / 255
        if self.contract.mean:
            mean, std = (
                torch.tensor(values, device=images.device)[:, None, None]
                for values in (self.contract.mean, self.contract.std)
            )
            levels = (levels - mean) / std
        if padding is None:
            padding = torch.zeros_like(images[:, 0], dtype=torch.bool)
        elif self.contract.mean:
            levels = levels.masked_fill(padding[:, None], 0.0)
        nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), ())
        return Batch(levels, padding, nothing, (), ())


@contextmanager
def recorded(graph: DetectionGraph) -> Iterator[dict[str, Tensor]]:
    """Normalised images and the outputs of blocks, in the order in which they are computed; filled while it runs.

    Blocks are modules with parts of their own that run once; several tensors of one are numbered. Each is named
    `block.<name>`.
    """
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    seen: list[Tensor] = []

    def note(name: str, output: Any) -> None:
        calls[name] += 1
        several = output if isinstance(output, (list, tuple)) else [output]
        floats = [t for t in several if isinstance(t, Tensor) and t.is_floating_point()]
        for number, tensor in enumerate(floats):
            key = f"block.{name}" if len(floats) == 1 else f"block.{name}.{number}"
            if calls[name] > 1:
                found.pop(key, None)
            elif not any(tensor is other for other in seen):  # a block inside has given it already
                found[key] = tensor
                seen.append(tensor)

    handles = [
        block.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, block in graph.network.named_modules()
        if name and any(True for _ in block.children())
    ]
    first = graph.network.register_forward_pre_hook(
        lambda _, inputs: note("normalised images", inputs[0].images)
    )
    try:
        yield found
    finally:
        for handle in [*handles, first]:
            handle.remove()
