"""Brings images of several requests together into one batch, without keeping a lonely one waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from zoo.detector import Detector, Prediction, ReadyImage


class _Waiting:
    def __init__(
        self, image: ReadyImage, threshold: float | None, answer: asyncio.Future[Prediction]
    ) -> None:
        self.image = image
        self.threshold = threshold
        self.answer = answer


class Batcher:
    """The queue of one model, and a thread for each of its copies.

    A batch has images of one size, so that no padding changes what is found; a model with masks or tiles computes
    one image at a time. While a batch is computed the next one gathers by itself; a model without work waits at most
    `wait` seconds, and only while other images are on their way to it.

    Args:
        detectors: copies of the model, each for a device or worker.
        most: images in a batch.
        wait: seconds.
        computed: told of each batch: the number of its images and seconds of computing.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        most: int,
        wait: float,
        computed: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.most = most if detectors[0].takes_several else 1
        self.wait = wait
        self._detectors = detectors
        self._computed = computed
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._coming = 0
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Begins to work, in the running loop."""
        self._tasks = [asyncio.create_task(self._work(detector)) for detector in self._detectors]

    @property
    def works(self) -> bool:
        """Whether all of its threads take images."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def stop(self) -> None:
        """Ends without waiting; requests without an answer are cancelled."""
        for task in self._tasks:
            task.cancel()
        for one in self._waiting:
            one.answer.cancel()

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Around the preparation of an image for `submit`: a batch waits for it a little."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._arrived.set()

    def submit(self, image: ReadyImage, threshold: float | None) -> asyncio.Future[Prediction]:
        """Detections as `Detector.predict` gives them; who cancels the answer takes the image back."""
        one = _Waiting(image, threshold, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._arrived.set()
        return one.answer

    async def _work(self, detector: Detector) -> None:
        thread = ThreadPoolExecutor(1, "model")
        try:
            while True:
                batch = await self._gathered()
                await self._answer(detector, batch, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    async def _gathered(self) -> list[_Waiting]:
        """The oldest image, and those of its size that are there or come in time."""
        while not self._take(1, None):
            await self._next_arrival(None)
        end = time.monotonic() + self.wait
        first = self._waiting.popleft()
        batch = [first]
        while True:
            batch += self._remove(self._take(self.most - len(batch), first))
            left = end - time.monotonic()
            if len(batch) >= self.most or not self._coming or left <= 0:
                return batch
            await self._next_arrival(left)

    def _take(self, number: int, like: _Waiting | None) -> list[_Waiting]:
        """The oldest so many that somebody still waits for, of the size of another one."""
        for gone in [one for one in self._waiting if one.answer.done()]:
            self._waiting.remove(gone)
        alike = (one for one in self._waiting if like is None or one.image.shape == like.image.shape)
        return [one for one, _ in zip(alike, range(number), strict=False)]

    def _remove(self, taken: list[_Waiting]) -> list[_Waiting]:
        for one in taken:
            self._waiting.remove(one)
        return taken

    async def _next_arrival(self, seconds: float | None) -> None:
        self._arrived.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)

    async def _answer(self, detector: Detector, batch: list[_Waiting], thread: ThreadPoolExecutor) -> None:
        batch = [one for one in batch if not one.answer.done()]
        if not batch:
            return
        begun = time.monotonic()
        images, thresholds = [one.image for one in batch], [one.threshold for one in batch]
        call = asyncio.get_running_loop().run_in_executor
        try:
            found = await call(thread, detector.predict_together, images, thresholds)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
            else:  # what one of them cannot, the others still may
                for one in batch:
                    await self._answer(detector, [one], thread)
            return
        self._computed(len(batch), time.monotonic() - begun)
        for one, prediction in zip(batch, found, strict=True):
            _settle(one, prediction)


def _settle(one: _Waiting, outcome: Prediction | Exception) -> None:
    if one.answer.done():  # its client has gone
        return
    if isinstance(outcome, Exception):
        one.answer.set_exception(outcome)
    else:
        one.answer.set_result(outcome)
