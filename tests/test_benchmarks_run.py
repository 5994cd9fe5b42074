"""Benchmarks by name: the table, what is kept, and that a number outside its kept range ends with 1."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
assert "--tiny" in sys.argv and "--json" in sys.argv and sys.argv[-2:] == ["--rounds", "3"]
rows = [dict(family=f, ours_ms=2.0, ratio_transformers=5.0, ratios=[4.0, 5.0, 6.5]) for f in ("a", "b", "c", "d")]
print("a line before", json.dumps({"rows": rows}), sep="\\n")
"""


@pytest.fixture
def bench(monkeypatch, tmp_path, capsys):
    """Runs it in this process; `made_up` is a script of four families that are five times as fast."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import run

    (tmp_path / "made_up.py").write_text(SCRIPT)
    monkeypatch.setitem(run.BENCHMARKS, "made_up", run.against_transformers(str(tmp_path / "made_up.py")))

    def go(*arguments: str) -> tuple[int, str]:
        results = ["--results", str(tmp_path / "results"), "--quick", "--rounds", "3"]
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments, *results])
        ended = run.main()
        return ended, capsys.readouterr().out

    return go


def test_a_number_outside_its_kept_range_ends_with_1(bench, tmp_path):
    ended, said = bench("made_up")
    assert ended == 0
    assert "| made_up: a | 2.0 | 5.0x | 4.0 to 6.5 |  |  |" in said
    assert not (tmp_path / "results").exists()

    assert bench("made_up", "--keep")[0] == 0
    (file,) = (tmp_path / "results").iterdir()
    kept = json.loads(file.read_text())
    release = ".".join(kept["versions"]["torch"].split(".")[:2])
    assert file.name == f"torch-{release}-quick.json"
    assert kept["rows"]["made_up: a"] == {"ours_ms": 2.0, "ratio": 5.0, "low": 4.0, "high": 6.5}
    ended, said = bench("made_up")
    assert ended == 0
    assert said.count("| yes |") == 4

    kept["rows"]["made_up: b"].update(low=5.1, high=9.0)
    kept["rows"]["made_up: c"].update(low=1.0, high=4.9)
    del kept["rows"]["made_up: d"]
    file.write_text(json.dumps(kept))
    ended, said = bench("made_up")
    assert ended == 1
    lines = [line for line in said.splitlines() if line.startswith("| made_up")]
    assert [line.split("|")[-2].strip() for line in lines] == ["yes", "NO, less", "NO, more", ""]
    assert f"no longer within the range of {file}: made_up: b; made_up: c; " in said
    assert json.loads(file.read_text()) == kept

    file.write_text(json.dumps(kept | {"machine": "an abacus"}))
    ended, said = bench("made_up")
    assert ended == 0
    assert "is of another machine (an abacus): nothing is compared" in said


def test_a_script_that_fails_says_why(bench, tmp_path):
    (tmp_path / "made_up.py").write_text("raise ValueError('no such data')")
    with pytest.raises(SystemExit, match=r"^made_up: .*made_up\.py ended with 1: ValueError: no such data$"):
        bench("made_up")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss", "train_step", "evaluation"])
def test_real_ones(bench, name, tmp_path):
    """Their smallest sizes, as they are called."""
    ended, _ = bench(name, "--keep")
    assert ended == 0
    (file,) = (tmp_path / "results").iterdir()
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) >= 4
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
