"""The numbers of a recipe by dotted key, and where an extract of published facts has those of a DETR transformer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; `init_args` is left out of the keys, list indices are in."""
    if not isinstance(value, (dict, list)):
        yield prefix, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))


def numbers(recipe: dict[str, Any]) -> dict[str, float]:
    """The leaves that are numbers, but for those of `about` that tests of every recipe and manifest hold."""
    return {
        k: v
        for k, v in leaves(recipe)
        if isinstance(v, (int, float)) and not isinstance(v, bool)
        if not k.startswith(("about.printed.", "about.macs_left_out"))
    }


# key in a recipe -> key in tests/data/published_*.yaml, of DETR, DETR panoptic and Deformable DETR
DETR_FAMILIES = {
    "model.num_classes": "num_classes",
    "model.transformer.dim": "transformer.hidden_dim",
    "model.transformer.num_heads": "transformer.nheads",
    "model.transformer.ffn_dim": "transformer.ffn_dim",
    "model.transformer.encoder_layers": "transformer.enc_layers",
    "model.transformer.decoder_layers": "transformer.dec_layers",
    "model.transformer.num_queries": "transformer.num_queries",
    "model.transformer.dropout": "transformer.dropout.residual",
    "model.costs.label": "loss.matcher.class",
    "model.costs.l1": "loss.matcher.l1",
    "model.costs.giou": "loss.matcher.giou",
    "model.losses.label": "loss.weights.ce",
    "model.losses.l1": "loss.weights.l1",
    "model.losses.giou": "loss.weights.giou",
    "model.schedule.weight_decay": "optimizer.weight_decay",
    "model.schedule.betas.0": "optimizer.betas.0",
    "model.schedule.betas.1": "optimizer.betas.1",
    "data.input.size.0": "val.sizes.0",
    "data.input.size.1": "val.max_size",
    "trainer.gradient_clip_val": "grad_clip_norm",
    **{f"data.input.{k}.{i}": f"val.{k}.{i}" for k in ("mean", "std") for i in range(3)},
}
