"""Safetensors files: the header is checked before it is used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_HEADER = 100 << 20  # bytes, as in the library
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
_Place = Annotated[int, msgspec.Meta(ge=0)]


class DamagedModelError(ValueError):
    """A file is not what its manifest says; the message names file, expected and found."""


class _Entry(msgspec.Struct, frozen=True):
    """Where a tensor lies in the file, counted from the end of the header."""

    dtype: Literal[
        "BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64",
        "U64", "C64",
    ]  # fmt: skip
    shape: list[_Place]
    data_offsets: tuple[_Place, _Place]


def check_safetensors(path: Path) -> None:
    """Reads the header only; needs no torch.

    Raises:
        DamagedModelError: the file is not in the safetensors format, whatever its name says, or is cut.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 2 <= length <= min(size - 8, _LONGEST_HEADER) else b""
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedModelError(f"{path} is not a safetensors file, whatever its name says") from error
    begin = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        if start != begin or end - start != math.prod(entry.shape) * _BYTES[entry.dtype]:
            raise DamagedModelError(
                f"{path} is a damaged safetensors file: {name[:80]!r} of {entry.dtype} {entry.shape} does not fill "
                f"bytes {start} to {end}, or others lie there too"
            )
        begin = end
    if begin != size - 8 - length:
        raise DamagedModelError(
            f"{path} is a cut safetensors file: {size} bytes, {begin + 8 + length} needed"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        DamagedModelError: as `check_safetensors`, and for what the library itself refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_safetensors(path)
    try:
        tensors: dict[str, Any] = load_file(path)
    except (SafetensorError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise DamagedModelError(f"{path} is not a safetensors file that can be read: {error}") from error
    return tensors
