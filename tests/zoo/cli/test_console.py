"""What the commands print."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from zoo.cli.main import run_command
from zoo.runs.console import Console


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


def test_control_characters_of_names_are_spelled_out(capsys):
    Console().say("a\x1b[2Jb\x07\r\u202ec\x9bd\ne é")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x07\\r\\u202ec\\x9bd\ne é\n"
    assert run_command(["predict", "rt_detr_tiny", "\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err
