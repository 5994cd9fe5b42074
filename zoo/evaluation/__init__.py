"""AP of boxes and masks, PQ, intervals: from predictions and annotations alone."""

from zoo.evaluation.coco_ap import CocoAP, Evaluation, score_table

__all__ = ["CocoAP", "Evaluation", "score_table"]
