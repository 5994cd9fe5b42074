"""How many threads a command takes: of cores, load, and what was said or noted."""

import os

import pytest
import torch

from zoo.runs import threads
from zoo.runs.console import Console
from zoo.runs.threads import chosen


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight cores at rest, of which torch would take eight."""
    for name in ("ZOO_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    at = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: at[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: at.__setitem__(0, number))
    return at


def taken(before=None):
    with chosen(Console(), before) as number:
        assert torch.get_num_threads() == number
    assert torch.get_num_threads() == 8
    return number


@pytest.mark.parametrize(("load", "number"), [(0.1, 8), (5.7, 2), (8.0, 1), (40.0, 1)])
def test_what_is_at_work_is_left_alone(monkeypatch, capsys, load, number):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert taken() == number
    said = capsys.readouterr().out
    assert said == (
        ""
        if number == 8
        else f"threads     {number}: 8 cores, and {load} at work on them; ZOO_THREADS=N sets it\n"
    )


def test_the_variable_wins_and_a_launcher_is_obeyed(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert taken() == 8
    monkeypatch.setenv("ZOO_THREADS", "3")
    assert taken(before=2) == 3
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv("ZOO_THREADS", wrong)
        with pytest.raises(ValueError, match="it is a number of threads, from 1"):
            taken()


def test_a_run_that_is_gone_on_with_computes_as_it_began(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    assert taken(before=4) == 4
    assert taken(before=64) == 8  # on another machine
