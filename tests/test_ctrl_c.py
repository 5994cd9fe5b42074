"""Ctrl-C while a test runs a command in its own process ends the tests, not that test alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os, subprocess, pytest
from zoo.cli.main import run_command

@pytest.mark.parametrize("number", [1, 2])
def test_one(number, monkeypatch):
    from zoo.cli.models import listing
    sender = {sender}
    monkeypatch.setattr(listing, "list_models", lambda *a: sender() or __import__("time").sleep(20))
    assert run_command(["list"]) == 130
"""
# in the background of a script, where Ctrl-C is ignored, as at a terminal
RUN = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))
"""
BY_A_PERSON = 'lambda: subprocess.run(["kill", "-INT", str(os.getpid())])'
BY_THE_TEST = "lambda: os.kill(os.getpid(), 2)"


@pytest.mark.parametrize(("sender", "code", "passed"), [(BY_A_PERSON, 2, 1), (BY_THE_TEST, 0, 2)])
def test_ctrl_c_ends_the_tests_unless_a_test_has_sent_it(tmp_path, sender, code, passed):
    (tmp_path / "test_two.py").write_text(TESTS.format(sender=sender))
    support = str(Path(__file__).parent / "support")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([support, str(Path(__file__).parents[1])])}
    options = ["-p", "ctrl_c", "-p", "no:cacheprovider", "-q", "test_two.py"]
    command = [sys.executable, "-c", RUN, *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout.count("Ctrl-C") == (1 if code else 0)
    assert done.stdout.splitlines()[0].count(".") == passed or f"{passed} passed" in done.stdout
