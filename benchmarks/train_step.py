"""Does one training step cost less than transformers' with the same settings?

Forward, loss, backward, clipping, AdamW and, where the recipe has one, the moving average; the recipes'
full-size networks with random weights; process CPU time, both in one process in turns:
    python benchmarks/train_step.py [--rounds 5] [--threads 1] [--side 256] [--families detr] [--tiny] [--json]
What is the same and what is not is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from loss import CountTransfers, timed
from pairs import (
    OF_DECODER,
    OF_TRANSFORMER,
    PAIRS,
    reasonable_norms,
    their_deformable,
    their_detr,
    their_rt_detr,
    with_sizes,
)
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from zoo.architectures import deformable_detr, detr
from zoo.contract.batch import Batch, Step, Targets
from zoo.training.module import DetectionModule, build_module
from zoo.training.preflight import Precision
from zoo.training.schedule import ParamRule, Schedule

RECIPES = Path(__file__).parents[1] / "recipes"
CLIP = 0.1
OBJECTS = (9, 5)  # in each image
PADDED = ("detr", "deformable_detr")  # images of other families are all of one size
FROZEN_DETR = r"model\.backbone\.model\.(conv1|bn1|layer1)\."


@dataclass(frozen=True)
class Family:
    """A recipe and how transformers says the same.

    Attributes:
        recipe: path below recipes/.
        model: builds transformers' network.
        rules: the recipe's optimizer rules in transformers' parameter names.
        from_theirs: converts their state dict to ours, so that both start equal; None where there is none.
        tiny: for `--tiny`, arguments of the recipe and of transformers.
    """

    recipe: str
    model: Callable[..., PreTrainedModel]
    rules: list[ParamRule]
    from_theirs: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None
    tiny: tuple[dict[str, dict[str, Any]], dict[str, Any]]


DROPOUTS = {
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
}  # theirs default to less than the official ones
FAMILIES = {
    "detr": Family(
        recipe="detr/r50_coco_500e",
        model=with_sizes(their_detr, auxiliary_loss=True, **DROPOUTS),
        rules=[ParamRule(match=FROZEN_DETR, freeze=True), ParamRule(match=r"model\.backbone\.", lr=1e-5)],
        from_theirs=detr.from_published,
        tiny=OF_TRANSFORMER,
    ),
    "deformable_detr": Family(
        recipe="deformable_detr/r50_coco_50e",
        model=with_sizes(their_deformable, auxiliary_loss=True, class_cost=2, **DROPOUTS),
        rules=[
            ParamRule(match=FROZEN_DETR, freeze=True),
            ParamRule(match=r"model\.backbone\.|reference_points|sampling_offsets", lr=2e-5),
        ],
        from_theirs=deformable_detr.from_published,
        tiny=OF_TRANSFORMER,
    ),
    "rt_detr": Family(
        recipe="rt_detr/r50_coco_72e",
        model=their_rt_detr,
        rules=[
            ParamRule(match=r"model\.backbone\.model\.embedder\.", freeze=True),
            ParamRule(match=r"model\.backbone\.", lr=1e-5),
            ParamRule(match=r"bias|norm.*weight", weight_decay=0.0),
        ],
        from_theirs=None,
        tiny=OF_DECODER,
    ),
    "dfine": Family(
        recipe="dfine/l_coco_80e",
        model=PAIRS["dfine_l"].theirs,
        rules=[
            ParamRule(match=r"model\.backbone\.model\.embedder\.", freeze=True),
            ParamRule(match=r"model\.backbone\.", lr=1.25e-5),
            ParamRule(match=r"norm", weight_decay=0.0),
        ],
        from_theirs=None,
        tiny=OF_DECODER,
    ),
}


def recipe_module(family: Family, tiny: bool) -> DetectionModule:
    """Our network, criterion and schedule from the recipe, random weights, one image size."""
    recipe = yaml.safe_load((RECIPES / f"{family.recipe}.yaml").read_text())
    assert recipe["trainer"]["gradient_clip_val"] == CLIP
    arguments = recipe["model"]["init_args"]
    if "multi_scale" in arguments:
        arguments["multi_scale"] = []
    if tiny:
        for part, sizes in family.tiny[0].items():
            arguments[part].update(sizes)
    return build_module(recipe["model"], backbone_weights="random")


def random_batch(
    size: tuple[int, int], classes: int, padded: bool, objects: Sequence[int] = OBJECTS
) -> Batch:
    """One image for each number of objects; a part of the last one is padding if the family pads."""
    generator, (height, width) = torch.Generator().manual_seed(0), size
    images = torch.randn(len(objects), 3, height, width, generator=generator)
    padding = torch.zeros(len(objects), height, width, dtype=torch.bool)
    if padded:
        padding[-1, :, width * 7 // 8 :] = True
        images = images.masked_fill(padding[:, None], 0.0)
    count = sum(objects)
    boxes = torch.rand(count, 4, generator=generator) * 0.3 + torch.tensor([0.3, 0.3, 0.1, 0.1])
    labels = torch.randint(classes, (count,), generator=generator)
    step = Step(torch.tensor(objects), size, 0)
    ids = tuple(range(len(objects)))
    return Batch(images, padding, Targets(labels, boxes, tuple(objects)), ids, (size,) * len(objects), step)


def our_step(
    module: DetectionModule, batch: Batch, precision: Precision = nullcontext, fused: bool = True
) -> tuple[Callable[[], None], Callable[[], None]]:
    """(whole step, forward + loss + backward); forward and loss in the precision."""
    optimizer = module.schedule.optimizer(module.network, fused)
    parameters = [p for p in module.network.parameters() if p.requires_grad]
    module.train()

    def gradients() -> None:
        optimizer.zero_grad()
        with precision():
            total = torch.stack([value.sum() for value in module.losses(batch).values()]).sum()
        total.backward()

    def step() -> None:
        gradients()
        clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        if module.ema is not None:
            module.ema.update(module.network)

    return step, gradients


def their_step(
    model: PreTrainedModel,
    schedule: Schedule,
    batch: Batch,
    ema_decay: float | None,
    precision: Precision = nullcontext,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """(whole step, forward + loss + backward) with torch's own moving average, as theirs has none."""
    optimizer = schedule.optimizer(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = None
    if ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
    counts = batch.targets.counts
    parts = zip(batch.targets.labels.split(counts), batch.targets.boxes.split(counts), strict=True)
    labels = [{"class_labels": classes, "boxes": boxes} for classes, boxes in parts]
    mask = (~batch.padding).long()
    model.train()

    def gradients() -> None:
        optimizer.zero_grad()
        with precision():
            loss = model(pixel_values=batch.images, pixel_mask=mask, labels=labels).loss
        loss.backward()

    def step() -> None:
        gradients()
        clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

    return step, gradients


@torch.no_grad()
def output_difference(module: DetectionModule, model: PreTrainedModel, batch: Batch) -> float:
    """Largest difference of an evaluation's logits or boxes."""
    ours = module.network.eval()(batch).final
    theirs = model.eval()(pixel_values=batch.images, pixel_mask=(~batch.padding).long())
    logits = (ours.logits - theirs.logits).abs().max()
    return float(torch.maximum(logits, (ours.boxes - theirs.pred_boxes).abs().max()))


def measure(name: str, side: int, rounds: int, tiny: bool) -> dict[str, object]:
    """One row of the table."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    module, model = recipe_module(family, tiny), family.model(**(family.tiny[1] if tiny else {}))
    batch = random_batch((side, side), module.num_classes, padded=name in PADDED)
    for network in (module.network, model):
        reasonable_norms(network)
    difference = None
    if family.from_theirs is not None:
        module.network.load_state_dict(family.from_theirs(model.state_dict()))
        difference = output_difference(module, model, batch)
        if difference > 1e-2:
            raise SystemExit(f"{name}: not the same network, outputs differ by {difference:.1e}")
    decay = None if module.ema is None else module.ema.config.decay
    ours, our_gradients = our_step(module, batch)
    theirs, their_gradients = their_step(model, replace(module.schedule, rules=family.rules), batch, decay)
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (module.network, model)]
    mine, other = [], []
    for index in range(-1, rounds):  # the first is the warm-up
        pair = [(ours, mine), (theirs, other)]
        for run, times in pair if index % 2 else reversed(pair):
            times.append(timed(run))
    mine, other = mine[1:], other[1:]
    counts = []
    for run in (our_gradients, their_gradients):
        assert batch.step is not None
        with CountTransfers([batch.step.counts]) as counter:
            run()
        counts.append(counter.count)
    return {
        "family": name,
        "size": f"{family.recipe}, batch 2, {side} px, {sum(OBJECTS)} objects",
        "ours_ms": round(statistics.median(mine), 1),
        "transformers_ms": round(statistics.median(other), 1),
        "ratio_transformers": round(statistics.median(b / a for a, b in zip(mine, other, strict=True)), 2),
        "ratios": [round(b / a, 2) for a, b in zip(mine, other, strict=True)],
        "transfers": counts[0],
        "transfers_transformers": counts[1],
        "trained_parameters": trained,
        "output_difference": difference,
    }


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = f"{platform.processor() or platform.machine()}, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {machine}", flush=True)
    rows = []
    for name in options.families:
        row = measure(name, options.side, options.rounds, options.tiny)
        rows.append(row)
        print(f"\n{name}: {row['size']}, whole step, median of {options.rounds}, CPU time")
        print(f"  ours {row['ours_ms']} ms   transformers {row['transformers_ms']} ms   ", end="")
        print(f"{row['ratio_transformers']}x less, pair by pair {row['ratios']}")
        print(
            f"  device-to-host transfers: ours {row['transfers']}, transformers {row['transfers_transformers']}"
        )
        print(
            f"  trained parameters {row['trained_parameters']}, outputs differ by {row['output_difference']}",
            flush=True,
        )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
