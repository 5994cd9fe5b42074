"""A probe of an image file by a worker process: can it be decoded, is it damaged, what does it look like.

This module imports no torch, so that a spawned worker starts at once.
"""

from __future__ import annotations

import hashlib
import io
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from datamodules.index.image_store import ImageStore, StoreError
from zoo.contract.bands import is_npy, may_be_bands, read_bands
from zoo.contract.pixels import Reading, declared_bits, has_wide_samples, is_deep, levels, open_image, to_rgb

GRID = 17  # side of a thumbnail: 16 differences a row and a column
_SMALLEST = 4 * GRID  # pixels; a JPEG is decoded no smaller than this, so that its thumbnail stays an average
_CHUNK = 32  # images a task
_ORIENTATION = 0x0112  # EXIF tag
# libjpeg's warnings about the coded pixels themselves
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
_TURNS = {
    2: (0, 1),
    3: (2, 0),
    4: (2, 1),
    5: (3, 1),
    6: (3, 0),
    7: (1, 1),
    8: (1, 0),
}  # quarter turns, mirror
_ONLY_RGB = ("LAB", "HSV")  # PIL turns these into nothing else
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Probe(NamedTuple):
    """What a worker found out about one image file."""

    error: str = ""  # why it cannot be decoded
    damage: str = ""  # what the decoder complained of although it gave pixels
    format: str = ""  # PIL's name of what the bytes are: JPEG, PNG, ...
    mode: str = ""  # PIL's mode of the pixels
    transparent: bool = False  # some pixel is not opaque
    orientation: int = 1  # EXIF
    frames: int = 1
    size: tuple[int, int] = (0, 0)  # h, w of the raw pixels
    reading: Reading | None = None  # how more than 8 bits of grey were read
    darkest: int = (
        0  # grey levels, as read, that 1 % (99 %) of the pixels are below: of more than 8 bits only
    )
    brightest: int = 255
    digest: bytes = b""  # of the file's bytes; 16 bytes
    bands: int = 0  # of an image that is read as values alone, not as RGB
    lowest: float = 0.0  # finite value of its bands
    highest: float = 0.0
    thumbnail: bytes = b""  # [GRID, GRID] grey levels as displayed; empty if there are no pixels


Probes = Iterator[tuple[int, Probe]]


def probe(data: bytes) -> Probe:
    """Probes the bytes of one file."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PIL on odd EXIF and large pictures: not about this file's pixels
            with open_image(io.BytesIO(data)) as image:
                bits, wide = declared_bits(image), has_wide_samples(image)  # before anything decodes it
                seen = Probe(
                    format=image.format or "",
                    mode=image.mode,
                    orientation=int(image.getexif().get(_ORIENTATION, 1) or 1),
                    frames=int(getattr(image, "n_frames", 1)),
                    size=(image.height, image.width),
                    digest=digest,
                )
                grey, damage = _strict_jpeg(data) if image.format in ("JPEG", "MPO") else (None, "")
                if grey is None:
                    image.load()
                    seen = seen._replace(transparent=_transparent(image))
                    if is_deep(image):
                        grey, reading = levels(image, bits)
                        seen = seen._replace(
                            reading=reading, darkest=_share(grey, 0.01), brightest=_share(grey, 0.99)
                        )
                    else:
                        grey = (
                            image.convert("L") if image.mode not in _ONLY_RGB else to_rgb(image).convert("L")
                        )
                        if wide:
                            seen = seen._replace(darkest=_share(grey, 0.01), brightest=_share(grey, 0.99))
    except UnidentifiedImageError:
        if may_be_bands(data):
            return _of_bands(data, digest)
        return Probe(error="its bytes are in no image format that can be read", digest=digest)
    except _UNREADABLE as error:
        return Probe(error=str(error) or type(error).__name__, digest=digest)
    return seen._replace(damage=damage, thumbnail=_thumbnail(grey, seen.orientation))


def _of_bands(data: bytes, digest: bytes) -> Probe:
    """Of an array, or a TIFF of bands that PIL has no mode for."""
    try:
        values = read_bands(data)
    except _UNREADABLE as error:
        return Probe(error=str(error) or type(error).__name__, digest=digest)
    known = values[np.isfinite(values)]
    lowest, highest = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    shares = (values.astype(np.float32) - lowest) / max(highest - lowest, 1e-12)
    grey = Image.fromarray((np.nan_to_num(shares, posinf=1, neginf=0).mean(axis=2) * 255).astype(np.uint8))
    format, mode = "NPY" if is_npy(data) else "TIFF", f"{values.shape[2]} x {values.dtype}"
    return Probe(
        format=format, mode=mode, size=(values.shape[0], values.shape[1]), digest=digest, thumbnail=_thumbnail(grey, 1),
        bands=values.shape[2], lowest=lowest, highest=highest,
    )  # fmt: skip


def _strict_jpeg(data: bytes) -> tuple[Image.Image | None, str]:
    """Grey pixels, or None and libjpeg's warning, which PIL drops while it goes on with wrong pixels."""
    try:
        pixels = simplejpeg.decode_jpeg(
            data, colorspace="GRAY", min_height=_SMALLEST, min_width=_SMALLEST, min_factor=1, strict=True
        )
    except ValueError as error:
        # odd headers, and what TurboJPEG does not support, are no damage of the pixels: there PIL decides
        complaint = str(error)
        return None, complaint if complaint.startswith(_DAMAGE) else ""
    return Image.fromarray(pixels[..., 0]), ""


