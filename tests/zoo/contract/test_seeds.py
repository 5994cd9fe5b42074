"""Seeds: the numbers that every published run was drawn from."""

from __future__ import annotations

import torch

from zoo.contract.seeds import derived_generator, derived_seed


def test_seeds_and_draws_are_what_they_were() -> None:
    assert derived_seed(0, 0) == 2928822574489494037
    assert derived_seed(7, 3, -1) == 8954459588191626762
    assert torch.rand(1, generator=derived_generator(7, 3, -1)).item() == 0.41326820850372314


def test_facts_do_not_run_together() -> None:
    assert derived_seed(1, 23) != derived_seed(12, 3)
