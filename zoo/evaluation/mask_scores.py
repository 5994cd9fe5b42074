"""AP of masks and panoptic quality of an evaluation, from the predictions that its box AP is measured on."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from zoo.contract.batch import Batch, Predictions
from zoo.evaluation.coco_ap import CocoAP, Evaluation
from zoo.evaluation.panoptic_quality import PanopticEvaluation, PanopticQuality
from zoo.prediction.masks import InstanceMasks, PanopticRule, sizes_without_padding

log = logging.getLogger(__name__)
SEGM = "segm_"  # prefix of the names in `zoo.evaluation.coco_ap.SCORES` for scores of masks


class MaskScores(nn.Module):
    """Collects masks over an evaluation; each kind is scored if the data have its ground truth."""

    def __init__(self) -> None:
        super().__init__()
        self.segm = CocoAP(iou_type="segm")
        self.panoptic = PanopticQuality()
        self.squeezed = SumMetric()  # images whose panoptic masks were resized together with padding
        self._said: set[str] = set()

    def reset(self) -> None:
        """Forgets every image."""
        for metric in (self.segm, self.panoptic, self.squeezed):
            metric.reset()

    def update(
        self,
        predictions: Predictions,
        batch: Batch,
        instances: InstanceMasks,
        rule: PanopticRule | None,
        things: Collection[int],
    ) -> None:
        """Adds the images of one batch; masks are computed only for the kinds of ground truth that it has.

        Args:
            predictions: with masks, on any device.
            batch: as the network saw it.
            instances: how masks of instances are made.
            rule: how panoptic segments are made; None for a model of instances only.
            things: head indices of countable classes.
        """
        sizes = sizes_without_padding(batch)
        if batch.annotations is not None and batch.annotations.segmentations is not None:
            self.segm.update(instances(predictions, sizes, batch.original_sizes), batch)
        if batch.panoptic is not None and rule is not None:
            self.panoptic.update(rule(predictions, sizes, batch.original_sizes, things), batch)
            padded = (batch.images.shape[-2], batch.images.shape[-1])
            self.squeezed.update(0 if rule.crop_padding else sum(size != padded for size in sizes))

    def compute(self, num_images: int, rule: PanopticRule | None) -> dict[str, Tensor]:
        """The scores by the names under which they are logged; a kind is left out if an image lacks its ground truth.

        Gathers over ranks: call it on all of them.

        Args:
            num_images: images of the whole evaluation.
            rule: as for `update`.
        """
        scores: dict[str, float] = {}
        if self._complete("AP of masks", self.segm_evaluation().num_images, num_images):
            scores |= {f"{SEGM}{name}": value for name, value in self.segm_evaluation().scores.items()}
        if rule is not None and self._complete("PQ", self.panoptic_evaluation().num_images, num_images):
            scores |= self.panoptic_evaluation().scores
        return {name: torch.tensor(value) for name, value in scores.items()}

    def segm_evaluation(self) -> Evaluation:
        """The AP of masks; of no images if the data have no masks."""
        return self.segm.evaluation()

    def panoptic_evaluation(self) -> PanopticEvaluation:
        """The panoptic quality; of no images if the data have no segments."""
        return self.panoptic.evaluation()

    def panoptic_protocol(self, rule: PanopticRule) -> dict[str, Any]:
        """What PQ was measured with: evaluator, rule, and what padding did to the masks.

        Gathers over ranks: call it on all of them.
        """
        squeezed = int(self.squeezed.compute())
        if rule.crop_padding:
            padding = "cut off before masks are resized"
        elif squeezed:
            padding = f"{squeezed} images had some, squeezed into them as the official code does"
        else:
            padding = "no image had any"
        return {
            **self.panoptic.protocol(),
            "score_threshold": rule.score_threshold,
            "min_area": rule.min_area,
            "padding": padding,
        }

    def _complete(self, what: str, found: int, num_images: int) -> bool:
        """Whether every image has the ground truth; logs a warning if not."""
        if found == num_images:
            return True
        if what not in self._said:
            self._said.add(what)
            lack = "have no" if not found else f"lack, for {num_images - found} of {num_images} images, the"
            truth, way_out = (
                ("panoptic segments", "read panoptic data (datamodules.panoptic), or set panoptic: null")
                if what == "PQ"
                else ("outlines of objects", "read the data with masks: true")
            )
            log.warning("%s is not measured: the data %s %s; %s", what, lack, truth, way_out)
        return False
