"""A cleaned copy of a data set in COCO's layout, with a log of each change; the source is only read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from datamodules.doctor.changes import Action, Change, ChangeLog
from datamodules.doctor.converting import converted, suffix_of
from datamodules.doctor.verdicts import Verdicts, judge, merged_classes
from datamodules.index import AnnotationIndex, Fault
from datamodules.index.object_rules import OUTSIDE_TOLERANCE, Box, judge_segmentation
from datamodules.shards.reader import is_address
from datamodules.writers.base import Labelled, LabelledImage, labelled_images
from datamodules.writers.coco import CocoWriter

if TYPE_CHECKING:
    from datamodules.doctor import Examination
    from datamodules.progress import Meter

_LARGEST_ID = 2**53 - 1  # the largest that every reader of json keeps exactly


def mend(found: Examination, out: str | Path, progress: Meter | None = None) -> ChangeLog:
    """Writes OUT/annotations/instances_SPLIT.json, OUT/SPLIT/ and the logs OUT/fix_log.{jsonl,md}.

    Images are copied byte for byte unless they have to be converted. What is ambiguous is left out, or kept
    and logged. OUT appears when it is complete.

    Args:
        found: a full examination, images included.
        out: folder that does not exist, or is empty.
        progress: called after each image.

    Raises:
        ValueError: if `out` is not empty or lies in the source, the examination was quick, or something
            needs the user's decision.
    """
    source = found.source
    target = Path(out).expanduser().resolve()
    if isinstance(source.root, str):
        raise ValueError(f"{source.root} is an address; a cleaned copy is made of a folder")
    root = source.root
    check_target(root, target, not found.probes)
    verdicts = judge(found)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        log = _Copy(found, verdicts, work, progress).write()
        (work / "fix_log.md").write_text(log.text(root), "utf-8", "backslashreplace")
        work.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return log


def check_target(source: Path | str, out: Path, quick: bool) -> None:
    """Refuses a target that `mend` would refuse, before any work.

    Raises:
        ValueError: if `out` is not empty or lies in the source, the source is an address, or the
            check was `quick`.
    """
    if is_address(str(source)):
        raise ValueError(
            f"{source} is an address; a cleaned copy is made of a folder: clean the data set that was packed, or "
            "copy the shards here with zoo data convert"
        )
    folder, target = Path(source).expanduser().resolve(), out.expanduser().resolve()
    if quick:
        raise ValueError("a cleaned copy needs the images looked at: leave --quick out")
    if target.is_relative_to(folder) or folder.is_relative_to(target):
        raise ValueError(f"{target} and the source {folder} lie in one another; name another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; name a folder that does not exist")


class _Copy:
    """The copy under construction."""

    def __init__(self, found: Examination, verdicts: Verdicts, work: Path, progress: Meter | None) -> None:
        self._found, self._verdicts, self._work, self._progress = found, verdicts, work, progress
        self._log = ChangeLog(work / "fix_log.jsonl")
        self._total = sum(len(index) for index in found.source.splits.values())
        self._done = 0

    def write(self) -> ChangeLog:
        for fault in self._verdicts.not_read:
            self._tell("image_left_out", fault)
        for fault in self._verdicts.objects:
            self._tell("object_left_out", fault)
        splits, classes = self._found.source.splits, self._found.source.classes
        kept = self._classes()
        names = {i: " ".join(classes[i].split()) for i in classes if kept[i] == i}
        writer = CocoWriter(self._work, names, list(splits))
        for split, index in splits.items():
            self._split(split, index, kept, writer)
        writer.close()
        gone = {splits[split].files[row] for split, rows in self._verdicts.images.items() for row in rows}
        for fault in (f for f in self._verdicts.kept if f.file not in gone):
            self._tell("kept_as_it_is", fault)
        self._log.close()
        return self._log

    def _tell(self, action: Action, fault: Fault) -> None:
        self._log.add(Change(action, None, fault.file, fault.id, None, None, fault.message, fault.of))

    def _classes(self) -> dict[int, int]:
        classes = self._found.source.classes
        counts = Counter(i for index in self._found.source.splits.values() for i in index.source_ids.tolist())
        kept = merged_classes(classes, counts)
        for source_id, new in kept.items():
            if new != source_id:
                why = "the names differ by case, spaces or Unicode form only"
                self._log.add(
                    Change(
                        "class_merged", None, ".", source_id, classes[source_id], classes[new], why, "class"
                    )
                )
        return kept

    def _split(self, split: str, index: AnnotationIndex, kept: Mapping[int, int], writer: CocoWriter) -> None:
        (self._work / split).mkdir()
        left_out = self._verdicts.images[split]
        renumber = (
            bool(len(index))
            and not 0 <= int(index.image_ids.min()) <= int(index.image_ids.max()) <= _LARGEST_ID
        )
        names, objects = _Names(index), _Objects(split, kept, index, self._log)
        for row, image in enumerate(labelled_images(index, index.files.tolist())):
            self._step()
            if row in left_out:
                self._note("image_left_out", split, image.name, len(image.objects), 0, left_out[row])
                continue
            image_id = row + 1 if renumber else image.image_id
            name = self._image(split, index, row, names)
            mended = tuple(objects.mended(image))
            writer.add(split, replace(image, name=name, image_id=image_id, objects=mended))

    def _image(self, split: str, index: AnnotationIndex, row: int, names: _Names) -> str:
        """Writes the file; returns its name below the split's folder."""
        source, probe = index.files[row], self._found.probes[split].odd.get(row)
        data = index.images.read(source)
        made = converted(data, probe, index.size(row)) if probe is not None else None
        suffix = made.suffix if made is not None else suffix_of(probe, source)
        name = names.take(row, suffix)
        file = self._work / split / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if made is None else made.data)
        if made is not None:
            self._note("file_converted", split, source, made.before, made.after, made.why)
        elif PurePosixPath(name).name != PurePosixPath(source).name:
            self._note("file_renamed", split, source, source, name, "the suffix says what the bytes are")
        return name

    def _note(self, action: Action, split: str, file: str, before: Any, after: Any, why: str) -> None:
        self._log.add(Change(action, split, file, None, before, after, why))

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Objects:
    """The objects of a split: clipped to the image, without repetitions, with merged classes."""

    def __init__(self, split: str, kept: Mapping[int, int], index: AnnotationIndex, log: ChangeLog) -> None:
        self._split, self._kept, self._log = split, kept, log
        usable = index.annotation_ids[index.annotation_ids <= _LARGEST_ID]
        self._next = int(usable.max(initial=0)) + 1
        self._used: set[int] = set()

    def mended(self, image: LabelledImage) -> Iterator[Labelled]:
        """The corrected objects of an image of the source."""
        seen: set[tuple[Any, ...]] = set()
        for labelled in image.objects:
            old_id, given, area = labelled.annotation_id, labelled.box, labelled.area
            label = self._kept[labelled.source_id]
            box, why = mended_box(given, area, image.size)
            key = (*(round(v, 3) for v in box), label, labelled.crowd)
            if key in seen:
                repeats = "repeats an earlier one of its class"
                self._note("object_left_out", image, old_id, list(given), None, repeats)
                continue
            seen.add(key)
            if why:
                self._note("box_changed", image, old_id, list(given), list(box), why)
            if not area > 0 or (why and abs(area - given[2] * given[3]) < 1e-6 * max(area, 1.0)):
                self._note("area_changed", image, old_id, area, box[2] * box[3], "the area of the box")
                area = box[2] * box[3]
            own_id, outline = self._own_id(image, old_id), labelled.outline
            if outline is not None:
                _, verdict = judge_segmentation(outline, box, image.size, labelled.crowd)
                if verdict is not None and verdict.kind != "crowd_polygon":
                    self._note("outline_left_out", image, old_id, None, None, verdict.message)
                    outline = None
            yield Labelled(own_id, label, box, area, labelled.crowd, outline)

    def _own_id(self, image: LabelledImage, old: int) -> int:
        """The id of the source, or a new one if it is used already, negative or too large for some readers."""
        new = old
        if old in self._used or not 0 <= old <= _LARGEST_ID:
            new, self._next = self._next, self._next + 1
            self._note("renumbered", image, old, old, new, "the id is used twice, negative or too large")
        self._used.add(new)
        return new

    def _note(self, action: Action, image: LabelledImage, id: int, before: Any, after: Any, why: str) -> None:
        self._log.add(Change(action, self._split, image.name, id, before, after, why))


