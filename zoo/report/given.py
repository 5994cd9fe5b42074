"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from datamodules.index import AnnotationIndex, Fault
from zoo.analysis.confusion import Confusion, confusion
from zoo.analysis.tide import TideErrors, tide_errors
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import Integers
from zoo.evaluation.operating_point import OperatingPoint, Verdicts, point_of, verdicts, verdicts_by_class

DEFAULT_THRESHOLD = 0.3  # of what is shown where no threshold is best


@dataclass(frozen=True)
class Training:
    """How the weights were made."""

    series: Mapping[str, Sequence[tuple[float, float]]]  # (step, value) of losses and scores
    recipe: str
    facts: Mapping[str, str]  # such as time, steps, hardware, versions, in the order to show them


@dataclass(frozen=True, eq=False)
class Given:
    """One evaluation, the data it is of, and what else is known.

    Attributes:
        model: its name, for the title.
        split: `val` or `test`.
        place: folder or address of the data.
        evaluation: of boxes.
        labels: of the head.
        index: the images of the split.
        train: what the model could learn from; None where there is none.
        contract: how the network sees an image; None where only its detections are known.
        precision: that the thresholds are to reach; None: they are those of the best F1.
        faults: of the data, as `zoo data check` finds them.
        masks: AP of masks and panoptic quality as `zoo.runs.mask_report.mask_scores` has them.
        training: of the run that made the weights; None of weights from elsewhere.
    """

    model: str
    split: str
    place: str
    evaluation: Evaluation
    labels: LabelMap
    index: AnnotationIndex
    train: AnnotationIndex | None = None
    contract: InputContract | None = None
    precision: float | None = None
    faults: Sequence[Fault] = ()
    masks: Mapping[str, Any] = field(default_factory=dict)
    training: Training | None = None

    def name_of(self, head: int) -> str:
        """Of a class."""
        return self.labels.name_of_head.get(head, f"class {head}")

    @property
    def object_counts(self) -> dict[int, int]:
        """Objects of each class, crowds aside, by head index."""
        return {head: int(m.objects.sum()) for head, m in self.evaluation.matches.items()}

    @cached_property
    def errors(self) -> TideErrors:
        """Every error by its kind."""
        return tide_errors(self.evaluation.data)

    @cached_property
    def every(self) -> Verdicts:
        """The detections of all classes."""
        return verdicts(self.evaluation)

    @cached_property
    def point(self) -> OperatingPoint | None:
        """The best threshold over all classes."""
        return point_of(self.every, self.precision)

    @cached_property
    def points(self) -> dict[int, OperatingPoint | None]:
        """The best threshold of each class, by head index."""
        return {h: point_of(v, self.precision) for h, v in verdicts_by_class(self.evaluation).items()}

    @property
    def threshold(self) -> float:
        """From which detections are shown and counted in the confusion matrix."""
        return DEFAULT_THRESHOLD if self.point is None else self.point.threshold

    @cached_property
    def confusion(self) -> Confusion:
        """At the threshold."""
        return confusion(self.evaluation.data, self.threshold)

    @cached_property
    def matrix(self) -> Integers:
        """[K + 1, K + 1] the counts of `confusion`, over all classes of the evaluation."""
        return self.confusion.matrix(self.evaluation.data.classes)

    @cached_property
    def rows(self) -> Integers:
        """[N] the row in `index` of each image of the evaluation."""
        order = np.argsort(self.index.image_ids, kind="stable")
        ids = self.evaluation.data.images[:, 0]
        return order[np.searchsorted(self.index.image_ids[order], ids)]
