"""The numbers of a recipe by dotted key, and their comparison with an extract of published facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

# numbers that are ours: they change neither a sample nor a step
OURS = (
    "seed_everything", "data.seed", "data.batch_size", "data.eval_batch_size", "data.num_workers",
    "trainer.num_nodes", "trainer.check_val_every_n_epoch", "checkpoint.save_top_k",
)  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """A recipe, or an extract."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


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


def assert_as_published(
    name: str,
    recipe: dict[str, Any],
    published: dict[str, Any],
    where: Mapping[str, str],
    elsewhere: tuple[str, ...],
    sometimes: Mapping[str, str] | None = None,
) -> None:
    """Every number of a recipe is the published one, one of `OURS`, or compared by another test.

    Args:
        name: of the recipe, for the message.
        recipe: whole.
        published: its entry in the extract.
        where: key in the recipe -> key in the entry; both have it.
        elsewhere: what the keys start with that another test compares.
        sometimes: as `where`, of numbers that the recipe has exactly where the entry has them.
    """
    entry, found = dict(leaves(published)), numbers(recipe)
    pairs = [(key, at, found.pop(key), entry[at]) for key, at in where.items()]
    pairs += [(key, at, found.pop(key, None), entry.get(at)) for key, at in (sometimes or {}).items()]
    for key, at, ours, theirs in pairs:
        assert ours == theirs, f"{name}: {key} is {ours}, not the published {at}, {theirs}"
    unknown = [k for k in found if k not in OURS and not k.startswith(elsewhere)]
    assert unknown == [], f"{name}: numbers that no test compares with anything: {unknown}"


def rates(
    groups: Iterable[Mapping[str, Any]], lr: float | None = None, weight_decay: float | None = None
) -> list[tuple[float | None, float | None]]:
    """(learning rate, weight decay) of each rule or optimizer group; the given ones where it has none of its own."""
    return [(g.get("lr", lr), g.get("weight_decay", weight_decay)) for g in groups]


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
