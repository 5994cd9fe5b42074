"""Checkpoint files that survive a crash and can be loaded without trusting their author.

Lightning's own writer renames from `$TMPDIR`, which is a copy when that is another file system: a
kill left an empty last.ckpt in one of six trials. Here the temporary file lies beside its target.
And a checkpoint holds plain values and tensors only, so that loading one executes nothing.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from zoo.storage.durable import sweep_temporaries, write_atomically

# types that torch.load(weights_only=True) rebuilds without importing code of this project
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)
_FOLDER = 0x10  # of an entry's attributes in a zip archive
_BEGINS = (b"PK", b"\x80")  # of a zip archive; of a pickle of protocol 2 and later, torch reads no earlier
_CONTAINERS = (dict, OrderedDict, list, tuple, set)


class UnsafeCheckpointError(ValueError):
    """A checkpoint holds, or would hold, objects that only running code can rebuild."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning plugin: temporary file in the same directory, fsync, rename; plain values only.

    A reader sees the old file or the new one, never a part. Temporary files of killed processes are
    removed at the first save into a directory. Remote paths (`s3://...`) keep Lightning's writer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._swept: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            UnsafeCheckpointError: if it holds anything but plain values and tensors, naming where.
        """
        refuse_objects(checkpoint)
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent not in self._swept:
            sweep_temporaries(target.parent)
            self._swept.add(target.parent)
        write_atomically(target, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads `path`; `weights_only` is always True, whatever Lightning asks for."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(path, map_location)


def read_checkpoint(path: str | os.PathLike[str], map_location: Any | None = "cpu") -> dict[str, Any]:
    """The checkpoint in a .ckpt or .pth file, without executing anything it contains.

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeCheckpointError: if it is a pickle that needs code to load.
        ValueError: if it is damaged, or no checkpoint at all.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    refuse_damage(Path(path))
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()
        reason = next((line.strip() for line in first if "GLOBAL" in line or "Unsupported" in line), first[0])
        raise UnsafeCheckpointError(
            f"{path} was not loaded: it is damaged or holds objects other than tensors and plain values "
            f"({reason}). Nothing in it was executed. Save the bare state dict, or convert the file where "
            "it was made."
        ) from error
    except Exception as error:  # a malformed stream makes the unpickler raise anything
        told = isinstance(error, (RuntimeError, EOFError)) and str(error)  # a KeyError's words are a number
        reason = told.splitlines()[0] if told else "its pickle breaks off or is malformed"
        raise ValueError(f"{path} is damaged or no checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint dictionary")
    return checkpoint


def refuse_damage(path: Path) -> None:
    """Raises ValueError if a file is empty, of another kind, or changed; torch writes checksums and reads none."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is damaged: it is empty")
    with path.open("rb") as file:
        begin = file.read(12)
    if not begin.startswith(_BEGINS):
        raise ValueError(
            f"{path} is damaged or no checkpoint: torch.save writes a ZIP archive or pickle, but this begins with "
            f"{begin!r}"
        )
    try:
        if not zipfile.is_zipfile(path):
            return  # torch's format before 1.6; or it is cut, which torch says
        with zipfile.ZipFile(path) as archive:
            # torch takes no bytes of what is marked as a folder, and returns whatever the memory held
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]
            wrong = folders[0] if folders else archive.testzip()
    except Exception as error:  # zipfile raises anything at a malformed archive
        raise ValueError(f"{path} is damaged: {error}") from error
    if wrong is not None:
        raise ValueError(f"{path} is damaged: {wrong} is not as it was written")


def refuse_objects(value: Any, where: str = "checkpoint") -> None:
    """Raises UnsafeCheckpointError at the first value that is neither plain nor a tensor."""
    # exact types: a subclass (np.float64, an enum) pickles as a reference to its class
    if type(value) in _PLAIN_TYPES or type(value) in _TENSOR_TYPES:
        return
    if type(value) not in _CONTAINERS:
        raise UnsafeCheckpointError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors, "
            "numbers, strings and containers of these, so that loading it runs no code. Convert it first."
        )
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_objects(key, f"a key of {where}")
            refuse_objects(item, f"{where}[{key!r}]")
    else:
        for index, item in enumerate(value):
            refuse_objects(item, f"{where}[{index}]")
