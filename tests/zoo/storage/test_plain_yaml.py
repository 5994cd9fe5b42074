"""Plain YAML: what is read as what, and what is refused in one line before it costs anything."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from zoo.storage.plain_yaml import PlainYamlError, parse_yaml, read_yaml


def names(text: str):
    return parse_yaml(text, "data.yaml", as_text=("names", "val"))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[no, yes, on, off]", ["no", "yes", "on", "off"]),
        ("[0042, 12:30, 1_000, 1e3, 2026-01-01, .5, .nan]",
         ["0042", "12:30", "1_000", "1e3", "2026-01-01", ".5", ".nan"]),
        ("[null, ~, '', \"a b\"]", ["null", "~", "", "a b"]),
        ("{0: 007, 1: true}", {"0": "007", "1": "true"}),
        ("\n- no\n- {a: [yes]}", ["no", {"a": ["yes"]}]),
        ("[" + "9" * 5000 + "]", ["9" * 5000]),
    ],
)  # fmt: skip
def test_names_are_what_is_written(written, read):
    assert names(f"names: {written}") == {"names": read}


def test_an_absent_path_is_none_and_other_values_keep_their_kind():
    text = "val:\nnames: [a]\nnc: 1\nratio: 1.5\ndownload: null\nrect: false\nroot: 0042\nwhen: 12:30"
    assert names(text) == {
        "val": None, "names": ["a"], "nc": 1, "ratio": 1.5, "download": None, "rect": False, "root": "0042",
        "when": "12:30",
    }  # fmt: skip


def test_what_pyyaml_writes_is_read_back():
    value = {
        "texts": ["no", "0042", "12:30", "1e3", "1e-4", "null", "<<", "=", "", "1_0", "2026-01-01", "0x1f", "é\u2028"],
        "numbers": [0, -3, 10**30, 1.5, -2e-30, 1e300, 0.1],
        "flags": [True, False, None],
        "folded": "word " * 60,
        "empty": [{}, []],
    }  # fmt: skip
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "dump") == value
    shared = [1, 2]
    assert parse_yaml(yaml.safe_dump({"a": shared, "b": shared}), "dump") == {"a": [1, 2], "b": [1, 2]}


def test_aliases_give_copies_and_merged_keys_give_way():
    read = parse_yaml("a: &a {x: [1], y: 2}\nb: {y: 3, <<: *a}\nc: *a", "x")
    assert read["b"] == {"y": 3, "x": [1]}
    read["c"]["x"].append(2)
    assert read["a"]["x"] == [1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: the key 'a' is given twice"),
        ("names:\n  0: a\n  0: b", "f.yaml:3: the key '0' is given twice"),
        ("\na: !!python/object/apply:os.system ['true']", "f.yaml:2: the tag 'tag:yaml.org,2002:python/"),
        ("a: !x 1", "f.yaml:1: the tag '!x'"),
        ("a: 1\n---\nb: 2", "f.yaml:2: a second document"),
        ("a: " + "[" * 40 + "]" * 40, "f.yaml:1: nested deeper than 32"),
        ("a:\n  " + "9" * 5000, "f.yaml:2: a number of 5000 characters"),
        ("a: 1.0e+999", "f.yaml:1: 1.0e+999 is no finite number"),
        ("a: .inf", "f.yaml:1: .inf is no finite number"),
        ("a: &a [*a]", "f.yaml:1: *a has no value before it"),
        ("a: *b", "f.yaml:1: "),
        ("[1]: 2", "f.yaml:1: a list or mapping is used as a key"),
        ("a: {<<: 1}", "f.yaml:1: `<<` takes mappings"),
        ("a: [1\nb: 2", "f.yaml:2: not plain YAML"),
        ("a: \x07", "f.yaml: not plain YAML"),
        (b"a: 1\nb: \xe9t\xe9", "f.yaml:2: no utf-8 text"),
        ("x" * 2_000_000, "f.yaml is larger than"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(text, says):
    with pytest.raises(PlainYamlError, match=re.escape(says)) as caught:
        parse_yaml(text, "f.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def bomb(first: str, again: str, open_: str, close: str) -> str:
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} {open_}{', '.join([again.format(i - 1)] * 10)}{close}" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb("[x, x, x, x, x, x, x, x, x, x]", "*a{}", "[", "]"),
        bomb("{k: v}", "*a{}", "[{<<: [", "]}]"),
        "names: &a " + "- " * 100_000,
        "[" * 500_000,
        "{a: " * 100_000,
        "&a " * 100_000,
    ],
    ids=["lists", "merges", "dashes", "brackets", "braces", "anchors"],
)
def test_a_bomb_costs_nothing(text):
    # unfolded, it would fill the memory or take hours
    with pytest.raises(PlainYamlError):
        parse_yaml(text, "f.yaml")


def test_utf16_and_marks_are_read_and_a_pipe_is_not(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.yaml").write_text("names: [é]", encoding=encoding)
        assert read_yaml(tmp_path / "a.yaml") == {"names": ["é"]}
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match="is a pipe"):
        read_yaml(tmp_path / "pipe.yaml")


def test_nothing_else_reads_yaml() -> None:
    """But the contract, which is below this reader, and reads a file of the package alone."""
    root = Path(__file__).parents[3]
    files = [*(root / "zoo").rglob("*.py"), *(root / "datamodules").rglob("*.py")]
    loads = re.compile(r"\byaml\.(safe_load|load|full_load|unsafe_load|parse|compose|scan)\b|Loader=")
    readers = {str(f.relative_to(root)) for f in files if loads.search(f.read_text(encoding="utf-8"))}
    assert readers == {"zoo/storage/plain_yaml.py", "zoo/contract/class_names.py"}