def _transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA"):
        low = image.getchannel("A").getextrema()[0]
        return isinstance(low, (int, float)) and low < 255
    return "transparency" in image.info


def _thumbnail(grey: Image.Image, orientation: int) -> bytes:
    small = grey.convert("F").resize((GRID, GRID), Image.Resampling.BILINEAR, reducing_gap=2.0)
    seen = np.asarray(small)
    if orientation in _TURNS:
        turns, mirror = _TURNS[orientation]
        seen = np.rot90(seen, turns)
        seen = seen[:, ::-1] if mirror else seen
    return np.ascontiguousarray(seen.round().clip(0, 255).astype(np.uint8)).tobytes()


def _share(grey: Image.Image, share: float) -> int:
    """The lowest level that this share of the pixels of an 8-bit grey image do not exceed."""
    counts = np.cumsum(grey.histogram())
    return int(np.searchsorted(counts, share * counts[-1]))


def probe_file(store: ImageStore, name: str) -> Probe:
    """Probes one file of a store; if it cannot be read, the probe's `error` says why.

    Raises:
        StoreError: the store could not hand out the file, which says nothing about the file itself.
    """
    try:
        return probe(store.read(name))
    except StoreError:
        raise
    except OSError as error:
        return Probe(error=error.strerror or str(error))


def probe_all(store: ImageStore, names: Sequence[str], workers: int) -> Probes:
    """(position, probe) of every file, in order.

    Args:
        store: hands out the files; sent to each worker once.
        names: of the files in it.
        workers: processes; with fewer than two this process does it all.

    Raises:
        OSError: if a worker is killed, as it is when memory runs out, or the store cannot hand out a file.
    """
    if workers < 2:
        yield from ((k, probe_file(store, name)) for k, name in enumerate(names))
        return

    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(store,))
    waiting: list[tuple[int, Future[list[Probe]]]] = []
    starts = iter(range(0, len(names), _CHUNK))
    try:
        for start in starts:
            with _deaf():
                waiting.append((start, pool.submit(_probe_chunk, list(names[start : start + _CHUNK]))))
            if len(waiting) >= 3 * workers:  # bounds what waits in memory
                yield from _finished(*waiting.pop(0))
        while waiting:
            yield from _finished(*waiting.pop(0))
    except BrokenProcessPool as error:
        raise OSError(
            "a process that decodes images was killed, most likely for want of memory; free some, or have "
            "zoo data check --workers 1 decode them in one process"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start within this context never receive Ctrl-C: this process alone handles it.

    Here the signal is blocked, not ignored: it is delivered at the end, or at once to another thread of this
    process.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started later it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finished(start: int, future: Future[list[Probe]]) -> Probes:
    yield from enumerate(future.result(), start=start)


_stores: list[ImageStore] = []  # of this worker; one at most


def _start(store: ImageStore) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems on which the parent cannot block it
    _stores[:] = [store]


def _probe_chunk(names: list[str]) -> list[Probe]:
    [store] = _stores
    return [probe_file(store, name) for name in names]
