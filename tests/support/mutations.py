"""Damage as strangers' files have it, drawn from a seed: of bytes, and of values of json and YAML."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from datamodules.index.faults import brief

# what the commands turn into one line on stderr; a KeyError or IndexError is a fault of ours
TOLD = (ValueError, OSError)
MARK = "@digits@"  # stands for a number that Python's json would not write
DIGITS = "9" * 5000
TOKENS = (
    b"", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"-1", b"0", b"1e400", b"NaN", b"-Infinity", b"null",
    b"x" * 10_000, b"9" * 5000, b"1_0", b"\xd9\xa3", b"\xc2\xb2", b"[" * 900, b'{"a":' * 900, b"../../../..", b"/",
    b"~", b"\\", b"\x1b]0;x\x07", b"\\ud800", b'"', b"'", b"<", b"&a ", b"*a", b"<<: *a", b"!!python/name:os.system ",
    b"---\n",
    b"\n", b"\r", b"\t", b",", b":", b";", b" ", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"18446744073709551616",
)  # fmt: skip


DEEP = "@deep@"  # stands for a list in 900 lists

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 0.5, -0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, -(2**63) - 1, 10**30,
    MARK, "", "x", "0", "-1", "x" * 10_000, "a\0b", "\ud800", "../../../..", "/", "/dev/zero", "\x1b[2J", [], {}, [1],
    [[]], {"a": 1}, [None], ["a", "b"], DEEP, [1, 2, 3, 4], [float("nan")] * 4, list(range(2000)),
)  # fmt: skip


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(data) + 1)
        until = min(len(data), at + draw.choice((1, 1, 2, 4, 8, 40)))
        how = draw.randrange(6)
        if how == 0:  # one other byte
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        elif how == 1 and at < len(data):  # one other bit
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif how == 2:  # a part is gone
            data = data[:at] + data[until:]
        elif how == 3:  # a part is there twice
            data = data[:until] + data[at:]
        elif how == 4:
            data = data[:at]
        else:
            data = data[:at] + draw.choice(TOKENS) + data[draw.choice((at, until)) :]
    return data


def damaged_value(value: Any, draw: random.Random) -> Any:
    """A copy with one or two values replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2))):
        places = _places(value)
        if not places:
            return value
        owner, key = draw.choice(places)
        how = draw.random()
        if how < 0.15:
            del owner[key]
        elif how < 0.25 and isinstance(owner, dict):
            owner[draw.choice(("", "x", "a" * 300, "\0", "id"))] = owner.pop(key)
        elif how < 0.3 and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        else:
            owner[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        owner = waiting.pop()
        keys = (
            list(owner) if isinstance(owner, dict) else range(len(owner)) if isinstance(owner, list) else ()
        )
        found += [(owner, key) for key in keys]
        waiting += [owner[key] for key in keys]
    return found


def as_json(value: Any) -> bytes:
    text = json.dumps(value).replace(f'"{MARK}"', DIGITS)
    return text.replace(f'"{DEEP}"', "[" * 900 + "]" * 900).encode()


def damaged_json(value: Any, draw: random.Random) -> bytes:
    """Of three, one with damaged bytes, two with damaged values."""
    if draw.random() < 0.34:
        return damaged_bytes(as_json(value), draw)
    return as_json(damaged_value(value, draw))


def check_words(text: str) -> None:
    """A message is words of ours: not Python's own, and no page of the input."""
    assert "set_int_max_str_digits" not in text, text[:300]
    assert len(text) < 4000, text[:300]


def run(one: Callable[[random.Random], None], inputs: int, slow: bool, seed: int = 0) -> None:
    """`one` with draws of `inputs` seeds; a slow run goes on for ZOO_FUZZ_SECONDS. Names the seed that failed."""
    begun, cpu = time.monotonic(), time.process_time()
    seconds = float(os.environ.get("ZOO_FUZZ_SECONDS", "60")) if slow else 0.0
    first = int(os.environ.get("ZOO_FUZZ_SEED", "1000000")) if slow else seed
    done = 0
    while done < inputs if not slow else time.monotonic() - begun < seconds:
        started = time.monotonic()
        try:
            one(random.Random(first + done))
        except TOLD as error:
            check_words(brief(str(error)))
        except Exception as error:
            pytest.fail(f"seed {first + done}: {type(error).__name__}: {str(error)[:300]}")
        assert time.monotonic() - started < 20, f"seed {first + done} took {time.monotonic() - started:.0f} s"
        done += 1
    print(f"{done} inputs, {time.process_time() - cpu:.1f} s of CPU")
