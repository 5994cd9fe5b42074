"""Learning rates over a training: what the published schedules do and what is refused."""

from itertools import pairwise

import pytest

from zoo.training.ema import EmaConfig
from zoo.training.schedule import Schedule


def schedule(**changes) -> Schedule:
    given = {"lr": 1.0, "weight_decay": 0.0, "rules": [], "warmup_steps": 4, "drop_epochs": []}
    return Schedule(**(given | {"global_batch_size": 2} | changes))


def flat(**changes) -> Schedule:
    given = {"decay": "flat_cosine", "flat_epochs": 2, "tail_epochs": 1, "final_factor": 0.5}
    return schedule(**(given | {"first_factor": 0.002} | changes))


def rates(schedule: Schedule, steps: int = 50, per_epoch: int = 10) -> list[float]:
    return [schedule.factor(step, per_epoch, steps) for step in range(steps)]


def test_d_fine_warms_up_in_a_line_and_stays():
    assert rates(schedule(), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_flat_cosine_is_one_step_late():
    """Step 0 has what the unused warm-up left, step 1 has none, step k what the formula gives for k - 1."""
    assert rates(flat())[:7] == [0.002, 0.0, 1 / 16, 4 / 16, 9 / 16, 1.0, 1.0]


def test_flat_cosine_falls_between_the_flat_part_and_the_tail():
    got = rates(flat())
    assert got[20:22] == [1.0, 1.0]  # two epochs of 10, one step late
    assert got[31] == pytest.approx(0.75)  # in the middle of the cosine
    assert got[41:] == [0.5] * 9
    assert all(a > b for a, b in pairwise(got[21:42]))


def test_a_flat_part_beyond_the_end_has_no_tail():
    assert rates(flat(flat_epochs=7800))[5:] == [1.0] * 45


def test_flat_cosine_without_warmup():
    assert rates(flat(warmup_steps=0, first_factor=1.0))[:5] == [1.0] * 5


def test_steps_of_the_average_without_a_ramp():
    config = EmaConfig(decay=0.9999, warmup_steps=0)
    assert [config.decay_at(n) for n in (1, 2, 1000)] == [0.9999] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flat_epochs": 3}, "schedule.flat_epochs is for decay: flat_cosine, and decay is constant"),
        ({"decay": "cosine", "tail_epochs": 1}, "schedule.tail_epochs is for decay: flat_cosine"),
        ({"first_factor": 0.002}, "schedule.first_factor is for decay: flat_cosine"),
        (
            {"decay": "flat_cosine", "drop_epochs": [3]},
            r"drop_epochs is \[3\] and decay: flat_cosine has none",
        ),
        ({"decay": "flat_cosine", "tail_epochs": -1}, "schedule.tail_epochs is -1; it must not be below 0"),
        ({"restart_epoch": 0}, "schedule.restart_epoch is 0; epochs count from 0"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        schedule(**changes)
