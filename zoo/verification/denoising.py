"""Denoising queries of RT-DETR and its successors against official ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.contract.batch import Batch, OutputSet, Pairs, Targets
from zoo.contract.boxes import cxcywh_to_xyxy
from zoo.layers.denoising import DenoisingQueries, attention_block, contrastive_denoising, positive_pairs
from zoo.layers.denoising_network import DenoisingNetwork
from zoo.verification.cases import Case, Comparison, compare, compare_exact
from zoo.verification.criterion import whole_step


def run_denoising(case: Case, empty_group: bool = False, uncross: bool = False) -> list[Comparison]:
    """Groups, attention mask and positives exactly; boxes and labels without noise; their ranges with noise.

    Args:
        case: objects, and the official queries with and without noise.
        empty_group: what the family does with a step without objects, see `contrastive_denoising`.
        uncross: what it does with corners that cross.
    """
    config, targets = case.facts["config"], case.targets()
    batch = Batch(
        images=torch.empty(len(targets.counts), 3, 0, 0),
        padding=torch.empty(len(targets.counts), 0, 0, dtype=torch.bool),
        targets=targets,
        image_ids=tuple(range(len(targets.counts))),
        original_sizes=((1, 1),) * len(targets.counts),
        step=whole_step(targets),
    )

    def queries(label_noise: float, box_noise: float) -> DenoisingQueries | None:
        return contrastive_denoising(
            batch,
            num_classes=config["num_classes"],
            num_queries=config["num_queries"],
            num_denoising=config["num_denoising"],
            label_noise=label_noise,
            box_noise=box_noise,
            empty_group=empty_group,
            uncross=uncross,
        )

    clean = queries(0.0, 1e-30)
    stored = "clean/" if any(key in case for key in ("clean/num_group", "clean/returns_none")) else ""
    if f"{stored}returns_none" in case:
        return [compare_exact("no denoising part", clean is None, bool(case[f"{stored}returns_none"]))]
    assert clean is not None
    width, device = max(1, *targets.counts), clean.labels.device
    block = attention_block(clean.groups, width, config["num_queries"], device)
    pairs = positive_pairs(targets.counts, clean.groups, width, device)
    results = [
        compare_exact("groups", clean.groups, int(case[f"{stored}num_group"])),
        compare_exact("mask", clean.blocked, case.bits(f"{stored}attn_mask")),
        compare_exact("mask builder", block, case.bits(f"{stored}attn_mask")),
        compare_exact("positives", clean.pairs.query, case[f"{stored}positive_idx"]),
        compare_exact("labels", clean.labels, case["clean/labels"].long()),
        compare("boxes", clean.boxes_unactivated, case["clean/bbox_unact" if stored else "clean/bbox"], 1e-5),
        compare_exact("pairs", pairs.query, case[f"{stored}positive_idx"]),
    ]
    noisy = queries(1.0, 1.0)
    assert noisy is not None
    return [*results, *_noise_ranges(case, clean, noisy, width, config["num_classes"])]


def _noise_ranges(
    case: Case, clean: DenoisingQueries, noisy: DenoisingQueries, width: int, num_classes: int
) -> list[Comparison]:
    """Padding keeps its label; corners move by up to half the box's size (positives) or from half to all of it."""
    real = case["clean/labels"].long() != num_classes
    noised_boxes = real if real.any() else ~real  # padding alone has noise where there is no object at all
    before = clean.boxes_unactivated.sigmoid().double()
    noised = noisy.boxes_unactivated.sigmoid().double()
    after = cxcywh_to_xyxy(noised)
    half = before[..., 2:].repeat(1, 1, 2) / 2
    negative = (torch.arange(real.shape[1]) // width % 2).double()[None, :, None]
    corners = cxcywh_to_xyxy(before)
    moved = (after - corners).abs() / half.clamp(min=1e-9)
    # where corners have crossed and the size was kept, each is where the other one went
    swapped = (after[..., [2, 3, 0, 1]] - corners).abs() / half.clamp(min=1e-9)
    clipped = (after < 1e-4) | (after > 1 - 1e-4)
    slack = 2e-3  # the logit clamps at 1e-5
    # the corners of a negative may cross; its size is then clamped to 0 and its corners are lost
    crossed = (noised[..., 2:] < 1e-4).repeat(1, 1, 2) & (negative > 0)

    def within(shift: Tensor) -> Tensor:
        return (shift <= 1 + negative + slack) & ((shift >= negative - slack) | clipped)

    in_range = within(moved) | (within(swapped) & (negative > 0)) | crossed
    return [
        compare_exact("padding keeps its label", bool((noisy.labels[~real] == num_classes).all()), True),
        compare_exact("labels in range", bool((noisy.labels[real] < num_classes).all()), True),
        compare_exact("corner shifts in range", bool(in_range[noised_boxes].all()), True),
        compare_exact("something moved", bool(moved[noised_boxes].max() > 0.5), True),
    ]


def stored_denoising(case: Case, batch: str = "") -> DenoisingQueries | None:
    """The denoising queries of the official run for the batch of this prefix, None if it had none."""
    prefix = f"{batch}dn/"
    if f"{prefix}labels" not in case:
        return None
    return DenoisingQueries(
        labels=case[f"{prefix}labels"].long(),
        boxes_unactivated=case[f"{prefix}bbox_unact"],
        blocked=case.bits(f"{prefix}attn_mask"),
        pairs=stored_pairs(case, batch),
        groups=int(case[f"{prefix}num_group"]),
    )


def supervised_with_stored_denoising(
    case: Case, network: DenoisingNetwork
) -> Callable[[str], tuple[Sequence[OutputSet], Targets]]:
    """For the prefix of a batch's arrays: what the network supervises on it, and its targets."""

    def outputs(prefix: str) -> tuple[Sequence[OutputSet], Targets]:
        maps = network.encoder(network.backbone(case.images(f"{prefix}images")))
        return network.decoder(maps, stored_denoising(case, prefix)).supervised, case.targets(prefix)

    return outputs


def stored_pairs(case: Case, batch: str = "") -> Pairs:
    """The stored positive queries as pairs: in each image, the k-th of each group with object k."""
    prefix, counts = f"{batch}dn/", case.targets(batch).counts
    groups = int(case[f"{prefix}num_group"])
    objects = torch.arange(sum(counts)).split(counts)
    image = torch.arange(len(counts)).repeat_interleave(case[f"{prefix}positive_idx_count"])
    return Pairs(image, case[f"{prefix}positive_idx"], torch.cat([o.repeat(groups) for o in objects]))
