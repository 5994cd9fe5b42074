"""A job's batches by Ray Data: its actors detect, and what one that dies has not finished is done by another."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.bulk.batches import Found, ReadImages, Wanted, found_in, weights_of
from zoo.bulk.images import open_images
from zoo.bulk.plan import Job
from zoo.runs.subject import load

_IMAGES_OF_A_BLOCK = 64  # what is lost at most when an actor dies, and when this process does
_MOST_BLOCKS = 10_000


def found_on_ray(job: Job, todo: Sequence[int]) -> Iterator[tuple[int, Found]]:
    """The batches in the order in which they are finished.

    Every actor loads the model and opens the images itself, by their names: both lie where all machines of the cluster
    see them.

    Raises:
        ValueError: Ray is not installed, or a batch failed in an actor.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError
    except ImportError as error:
        raise ValueError(f"--engine ray needs Ray Data ({error}): pip install 'detr-zoo[ray]'") from error
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        on_gpus = job.setting.device != "cpu"
        there = ray.cluster_resources()
        actors = job.setting.workers or max(1, int(there.get("GPU" if on_gpus else "CPU", 1)))
        images_of_todo = len(todo) * job.batch_size
        blocks = max(1, min(len(todo), _MOST_BLOCKS, max(actors, images_of_todo // _IMAGES_OF_A_BLOCK)))
        batches = ray.data.from_items([{"batch": batch} for batch in todo], override_num_blocks=blocks)
        found = batches.map_batches(
            _Actor,
            fn_constructor_args=[_description(job)],
            batch_size=None,
            concurrency=min(actors, blocks),
            num_cpus=1,
            num_gpus=1 if on_gpus else 0,
        )
        for row in found.iter_rows():
            one = pickle.loads(row["found"])
            if isinstance(one, str):
                raise ValueError(f"in an actor of Ray: {one}")
            yield int(row["batch"]), one
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"Ray has given up: {lines[-1][:500] if lines else type(error).__name__}") from error
    finally:
        if own:
            with contextlib.suppress(Exception):
                ray.shutdown()


def _description(job: Job) -> dict[str, Any]:
    """What an actor needs to know; plain values, so that it may be on any machine."""
    model = job.model
    if os.path.exists(model):
        model = str(Path(model).absolute())
    return {
        "model": model,
        "registry": None if job.registry is None else str(job.registry.absolute()),
        "environment": {
            name: os.environ[name] for name in ("ZOO_REGISTRY", "ZOO_CACHE") if name in os.environ
        },
        "here": os.getcwd(),
        "input": job.detector.input,
        "weights": weights_of(job.detector),
        "wanted": job.wanted,
        "device": "cpu" if job.setting.device == "cpu" else "cuda",
        "images": (job.images.place, job.images.split, job.images.format, len(job.images)),
        "batch_size": job.batch_size,
    }


class _Actor:
    """Detects in batches, with a model of its own. Its errors are answers: Ray would repeat them with tracebacks."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._problem = ""
        try:
            self._open(told)
        except (ValueError, OSError) as error:
            self._problem = str(error)

    def _open(self, told: dict[str, Any]) -> None:
        os.environ.update(told["environment"])
        if Path(told["here"]).is_dir():
            os.chdir(told["here"])  # where a registry may be
        torch.set_num_threads(1)  # the actors share the cores
        self._detector = load(told["model"], told["registry"]).to(told["device"])
        self._detector.input = told["input"]
        if weights_of(self._detector) != told["weights"]:
            raise ValueError(f"{told['model']} has other weights on another machine")
        place, split, format, number = told["images"]
        self._images = open_images(place, split, format)
        if len(self._images) != number:
            raise ValueError(f"{place} has {len(self._images)} images on another machine, not {number}")
        self._read = ReadImages(self._images, self._detector.input)
        self._wanted: Wanted = told["wanted"]
        self._size: int = told["batch_size"]

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A row a batch: its number, and what it has come to or why it could not."""
        for batch in rows["batch"].tolist():
            try:
                found: Found | str = self._problem or self._found(batch)
            except (ValueError, OSError) as error:
                found = str(error)
            yield {"batch": [batch], "found": [pickle.dumps(found)]}

    def _found(self, batch: int) -> Found:
        numbers = range(batch * self._size, min((batch + 1) * self._size, len(self._images)))
        return found_in(
            self._detector, self._images, [self._read[number] for number in numbers], self._wanted
        )
