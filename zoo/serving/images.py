"""From what a client sent to an image as a network takes it, within limits that hold before anything is decoded."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from zoo.contract.bands import may_be_bands, size_of
from zoo.contract.pixels import TooManyPixels, open_image
from zoo.detector import Detector, ReadyImage
from zoo.serving.limits import MB, Limits
from zoo.serving.problems import A_FILE, Problem
from zoo.storage.image_fetch import decode_text, fetch, scheme_of

_T = TypeVar("_T")
_FETCHERS = 8
_START_OF_SCAN = b"\xff\xda"


class Images:
    """Threads that fetch and decode, apart from those of the models.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        decoders = max(2, min(4, os.cpu_count() or 1))
        self._decoders = ThreadPoolExecutor(decoders, "decode")
        self._fetchers = ThreadPoolExecutor(_FETCHERS, "fetch")
        self._free = asyncio.Semaphore(decoders)
        self.late = 0  # decoders that nobody waits for any more

    def stop(self) -> None:
        """Ends the threads once they have nothing to do, without waiting for it."""
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def fetched(self, image: bytes | str) -> bytes:
        """The bytes of an image that is an http(s) address, data URI or base64.

        Raises:
            Problem: it is none of these, too large, or cannot be fetched.
        """
        if isinstance(image, bytes):
            return self._not_too_large(image)
        scheme = scheme_of(image)
        if scheme in ("http", "https"):
            return await self._behind(image)
        if scheme and scheme != "data":
            raise Problem(
                422,
                "image-address",
                f"{scheme}: addresses are not fetched; an image is http, https, data or base64",
            )
        return await self.in_thread(lambda: self._not_too_large(_decoded_text(image)))

    async def ready(self, content: bytes, detector: Detector) -> ReadyImage:
        """The image, decoded and resized.

        Raises:
            Problem: it has too many pixels, is no image, or takes too long.
        """
        return await self.in_thread(lambda: _ready(content, detector, self._limits))

    async def in_thread(self, work: Callable[[], _T]) -> _T:
        """What a piece of work gives, in one of the decoders' threads.

        Raises:
            Problem: it takes too long; the thread is free again when it ends.
        """
        await self._free.acquire()
        call = asyncio.get_running_loop().run_in_executor(self._decoders, work)
        call.add_done_callback(self._freed)
        done, _ = await asyncio.wait({call}, timeout=self._limits.decode_seconds)
        if not done:
            self.late += 1
            call.add_done_callback(self._no_longer_late)
            seconds = f"{self._limits.decode_seconds:g}"
            raise Problem(422, "image-slow", f"the image could not be decoded within {seconds} seconds")
        return call.result()

    def _freed(self, call: asyncio.Future[_T]) -> None:
        self._free.release()
        if not call.cancelled():
            call.exception()  # nobody may ask for it any more

    def _no_longer_late(self, call: asyncio.Future[_T]) -> None:
        self.late -= 1

    async def _behind(self, address: str) -> bytes:
        if not self._limits.urls:
            raise Problem(
                422,
                "image-address",
                "this server fetches no addresses; send the image as a file, data URI or base64",
            )
        seconds, most = self._limits.fetch_seconds, self._limits.max_bytes

        def get() -> bytes:
            return fetch(address, most_bytes=most, seconds=seconds)

        call = asyncio.get_running_loop().run_in_executor(self._fetchers, get)
        try:
            return await call
        except ValueError:
            raise self._too_large() from None
        except ConnectionError:
            # why is not said: it would tell of the network that this server stands in
            raise Problem(
                422,
                "image-fetch",
                f"the image could not be fetched: an address is http(s) of a public machine on port 80 or 443, and "
                f"answers 200 with the whole image within {seconds:g} seconds",
            ) from None

    def _not_too_large(self, content: bytes) -> bytes:
        if len(content) > self._limits.max_bytes:
            raise self._too_large()
        return content

    def _too_large(self) -> Problem:
        return Problem(413, "image-bytes", f"the image is larger than {self._limits.max_bytes / MB:g} MB")


def _decoded_text(image: str) -> bytes:
    try:
        return decode_text(image)
    except ValueError:
        raise Problem(
            422,
            "image-base64",
            f"image is no valid base64, nor a data URI (data:image/jpeg;base64,...) or address; {A_FILE}",
        ) from None


def _ready(content: bytes, detector: Detector, limits: Limits) -> ReadyImage:
    _check_header(content, detector, limits)
    try:
        return detector.ready(content)
    except (ValueError, OSError, MemoryError):
        # PIL's own words may name objects of this process
        raise Problem(422, "image", "the file is damaged, or of a kind that is not read") from None


def _check_header(content: bytes, detector: Detector, limits: Limits) -> None:
    """Refuses by what a file says of itself, before memory or time is spent on it."""
    if not content:
        raise Problem(422, "image", "the image is empty: it has 0 bytes, as a folder that is sent for a file")
    height, width = _size(content, detector)
    if height * width > limits.max_pixels:
        raise Problem(
            413,
            "image-pixels",
            f"the image has {width}x{height} pixels; at most {limits.max_pixels} are read",
        )
    if content.startswith(b"\xff\xd8") and content.count(_START_OF_SCAN) > limits.scans:
        raise Problem(422, "image-scans", f"the JPEG has more than {limits.scans} scans")


def _size(content: bytes, detector: Detector) -> tuple[int, int]:
    with contextlib.suppress(UnidentifiedImageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(io.BytesIO(content)) as opened:
                return opened.height, opened.width
        except UnidentifiedImageError:
            raise
        except (TooManyPixels, Image.DecompressionBombError):
            raise Problem(413, "image-pixels", "the image has more pixels than are ever read") from None
        except Exception:
            raise Problem(422, "image", "the file is damaged, or of a kind that is not read") from None
    if not detector.input.is_rgb and may_be_bands(content):
        with contextlib.suppress(ValueError, OSError):
            return size_of(content)
    kinds = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 and PPM are"
    raise Problem(422, "image", f"the file is no image that is read; {kinds}")
