"""The models of a server, and the way of one image through them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from zoo.serving.answers import check_classes, document_of, near
from zoo.serving.batcher import Batcher
from zoo.serving.given import Asked
from zoo.serving.images import Images
from zoo.serving.limits import Limits
from zoo.serving.metrics import Metrics
from zoo.serving.problems import Problem, shown
from zoo.serving.seen import picture_of
from zoo.serving.served import Served

_T = TypeVar("_T")


class ClientGone(Exception):
    """Nobody waits for the answer."""


class Service:
    """Everything of a server but HTTP.

    Attributes:
        models: by id; at least one.
        draining: whether it is about to end; no longer ready then.
        inside: requests that are worked on or wait.
    """

    def __init__(self, models: Mapping[str, Served], limits: Limits, metrics: Metrics) -> None:
        self.models = models
        self.limits = limits
        self.images = Images(limits)
        self.draining = False
        self.inside = 0
        for served in models.values():
            served.batcher = Batcher(
                served.detectors, limits.batch_size, limits.wait, metrics.of_model(served.id)
            )
        metrics.gauge("zoo_requests_inside", "Requests that are worked on or wait.", lambda: self.inside)
        metrics.gauge("zoo_images_waiting", "Images that wait for a model.", self._waiting)
        metrics.gauge("zoo_late_decoders", "Decoders that nobody waits for.", lambda: self.images.late)

    def start(self) -> None:
        """Begins to take images, in the running loop."""
        for served in self.models.values():
            served.batcher.start()

    def stop(self) -> None:
        """Ends without waiting."""
        for served in self.models.values():
            served.batcher.stop()
        self.images.stop()

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.draining and all(served.batcher.works for served in self.models.values())

    def named(self, model: str | None) -> Served:
        """The model of a request.

        Raises:
            Problem: there is none of this name, or several and none was named.
        """
        if model is None:
            if len(self.models) > 1:
                raise Problem(422, "model", f"model is missing; it is one of {shown(', '.join(self.models))}")
            return next(iter(self.models.values()))
        if model not in self.models:
            raise Problem(404, "model", f"model {shown(model)!r} is not served{near(model, self.models)}")
        return self.models[model]

    def refuse_more(self) -> None:
        """Raises Problem if the queue is full."""
        if self.inside >= self.limits.queue:
            raise Problem(
                429, "busy", f"{self.limits.queue} requests wait already; try again", {"Retry-After": "1"}
            )

    async def answer(self, request: Request, asked: Asked) -> tuple[dict[str, Any], Served]:
        """The document of a request; its work is dropped if the client goes.

        Raises:
            Problem: it breaks a rule, or the queue is full.
            ClientGone: nobody waits for it.
        """
        served = self.named(asked.options.model)
        check_classes(asked.options.classes, served.detector.label_map)
        with self._place():
            return await _unless_gone(request, self._within(self._detected(served, asked))), served

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self.refuse_more()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def _within(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await asyncio.wait_for(work, self.limits.answer_seconds)
        except asyncio.TimeoutError:
            wait = str(math.ceil(self.limits.answer_seconds / 4))
            raise Problem(
                503, "slow", "there was no answer in time; try again", {"Retry-After": wait}
            ) from None

    async def _detected(self, served: Served, asked: Asked) -> dict[str, Any]:
        options, batcher = asked.options, served.batcher
        with batcher.coming():
            content = await self.images.fetched(asked.image)
            image = await self.images.ready(content, served.detector)
            answer = batcher.submit(image, options.threshold)
        prediction = await answer
        document = await self.images.in_thread(lambda: document_of(prediction, options, served.version))
        if options.picture:
            contract = served.detector.input
            document["picture"] = await self.images.in_thread(lambda: picture_of(content, contract))
        return document

    def _waiting(self) -> int:
        return sum(len(served.batcher) for served in self.models.values())


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The outcome of a work, which is cancelled if the client goes first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        while True:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if leaving.result()["type"] == "http.disconnect":
                raise ClientGone
            leaving = asyncio.ensure_future(request.receive())  # an empty end of the body
    finally:
        leaving.cancel()
        if not working.cancel() and not working.cancelled():
            working.exception()  # it has been raised above, or nobody waits for it
