"""How many cores a process may use."""

import os

import pytest

from datamodules.images import decodable
from datamodules.images.decodable import usable_cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", 8),
        ("250000 100000", 2),
        ("10000 100000", 1),
        ("6400000 100000", 8),
        ("x", 8),
        (None, 8),
    ],
)
def test_the_quota_of_a_container_counts(monkeypatch, tmp_path, text, cores):
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text)
    monkeypatch.setattr(decodable, "_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores() == cores