def mended_box(box: Box, area: float, size: tuple[int, int]) -> tuple[Box, str]:
    """The box x, y, w, h inside the image of (h, w), and why it was changed; "" if it was not."""
    x, y, w, h = box
    height, width = size
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond <= OUTSIDE_TOLERANCE:
        return box, ""
    if (
        w > x
        and h > y
        and w <= width + 1
        and h <= height + 1
        and abs(area - (w - x) * (h - y)) <= 0.02 * area
    ):
        return (x, y, w - x, h - y), "they were corners x0, y0, x1, y1, as the area says"
    left, top = max(x, 0.0), max(y, 0.0)
    return (
        left,
        top,
        min(x + w, width) - left,
        min(y + h, height) - top,
    ), f"clipped; it passed the edge by {beyond:.1f}"


class _Names:
    """Names of files below the split's folder: those of the source without the folders they all share."""

    def __init__(self, index: AnnotationIndex) -> None:
        self._index = index
        folders = {PurePosixPath(file).parent for file in index.files}
        self._shared = (
            PurePosixPath(os.path.commonpath([str(f) for f in folders])) if folders else PurePosixPath(".")
        )
        self._taken: set[str] = set()

    def take(self, row: int, suffix: str) -> str:
        """The name of image `row` with another suffix; with its id where two would be one, also by case."""
        path = PurePosixPath(self._index.files[row])
        inside = (
            path.relative_to(self._shared) if path.is_relative_to(self._shared) else PurePosixPath(path.name)
        )
        parts = [part for part in inside.with_suffix(suffix).parts if part not in ("..", ".", "/")]
        own, image_id = PurePosixPath(*parts), int(self._index.image_ids[row])
        others = (own.with_stem(f"{own.stem}_{image_id}{'_' * more}") for more in count())
        name = next(str(n) for n in chain([own], others) if str(n).casefold() not in self._taken)
        self._taken.add(name.casefold())
        return name
