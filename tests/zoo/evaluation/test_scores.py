"""Scores in documents, where there may be none."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.evaluation.scores import interval_in, or_nan, or_null


@pytest.mark.parametrize(("score", "written"), [(0.5, 0.5), (torch.tensor(0.5), 0.5), (math.nan, None)])
def test_nothing_to_score_is_null_and_back(score: float, written: float | None) -> None:
    assert or_null(score) == written
    assert (or_nan(written) == 0.5) is not math.isnan(or_nan(written))


def test_an_interval_has_both_ends_or_none() -> None:
    scores = {"interval": {"AP": [0.1, 0.2], "AP50": [None, 0.2]}}
    assert [interval_in(scores, name) for name in ("AP", "AP50", "AP75")] == [(0.1, 0.2), None, None]
