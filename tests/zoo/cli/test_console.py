"""What the commands print."""

from __future__ import annotations

import io
import json
import os
import subprocess
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


ESCAPES = "\x1b]0;title\x07 \x9b2J \r \u202egnp \x08"


def test_the_log_and_json_move_no_cursor(tmp_path):
    """In a process of its own: under pytest the log has handlers."""
    folder = tmp_path / "registry" / "rt_detr_tiny.a" / "1"
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text(json.dumps({"name": ESCAPES, ESCAPES: ESCAPES}))
    for arguments in (["list", "--json"], ["data", "check", ESCAPES]):
        command = [
            sys.executable,
            "-m",
            "zoo.cli.main",
            *arguments,
            *(["--registry", "registry"] if "data" not in arguments else []),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        for said in (done.stdout.decode(), done.stderr.decode()):
            assert all(c.isprintable() or c == "\n" for c in said), said
        if arguments[0] == "list":
            assert b"left out of the list" in done.stderr
            assert b"\\x1b]0;title" in done.stderr


def test_json_on_stdout_spells_what_a_terminal_obeys(capsys):
    Console(as_json=True).result({"name": ESCAPES, "word": "wörter"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"name": ESCAPES, "word": "wörter"}
    assert all(c.isprintable() or c == "\n" for c in said)
    Console(as_json=True).result({"word": "wörter"})
    assert "wörter" in capsys.readouterr().out
