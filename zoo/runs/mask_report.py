"""AP of masks and panoptic quality as tables, plain values and manifest fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.contract.labels import LabelMap
from zoo.evaluation.coco_ap import SCORES as AP_SCORES
from zoo.evaluation.coco_ap import Evaluation, format_score
from zoo.evaluation.coco_evaluator import protocol
from zoo.evaluation.mask_scores import SEGM
from zoo.evaluation.panoptic_quality import GROUPS, PanopticEvaluation
from zoo.evaluation.scores import ap_document, interval_in, or_nan, or_null
from zoo.training.module import DetectionModule

NAMES = {"": "all", "_th": "things", "_st": "stuff"}
# fields of a manifest's `measured` that come from masks
MEASURED_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def mask_scores(module: DetectionModule, labels: LabelMap) -> dict[str, Any]:
    """`segm` and `panoptic` of the evaluation that the module has just done; empty without masks or their truth.

    Gathers over ranks: call it on all of them.
    """
    if module.instances is None:
        return {}
    found: dict[str, Any] = {}
    images = module.val_ap.evaluation().num_images
    segm = module.val_masks.segm_evaluation()
    if segm.num_images == images:
        found["segm"] = segm_of(segm, labels)
    if module.panoptic is not None:
        panoptic = module.val_masks.panoptic_evaluation()
        how = module.val_masks.panoptic_protocol(module.panoptic)
        if panoptic.num_images == images:
            found["panoptic"] = panoptic_of(panoptic, labels, how)
    return found


def segm_of(evaluation: Evaluation, labels: LabelMap) -> dict[str, Any]:
    """AP of masks as plain values; nan (nothing to score) becomes null."""
    return {
        **ap_document(evaluation, labels, evaluation.interval(), AP_SCORES),
        "protocol": protocol(iou_type="segm"),
    }


def panoptic_of(evaluation: PanopticEvaluation, labels: LabelMap, how: Mapping[str, Any]) -> dict[str, Any]:
    """PQ, SQ and RQ as plain values, per class too."""
    return {
        "images": evaluation.num_images,
        **{name: or_null(value) for name, value in evaluation.scores.items()},
        "per_class": {
            labels.name_of_head.get(head, f"class {head}"): {"PQ": q.pq, "SQ": q.sq, "RQ": q.rq}
            for head, q in evaluation.per_class.items()
        },
        "protocol": dict(how),
    }


def mask_table(found: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal; none without masks."""
    lines = []
    if "segm" in found:
        lines += ["", "masks (AP of masks)"]
        lines += [
            f"{name:<8}{format_score(or_nan(found['segm'][name]), interval_in(found['segm'], name))}"
            for name in MEASURED_AP
        ]
    if "panoptic" in found:
        scores = found["panoptic"]
        lines += ["", f"{'panoptic':<8}  {'PQ':>5}  {'SQ':>5}  {'RQ':>5}"]
        for group in GROUPS:
            row = "  ".join(f"{_percent(scores[f'{name}{group}']):>5}" for name in ("PQ", "SQ", "RQ"))
            lines.append(f"{NAMES[group]:<8}  {row}")
        lines.append(f"padding: {scores['protocol']['padding']}")
    return lines


def mask_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest's `measured` from a split's scores, without the protocol."""
    fields: dict[str, Any] = {}
    if "segm" in found:
        fields |= {f"{SEGM}{name}": found["segm"][name] for name in MEASURED_AP}
    if "panoptic" in found:
        names = [f"{name}{group}" for group in GROUPS for name in ("PQ", "SQ", "RQ")]
        fields |= {name: found["panoptic"][name] for name in names}
    return fields


def mask_protocols(found: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of each kind of score, beside that of box AP."""
    return {kind: found[kind]["protocol"] for kind in ("segm", "panoptic") if kind in found}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
