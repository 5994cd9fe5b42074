"""One batch of a job: images read and resized, then what is detected in them, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from datamodules.index.image_store import StoreError
from datamodules.loading.loaders import batches_of, one_thread
from datamodules.shards.reader import DamagedImageError
from zoo.bulk.images import Images, LeftOut
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector, Prediction, ReadyImage
from zoo.prediction.image_input import size_of
from zoo.registry.weights import weights_digest
from zoo.runs.prediction_files import results_of
from zoo.runtimes.module import files_of
from zoo.storage.durable import sha256_of


@dataclass(frozen=True)
class Wanted:
    """What is kept of what a model finds.

    Attributes:
        threshold: the lowest score; None for the model's own.
        classes: names of classes; None for all.
        most: detections an image, the best; None for all.
    """

    threshold: float | None = None
    classes: tuple[str, ...] | None = None
    most: int | None = None


class Read(NamedTuple):
    """An image that was read, or why it could not be."""

    number: int
    image: ReadyImage | str


class Found(NamedTuple):
    """What a batch has come to, all plain values.

    Attributes:
        images: id, file name, height and width of each.
        results: of all images in COCO's form; of a panoptic model `annotations` of its panoptic file.
        left_out: id, file name and reason.
        pictures: bytes of the id maps of a panoptic model, by their names.
    """

    images: list[tuple[int, str, int, int]]
    results: list[dict[str, Any]]
    left_out: list[LeftOut]
    pictures: dict[str, bytes]


class ReadImages(Dataset[Read]):
    """Images by their numbers, as the network takes them."""

    def __init__(self, images: Images, contract: InputContract) -> None:
        self._images = images
        self._contract = contract

    def __getitem__(self, number: int) -> Read:
        """One image.

        Raises:
            StoreError: shards cannot be read, which is no fault of one image.
        """
        try:
            image = self._images.read(number, self._contract)
        except StoreError as error:
            if isinstance(error, DamagedImageError):
                return Read(number, str(error))
            raise
        except (ValueError, OSError) as error:
            return Read(number, str(error))
        resized = image if self._contract.tiles is not None else self._contract.resize_image(image)
        return Read(number, ReadyImage(resized, size_of(image)))


class NumbersOfBatches(Sequence[list[int]]):
    """The images of some batches of `size` images each, by the number of the batch: a batch sampler."""

    def __init__(self, batches: Sequence[int], size: int, images: int) -> None:
        self._batches, self._size, self._images = batches, size, images

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        first = self._batches[place] * self._size
        return list(range(first, min(first + self._size, self._images)))


def read_batches(
    images: Images, contract: InputContract, numbers: NumbersOfBatches, workers: int
) -> Iterator[list[Read]]:
    """Batches in their order, read by `workers` processes; 0 for this one."""
    loader = DataLoader(
        ReadImages(images, contract),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=one_thread,
    )
    yield from batches_of(loader)  # type: ignore[arg-type, misc]


def found_in(detector: Detector, images: Images, batch: Sequence[Read], wanted: Wanted) -> Found:
    """What the detector finds in a batch. Images of one size after the resize are computed together where they can."""
    found = Found([], [], [], {})
    together: dict[Any, list[tuple[int, ReadyImage]]] = {}
    predictions: dict[int, Prediction | str] = {}
    for number, image in batch:
        if isinstance(image, str):
            predictions[number] = image
        else:
            key = image.shape if detector.takes_several else number
            together.setdefault(key, []).append((number, image))
    for alike in together.values():
        predictions |= _of_alike(detector, alike, wanted)
    for read in batch:
        image_id, name = images.image_id(read.number), images.file_name(read.number)
        prediction = predictions[read.number]
        if isinstance(prediction, str):
            found.left_out.append(LeftOut(image_id, name, prediction))
            continue
        found.images.append((image_id, name, *prediction.size))
        if prediction.panoptic is None:
            found.results.extend(results_of(prediction.only(wanted.classes, wanted.most), image_id))
        else:
            picture = f"{image_id:012d}.png"
            png, entry = prediction.panoptic.to_coco(prediction.label_map, image_id, picture)
            found.pictures[picture] = png
            found.results.append(entry)
    return found


def _of_alike(
    detector: Detector, alike: Sequence[tuple[int, ReadyImage]], wanted: Wanted
) -> dict[int, Prediction | str]:
    """Predictions of images of one size, by their numbers; of an image that the network refuses the reason."""
    try:
        found = detector.predict_together([image for _, image in alike], [wanted.threshold] * len(alike))
    except ValueError as error:
        if len(alike) == 1:
            return {alike[0][0]: str(error)}
        alone: dict[int, Prediction | str] = {}
        for one in alike:
            alone |= _of_alike(detector, [one], wanted)
        return alone
    return {number: one for (number, _), one in zip(alike, found, strict=True)}


def weights_of(detector: Detector) -> str:
    """Digest of the weights, or of an exported file."""
    if detector.runtime == "pytorch":
        return weights_digest(detector.module.network.state_dict())
    return "+".join(sha256_of(file) for file in files_of(Path(detector.name)))
