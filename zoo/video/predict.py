"""`zoo predict MODEL video.mp4|rtsp://...|0`: what is in each frame, as lines of JSON and drawn into a video."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.bulk.batches import Wanted
from zoo.bulk.plan import class_names
from zoo.detector import Detector, GivenTiles, Prediction
from zoo.runs.console import Console, counted
from zoo.runs.devices import device_for
from zoo.runs.predict import PREDICTIONS_FILE, threshold_line
from zoo.runs.progress import progress
from zoo.runs.signals import Interrupted
from zoo.storage.durable import write_json, written
from zoo.storage.image_fetch import scheme_of
from zoo.video.frames import Frame, Video, is_camera
from zoo.video.writing import VideoWriter


def predict_video(
    load: Callable[[], Detector],
    source: str,
    output: Path,
    console: Console,
    *,
    every: int = 1,
    threshold: float | None = None,
    tiles: GivenTiles | None = None,
    tile_overlap: float | None = None,
    classes: str | None = None,
    most: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Detects in the frames of a video, writes them with boxes at their own times, and a line of JSON a frame.

    Both files are readable at every moment, however it is ended. Sound is not kept.

    Args:
        load: gives the detector; called once the video is open.
        source: file, rtsp address or number of a camera.
        output: folder; made if absent.
        console: for the user.
        every: frames from one that is looked at to the next; those between show what was found last.
        threshold: as of `Detector.predict`.
        tiles: likewise.
        tile_overlap: likewise.
        classes: names joined by commas; None for all.
        most: detections a frame, the best; None for all.
        device: of torch.

    Returns:
        the counts and files, as in predictions.json; `unreadable` says what of a video could not be read.

    Raises:
        ValueError, OSError: the video cannot be opened or has no frame, or a file cannot be written.
        Interrupted: by Ctrl-C, with what was written.
    """
    with Video(source) as video:
        detector = load()
        wanted = Wanted(threshold, class_names(classes, detector), most)
        cut = detector.tiles_of(tiles, tile_overlap)
        detector.input = detector.input.with_tiles(cut)
        detector.to(device_for(device, detector))
        output.mkdir(parents=True, exist_ok=True)
        stem = stem_of(source)
        what = "segments" if detector.module.panoptic is not None else "detections"
        files = {"video": output / f"{stem}_{what}.mp4", "frames": output / f"{stem}.jsonl"}
        _say_begin(video, detector, wanted, every, console)
        seen = _Seen(detector, wanted, every, files["frames"])
        with _ended_by_ctrl_c(seen, files), VideoWriter(files["video"], video.rate) as writer:
            _follow(video, seen, writer, console)
    if not seen.frames:
        for path in files.values():
            path.unlink(missing_ok=True)
        raise ValueError(
            f"{source[:200]} has no frame that can be decoded: {video.problem or 'it is damaged'}"
        )
    problems = [f"{source[:200]}: {fault}" for fault in video.faults()]
    for problem in problems:
        console.say(f"damaged     {problem}")
    result = {
        "model": detector.name,
        "threshold": detector.default_threshold if threshold is None else threshold,
        "video": source[:200],
        "frames": seen.frames,
        "looked_at": seen.looked_at,
        "rate": float(video.rate),
        "label_map": detector.label_map.to_dict(),
        "unreadable": problems,
        "files": {kind: str(path) for kind, path in files.items()},
    }
    write_json(output / PREDICTIONS_FILE, result, indent=2)
    for path in (*files.values(), output / PREDICTIONS_FILE):
        console.say(str(path))
    return result


class _Seen:
    """Looks at frames and keeps a line for each: number, seconds, and what is in it."""

    def __init__(self, detector: Detector, wanted: Wanted, every: int, path: Path) -> None:
        self.frames = self.looked_at = 0
        self._detector, self._wanted, self._every = detector, wanted, every
        self._last: Prediction | None = None
        self._path = path
        with written(path):
            path.write_bytes(b"")

    def painted(self, frame: Frame) -> Image.Image:
        """The frame with what is in it, or was in the last that was looked at."""
        self.frames += 1
        image = Image.fromarray(frame.pixels)
        if self._last is None or frame.number % self._every == 0:
            ready = self._detector.ready(image)
            (found,) = self._detector.predict_together([ready], [self._wanted.threshold])
            self._last = found.only(self._wanted.classes, self._wanted.most)
            self._keep(frame, self._last)
        # cropped: a legend of segments would stand below
        return self._last.paint(image, longest=max(image.size)).crop((0, 0, *image.size))

    def _keep(self, frame: Frame, found: Prediction) -> None:
        self.looked_at += 1
        document = found.to_dict()
        for of_all in ("label_map", "model", "class_thresholds"):  # in predictions.json
            document.pop(of_all, None)
        line = {"frame": frame.number, "time": round(float(frame.time), 6), **document}
        with written(self._path), open(self._path, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _follow(video: Video, seen: _Seen, writer: VideoWriter, console: Console) -> None:
    begun = time.monotonic()
    with progress("frames", "frames", console) as meter:
        for frame in video:
            writer.add(np.asarray(seen.painted(frame)), frame.time)
            meter(seen.frames, video.number)
    seconds = max(time.monotonic() - begun, 1e-9)
    if seen.frames:
        console.say(
            f"detected    in {seen.looked_at} of {counted(seen.frames, 'frame')} in {seconds:.1f} s, "
            f"{seen.frames / seconds:.1f} frames/s"
        )


@contextmanager
def _ended_by_ctrl_c(seen: _Seen, files: dict[str, Path]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        both = " and ".join(str(path) for path in files.values())
        raise Interrupted(
            f"interrupted after {counted(seen.frames, 'frame')}; {both} have what was seen"
        ) from error


def _say_begin(video: Video, detector: Detector, wanted: Wanted, every: int, console: Console) -> None:
    number = f"{counted(video.number, 'frame')}, " if video.number else ""
    console.say(f"video       {video.source[:200]}: {number}{float(video.rate):.6g} a second")
    if video.number == 0 and (is_camera(video.source) or scheme_of(video.source)):
        console.say("end         Ctrl-C ends it, with what was written")
    if video.has_audio:
        console.say("sound       is not kept")
    if every > 1:
        console.say(f"every       {every}th frame is looked at; those between show what was found last")
    if wanted.threshold is None and detector.thresholds is not None:
        console.say(threshold_line(detector.thresholds))


def stem_of(source: str) -> str:
    """A name for the files of a video."""
    if is_camera(source):
        return f"camera{source}"
    if scheme_of(source):
        # without the password that an address may have
        return re.sub(r"[^\w.-]", "_", source.partition("://")[2].rpartition("@")[2])[:100] or "stream"
    return Path(source).stem[:100] or "video"
