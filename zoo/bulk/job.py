"""`zoo predict MODEL --data DIR --output results.json`: many images, resumable at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from datamodules.images.decodable import usable_cores
from zoo.bulk import results
from zoo.bulk.batches import Found, NumbersOfBatches, Wanted, found_in, read_batches
from zoo.bulk.identity import begun_before, finished, identity_of, journal_file, lowest_of
from zoo.bulk.images import open_images
from zoo.bulk.journal import Journal, Line
from zoo.bulk.plan import Engine, Job, Setting, class_names, settled
from zoo.detector import Detector, GivenTiles
from zoo.runs import threads
from zoo.runs.console import Console, counted
from zoo.runs.devices import device_for
from zoo.runs.predict import threshold_line
from zoo.runs.prediction_files import categories_of
from zoo.runs.progress import progress
from zoo.runs.signals import Interrupted
from zoo.storage.durable import write_atomically

_LEFT_OUT_SAID = 5


def predict_data(
    load: Callable[[], Detector],
    model: str,
    data: str,
    output: Path,
    console: Console,
    *,
    split: str | None = None,
    format: str = "auto",
    threshold: float | None = None,
    tiles: GivenTiles | None = None,
    tile_overlap: float | None = None,
    classes: str | None = None,
    most: int | None = None,
    setting: Setting | None = None,
    registry: Path | None = None,
) -> dict[str, Any]:
    """Detects in all images of a folder or of shards; a job that was interrupted goes on where it was.

    Beside `output` lies its images file with ids, sizes, classes and the images that were left out, and until the job
    is finished a journal.

    Args:
        load: gives the detector.
        model: its name, for messages.
        data: folder, or address of shards.
        output: results.json (COCO's results; of a panoptic model its panoptic form), or results.parquet.
        console: for the user.
        split: of a data set.
        format: as of `open_images`.
        threshold: as of `Detector.predict`.
        tiles: likewise.
        tile_overlap: likewise.
        classes: names joined by commas; None for all.
        most: detections an image, the best; None for all.
        setting: how it is computed.
        registry: folder.

    Returns:
        the counts, the files and the images that were left out.

    Raises:
        ValueError, OSError: model, data or output cannot be used, or the output is of another job.
        Interrupted: by Ctrl-C, with what is kept.
    """
    setting = setting or Setting()
    _check_output(output)
    images = open_images(data, split, format)
    if not len(images):
        raise ValueError(f"{data} has no image")
    detector = load()
    detector.input = detector.input.with_tiles(detector.tiles_of(tiles, tile_overlap))
    wanted = Wanted(threshold, class_names(classes, detector), most)
    panoptic = detector.module.panoptic is not None
    if panoptic and (output.suffix == results.PARQUET or wanted.classes or most):
        raise ValueError(
            f"{detector.name} gives panoptic segments, one for every pixel: COCO's panoptic form alone, so --output "
            "results.json, without --classes and --max-detections"
        )
    if setting.engine not in get_args(Engine):
        raise ValueError(f"--engine {setting.engine!r:.40}; it is {' or '.join(get_args(Engine))}")
    device = device_for(setting.device, detector)
    detector.to(device)
    identity = identity_of(detector, images, wanted)
    if done := finished(output, identity):
        console.say(f"{output} is finished: {counted(done['num_images'], 'image')}; nothing is done again")
        return {key: value for key, value in done.items() if key != "job"}
    output.parent.mkdir(parents=True, exist_ok=True)
    with Journal(journal_file(output)) as journal:
        begun = begun_before(journal, identity, output)
        setting = settled(setting, begun, device)
        job = Job(detector, model, images, wanted, setting, output, registry)
        if begun is None:
            journal.begin({"identity": identity, "batch_size": job.batch_size, "threads": usable_cores()})
        assert journal.job is not None
        _say_plan(job, journal, console)
        with threads.chosen(console, before=journal.job["job"]["threads"]):
            _run(job, journal, console)
        document = _write(job, journal, identity)
        journal.remove()
    _say_end(document, console)
    return document


def _run(job: Job, journal: Journal, console: Console) -> None:
    """Does what is not done; every batch is kept when it is finished."""
    todo = [batch for batch in range(job.batches) if batch not in journal.done]
    kept = len(job.images) - _count(job, todo)
    with _interrupted(job, journal), _progress(kept, len(job.images), console) as advance:
        for batch, found in _found(job, todo):
            for name, png in found.pictures.items():
                folder = results.pictures_folder(job.output)
                folder.mkdir(exist_ok=True)
                write_atomically(folder / name, png)
            journal.add(batch, {"images": found.images, "results": found.results, "left_out": found.left_out})
            advance(len(found.images) + len(found.left_out))


def _found(job: Job, todo: list[int]) -> Iterator[tuple[int, Found]]:
    if not todo:
        return
    if job.setting.engine == "ray":
        from zoo.bulk.on_ray import found_on_ray

        yield from found_on_ray(job, todo)
        return
    numbers = NumbersOfBatches(todo, job.batch_size, len(job.images))
    assert job.setting.workers is not None
    read = read_batches(job.images, job.detector.input, numbers, job.setting.workers)
    for batch, one in zip(todo, read, strict=True):
        yield batch, found_in(job.detector, job.images, one, job.wanted)


def _count(job: Job, batches: Iterable[int]) -> int:
    return sum(min(job.batch_size, len(job.images) - batch * job.batch_size) for batch in batches)


@contextmanager
def _interrupted(job: Job, journal: Journal) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        done = _count(job, journal.done)
        raise Interrupted(
            f"interrupted: {done} of {len(job.images)} images are kept in {journal.path}; the same command goes on"
        ) from error


@contextmanager
def _progress(kept: int, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """How far it is, and images a second in the end."""
    begun, done = time.monotonic(), kept

    with progress("detecting", "images", console, kept) as meter:

        def advance(number: int) -> None:
            nonlocal done
            done += number
            meter(done, total)

        if kept:
            meter(kept, total)
        yield advance
    seconds = time.monotonic() - begun
    if done > kept:
        rate = f"{(done - kept) / max(seconds, 1e-9):.1f} images/s"
        console.say(f"detected    {counted(done - kept, 'image')} in {seconds:.1f} s, {rate}")


def _check_output(output: Path) -> None:
    if output.suffix not in (results.JSON, results.PARQUET) or output.is_dir():
        raise ValueError(
            f"--output {str(output)[:200]}: with --data it is a file, results{results.JSON} or results{results.PARQUET}"
        )
    if output.name.endswith(results.IMAGES):
        raise ValueError(
            f"--output {str(output)[:200]}: names on {results.IMAGES} are those of lists of images; give another"
        )


def _write(job: Job, journal: Journal, identity: Line) -> Line:
    """The files, from the journal; the output last, for it says that the job is finished."""
    left_out = [*job.images.left_out, *results.left_out_of(journal.lines())]
    categories = categories_of(job.detector.label_map)
    document: Line = {
        "model": job.detector.name,
        "threshold": identity["threshold"],
        "class_thresholds": identity["class_thresholds"],
        "num_images": len(job.images) + len(job.images.left_out) - len(left_out),
        "num_detections": sum(len(line["results"]) for line in journal.lines()),
        "unreadable": [one._asdict() for one in left_out],
        "files": {"results": str(job.output), "images": str(results.images_file(job.output))},
        "job": identity,
    }
    results.write_images(results.images_file(job.output), document, categories, journal.lines())
    if job.detector.module.panoptic is not None:
        results.pictures_folder(job.output).mkdir(exist_ok=True)
        results.write_panoptic(job.output, categories, journal.lines(), journal.lines())
    elif job.output.suffix == results.PARQUET:
        results.write_parquet(job.output, categories, journal.lines())
    else:
        results.write_results(job.output, journal.lines())
    return {key: value for key, value in document.items() if key != "job"}


def _say_plan(job: Job, journal: Journal, console: Console) -> None:
    images, detector = job.images, job.detector
    of_split = "" if images.split is None else f", split {images.split}"
    console.say(f"images      {len(images)} of {images.place} ({images.format}{of_split})")
    console.say(
        f"model       {detector.name}, on {job.setting.device}, {counted(job.batch_size, 'image')} at a time"
    )
    if job.wanted.threshold is None:
        if detector.module.panoptic is not None:
            console.say(f"threshold   {lowest_of(detector)}, of the model's panoptic rule")
        elif detector.thresholds is not None:
            console.say(threshold_line(detector.thresholds))
        else:
            console.say(f"threshold   {lowest_of(detector)}; --threshold 0 keeps all, as an evaluation needs")
    if images.classes is not None and set(images.classes.items()) != set(
        zip(detector.label_map.source_ids, detector.label_map.names, strict=True)
    ):
        console.say("note        the classes of the data are not the model's; category_id are the model's")
    if journal.done:
        console.say(f"goes on     {_count(job, journal.done)} of {len(images)} images are done")


def _say_end(document: Line, console: Console) -> None:
    left_out = document["unreadable"]
    for one in left_out[:_LEFT_OUT_SAID]:
        console.say(f"left out    {one['file_name'][:200]}: {one['reason'][:400]}")
    if len(left_out) > _LEFT_OUT_SAID:
        console.say(f"left out    ... {len(left_out)} in all; {document['files']['images']} lists them")
    if not document["num_detections"]:
        console.say(f"nothing scores {document['threshold']} or more; try a lower --threshold")
    for path in document["files"].values():
        console.say(path)
