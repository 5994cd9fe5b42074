"""Where the commands write: words for people, one JSON document for machines."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, TextIO

# torchrun and Ray, then srun; then what Lightning, or a person on each machine, has set
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")


def is_rank_zero() -> bool:
    """Whether this process has rank zero, by the launcher's variables: a trainer may not exist yet."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def rank_before() -> str:
    """What stands before an error of this process: nothing on rank zero, on others their rank."""
    rank = next((os.environ[name] for name in _RANKS if os.environ.get(name, "0") != "0"), None)
    return "" if rank is None else f"rank {rank}: "


def repeats_another() -> bool:
    """Whether the first process of this machine does the same as this one: until the processes are connected."""
    torch = sys.modules.get("torch")
    connected = torch is not None and torch.distributed.is_initialized()
    return not connected and os.environ.get("SLURM_LOCALID", os.environ.get("LOCAL_RANK", "0")) != "0"


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def quoted(path: object) -> str:
    """A path quoted for a shell, for lines to copy."""
    return shlex.quote(str(path))


class Console:
    """Prints lines to stdout, or to stderr when stdout is for one JSON document; on rank zero only."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def say(self, text: str = "", *, red: bool = False) -> None:
        """One or more lines for a person; control characters in them are shown as escapes."""
        if is_rank_zero():
            write(text, sys.stderr if self.as_json else sys.stdout, red=red)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Left-aligned columns, numbers right-aligned; two spaces between them."""
        self.say(format_table(header, rows))

    def result(self, document: dict[str, Any] | list[Any]) -> None:
        """The JSON document; printed only with `--json`, and then alone on stdout."""
        if self.as_json and is_rank_zero():
            text = json.dumps(document, indent=2, ensure_ascii=False)
            if text != _shown(text, sys.stdout):
                text = json.dumps(document, indent=2)
            print(text, flush=True)


class Silent(Console):
    """Prints nothing."""

    def say(self, text: str = "", *, red: bool = False) -> None:
        """Nothing."""


def write(text: str, stream: TextIO, *, red: bool = False) -> None:
    """Writes lines; control characters and what the stream's encoding cannot hold become \\uXXXX or \\xXX."""
    text = _shown(text, stream)
    print(f"\x1b[31m{text}\x1b[0m" if red else text, file=stream, flush=True)


def tame_log() -> None:
    """Warnings of the log, which no handler of its own prints, go to stderr as lines of `write` do."""
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(_Visible())


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record), sys.stderr)


def _shown(text: str, stream: TextIO) -> str:
    from datamodules.index.faults import visible  # with numpy, which `zoo --help` does without

    encoding = _encoding(stream)
    return visible(text, keep="\n").encode(encoding, "backslashreplace").decode(encoding)


def _encoding(stream: TextIO) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """`header` and `rows` as aligned text; None prints as a dash, floats with three decimals."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
        for i in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *(line(row) for row in cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
