"""How a job is computed, and what of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.images.decodable import usable_cores
from zoo.bulk.batches import Wanted
from zoo.bulk.images import Images
from zoo.bulk.journal import Line
from zoo.detector import Detector

ON_A_GPU = (
    16  # images computed together; a CPU is about as fast with one, which is computed as `zoo predict` does
)
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Setting:
    """How a job is computed.

    Attributes:
        batch_size: images together; None for `ON_A_GPU` there and 1 elsewhere. One begun job keeps its own.
        workers: processes that read images; None for as many as there are cores, at most 8. With Ray: actors, None for
            one a core or GPU of the cluster.
        device: of torch; `auto` for a GPU if there is one.
        engine: `local`, or `ray`.
    """

    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    engine: Engine = "local"


@dataclass(frozen=True)
class Job:
    """A job that is ready to run.

    Attributes:
        detector: on its device.
        model: how the user named it, by which workers elsewhere load it.
        images: to detect in.
        wanted: what is kept.
        setting: with a batch size and a number of workers.
        output: file.
        registry: of the model.
    """

    detector: Detector
    model: str
    images: Images
    wanted: Wanted
    setting: Setting
    output: Path
    registry: Path | None

    @property
    def batch_size(self) -> int:
        """Images together."""
        assert self.setting.batch_size is not None
        return self.setting.batch_size

    @property
    def batches(self) -> int:
        """How many there are."""
        return -(-len(self.images) // self.batch_size)


def settled(setting: Setting, begun: Line | None, device: str) -> Setting:
    """With a batch size and a number of workers; a job that was begun keeps its batch size.

    Raises:
        ValueError: another batch size than it was begun with.
    """
    size = setting.batch_size
    if begun is not None:
        before = int(begun["batch_size"])
        if size not in (None, before):
            raise ValueError(
                f"--batch-size {size}: the job was begun with {before}, and results may differ in their last digits; "
                f"leave it out, or give another --output"
            )
        size = before
    if size is None:
        size = 1 if device == "cpu" else ON_A_GPU
    workers = setting.workers
    if workers is None and setting.engine == "local":
        workers = min(8, usable_cores())
    return Setting(size, workers, device, setting.engine)


def class_names(given: str | None, detector: Detector) -> tuple[str, ...] | None:
    """Names of classes, joined by commas.

    Raises:
        ValueError: the model has no such class.
    """
    if given is None:
        return None
    names = detector.label_map.names
    if given in names:  # a name may have a comma in it
        return (given,)
    chosen = tuple(name.strip() for name in given.split(","))
    unknown = [name for name in chosen if name not in names]
    if unknown:
        shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
        raise ValueError(
            f"--classes: {detector.name} has no class {unknown[0]!r}; it has {shown}; join names by commas"
        )
    return chosen
