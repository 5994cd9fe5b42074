"""Which images of a data set can be decoded, found out by decoding each of them once.

What was found out of plain files is kept in ZOO_CACHE, folder decoded/, and holds while a file keeps its size and the
time of its last change: a training that leaves out what is broken asks at each start, in each of its processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import PIL
import simplejpeg

from datamodules.images import probe
from datamodules.images.probe import probe_all
from datamodules.index import AnnotationIndex
from datamodules.index.faults import Fault
from datamodules.index.plain_json import decode, encode
from datamodules.progress import Meter
from zoo.contract import bands, pixels
from zoo.storage.cache import cache_root
from zoo.storage.durable import write_atomically

FEW_IMAGES = 64  # a worker; below it starting one costs more than it saves
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of each period, or `max`


State = tuple[int, int]  # size, and time of the last change in nanoseconds
Kept = dict[str, tuple[int, int, str]]  # file -> its state, and why it cannot be decoded; empty if it can


def corrupt_image(file: str, image_id: int, why: str) -> Fault:
    """The fault of an image that cannot be decoded."""
    message = f"it cannot be decoded: {why}; replace it or remove it from the annotations"
    return Fault("error", "corrupt_image", file, image_id, message)


def corrupt_images(
    splits: Mapping[str, AnnotationIndex], progress: Meter | None = None
) -> dict[str, dict[int, Fault]]:
    """Split -> row -> fault of each image that cannot be decoded; an image that is in two splits is decoded once.

    Raises:
        OSError: if a process that decodes is killed.
    """
    total = len({name for index in splits.values() for name in index.files.tolist()})
    reasons: dict[str, str] = {}  # of every image seen; empty for a good one
    found: dict[str, dict[int, Fault]] = {}
    for split, index in splits.items():
        names = index.files.tolist()
        new = [name for name in dict.fromkeys(names) if name not in reasons]
        states = {} if index.store is not None else _states(index.root, new)
        kept = _read(index.root) if states else {}
        reasons |= {name: kept[name][2] for name in states if kept.get(name, ())[:2] == states[name]}
        new = [name for name in new if name not in reasons]
        for k, seen in probe_all(index.images, new, min(usable_cores(), len(new) // FEW_IMAGES)):
            reasons[new[k]] = seen.error
            if progress is not None:
                progress(len(reasons), total)
        if new and states:
            _write(index.root, kept | {name: (*state, reasons[name]) for name, state in states.items()})
        found[split] = {
            row: corrupt_image(name, index.image_id(row), reasons[name])
            for row, name in enumerate(names)
            if reasons[name]
        }
    return found


def _states(root: str, names: Iterable[str]) -> dict[str, State]:
    """File -> state, before it is decoded; a file that cannot be looked at has none."""
    states = {}
    for name in names:
        with contextlib.suppress(OSError):
            found = os.stat(Path(root, name))
            states[name] = (found.st_size, found.st_mtime_ns)
    return states


def _read(root: str) -> Kept:
    try:
        return decode(_place(root).read_bytes(), Kept)
    except (OSError, ValueError):  # not there yet, or damaged
        return {}


def _write(root: str, kept: Kept) -> None:
    with contextlib.suppress(OSError):  # no room: they are decoded again the next time
        _place(root).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_place(root), encode(kept))


def _place(root: str) -> Path:
    """Of what this version of the code and of its decoders has found out about the files below `root`."""
    key = hashlib.sha256(os.fsencode(f"{_decoders()} {os.path.abspath(root)}")).hexdigest()
    return cache_root() / "decoded" / f"{key[:24]}.json"


@cache
def _decoders() -> str:
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (probe, pixels, bands))
    # which only some images need: without it they cannot be decoded, until it is installed
    rasterio = version("rasterio") if find_spec("rasterio") else None
    return f"{PIL.__version__} {simplejpeg.__version__} {rasterio} {hashlib.sha256(code).hexdigest()}"


def without(
    splits: Mapping[str, AnnotationIndex], corrupt: Mapping[str, Mapping[int, Fault]]
) -> dict[str, AnnotationIndex]:
    """The splits without the images in `corrupt` (split -> row -> fault) and their objects."""
    return {
        split: index.take([row for row in range(len(index)) if row not in corrupt[split]])
        if corrupt.get(split)
        else index
        for split, index in splits.items()
    }


def usable_cores() -> int:
    """Cores that this process may use, at least 1: a batch system limits them by affinity, a container by quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(most) / int(period))))
    except (OSError, ValueError):  # no control group of this kind, or `max`
        return cores
