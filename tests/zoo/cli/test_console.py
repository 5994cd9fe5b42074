"""What the commands print."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from zoo.cli.console import Console


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_file_name_that_is_no_text_is_printed(encoding, monkeypatch):
    name = os.fsdecode(b"caf\xe9.jpg")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    Console().say(f"ü {name}")
    Console(as_json=True).result({"file": name, "ü": 1})
    line, _, document = out.buffer.getvalue().decode(encoding).partition("\n")
    assert line.endswith("caf\\udce9.jpg")
    assert json.loads(document) == {"file": name, "ü": 1}
