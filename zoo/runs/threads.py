"""How many threads a computation on the CPU takes: what the machine has free, so that it is not slower for more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from datamodules.images.decodable import usable_cores
from zoo.runs.console import Console

VARIABLE = "ZOO_THREADS"
# what a launcher, or the user, has set for the libraries that compute
_SET_BY_OTHERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def chosen(console: Console, before: int | None = None) -> Iterator[int]:
    """The number of torch's threads, for a while; said where it is less than torch would take.

    Sums are formed in another order with another number of threads, so that results differ in their last digits.

    Args:
        console: for the user.
        before: what the run took that is gone on with, so that it computes as it has begun.

    Raises:
        ValueError: the variable is no number.
    """
    of_torch = torch.get_num_threads()
    number, why = _number(of_torch, before)
    if number != of_torch:
        console.say(f"threads     {number}: {why}; {VARIABLE}=N sets it")
        torch.set_num_threads(number)
    try:
        yield number
    finally:
        torch.set_num_threads(of_torch)


def _number(of_torch: int, before: int | None) -> tuple[int, str]:
    given = os.environ.get(VARIABLE, "")
    if given:
        if not given.isdecimal() or not 1 <= int(given) <= 4096:
            raise ValueError(f"{VARIABLE} is {given[:40]!r}; it is a number of threads, from 1")
        return int(given), f"{VARIABLE} says so"
    if any(os.environ.get(name) for name in _SET_BY_OTHERS) or torch.cuda.is_available():
        return of_torch, "set by the environment"
    cores = usable_cores()
    if before is not None:
        return min(before, cores), "as the run has begun"
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(of_torch, cores, round(cores - busy))), f"{cores} cores, and {busy:.1f} at work on them"
