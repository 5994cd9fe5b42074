"""Old names of modules give the very modules of the new names, say so, and cost nothing until they are used."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from zoo._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module(old):
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{old} is {MOVED[old]} now"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    assert module is new
    assert new.__spec__.name == new.__name__ == MOVED[old]


@pytest.mark.parametrize("old", MOVED)
def test_no_module_has_an_old_name(old):
    """It would hide the moved one, or be hidden."""
    package, _, name = old.rpartition(".")
    places = [Path(place) for place in importlib.import_module(package).__path__]
    assert not any((place / f"{name}.py").exists() or (place / name).exists() for place in places)


def test_names_are_used_as_before():
    program = "from zoo.preprocess import InputContract; from zoo.evaluation import score_table; print('ok')"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "ok\n"
    assert "zoo.preprocess is zoo.contract.preprocess now" in run.stderr
