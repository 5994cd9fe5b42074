"""The same image twice: byte for byte, or nearly, in one split or across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.doctor.agreement import agreement, chosen
from datamodules.doctor.image_files import SplitProbes
from datamodules.index import AnnotationIndex, Fault

# Measured on 907 real photographs and blood smears against their copies (test_doctor_leaks.py):
# re-encoded, halved, stretched, brightened or cut by 5 % an image keeps more than 0.90 and 0.83; the nearest
# two different images have less than 0.80 of one of them.
SAME = 0.90  # correlation of the thumbnails
SAME_BITS = 0.83  # share of equal signs of the differences between neighbours
_CANDIDATES = 4  # best coarse matches of an image in each block that are compared in full
_BLOCK = 4096
_FLAT = 4.0  # standard deviation in grey levels below which an image is too flat to be recognised


class Pair(NamedTuple):
    """Two images that show the same."""

    train: int  # row in the first split
    other: int  # row in the second split
    likeness: float  # correlation; 1 for the same bytes
    how: str  # "the same bytes", "nearly the same", "nearly the same, mirrored"


def twins(index: AnnotationIndex, probes: SplitProbes) -> Iterator[Fault]:
    """Files of one split with the same bytes; an error if their objects contradict each other."""
    for rows in groups(probes.digests):
        kept = chosen(index, rows)
        for row in rows:
            if row != kept:
                yield _twin(index, kept, row)


def _twin(index: AnnotationIndex, kept: int, row: int) -> Fault:
    name, other = str(index.files[row]), str(index.files[kept])
    if name == other:
        message = f"the image is listed twice, also as id {int(index.image_ids[kept])}"
    else:
        message = f"the same bytes as {other}"
    found = agreement(index, kept, index, row)
    ours, theirs = len(index.objects(row).areas), len(index.objects(kept).areas)
    if found.kind == "conflict":
        what = "no objects" if not ours else "no objects there" if not theirs else "other objects"
        return Fault(
            "error", "conflicting_duplicate", name, int(index.image_ids[row]),
            f"{message}, but with {what} ({ours} here, {theirs} there, {found.matched} alike); one of the two is "
            "wrong: keep the right one",
        )  # fmt: skip
    how = {
        "same": "with the same objects; remove one",
        "near": f"with nearly the same objects (boxes of the same class that overlap by {found.overlap:.2f} and "
        "more); keep one",
        "partial": f"but {found.matched} of its {ours} objects and of the {theirs} there are alike, the others are in "
        "one of the two only; keep the one that is complete",
    }[found.kind]
    return Fault("warning", "duplicate_image", name, int(index.image_ids[row]), f"{message}, {how}")


def groups(digests: NDArray[np.void]) -> Iterator[list[int]]:
    """Rows with equal digests, two or more; files that could not be read have none."""
    rows = defaultdict(list)
    for row, digest in enumerate(digests.tolist()):
        if any(digest):
            rows[digest].append(row)
    return (group for group in rows.values() if len(group) > 1)


def leaks(first: SplitProbes, second: SplitProbes) -> list[Pair]:
    """For each image of the second split that is also in the first, its best match there."""
    by_digest: dict[bytes, int] = {}
    for row, digest in enumerate(first.digests.tolist()):
        if any(digest):
            by_digest.setdefault(digest, row)
    exact = {
        row: Pair(by_digest[d], row, 1.0, "the same bytes")
        for row, d in enumerate(second.digests.tolist())
        if d in by_digest
    }
    near = _near(first.thumbnails, second.thumbnails, "nearly the same")
    for row, pair in _near(
        first.thumbnails, second.thumbnails[:, :, ::-1], "nearly the same, mirrored"
    ).items():
        if row not in near or near[row].likeness < pair.likeness:
            near[row] = pair
    return [pair for _, pair in sorted({**near, **exact}.items())]


def _near(first: NDArray[np.uint8], second: NDArray[np.uint8], how: str) -> dict[int, Pair]:
    """Picks candidates by the correlation of coarse thumbnails and decides by the full thumbnails."""
    found: dict[int, Pair] = {}
    for low in range(0, len(second), _BLOCK):
        theirs = _Looks(second[low : low + _BLOCK])
        for start in range(0, len(first), _BLOCK):
            ours = _Looks(first[start : start + _BLOCK])
            coarse = theirs.coarse @ ours.coarse.T
            most = min(_CANDIDATES, coarse.shape[1])
            best = np.argpartition(-coarse, most - 1, axis=1)[:, :most]
            b = np.repeat(np.arange(len(coarse)), most)
            a = best.reshape(-1)
            keep = coarse[b, a] > SAME - 0.02
            a, b = a[keep], b[keep]
            likeness = (ours.fine[a] * theirs.fine[b]).sum(axis=1)
            bits = (ours.signs[a] == theirs.signs[b]).mean(axis=1)
            for k in np.flatnonzero((likeness >= SAME) & (bits >= SAME_BITS)).tolist():
                row = low + int(b[k])
                if row not in found or found[row].likeness < likeness[k]:
                    found[row] = Pair(start + int(a[k]), row, float(min(likeness[k], 1.0)), how)
    return found


class _Looks:
    """Thumbnails [n, 17, 17] as unit vectors, coarse and fine, and as signs of neighbour differences."""

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        levels = thumbnails.astype(np.float32)
        number = len(levels)
        textured = levels.reshape(number, -1).std(axis=1) > _FLAT
        self.fine = _unit(levels.reshape(number, -1)) * textured[:, None]
        pooled = levels[:, :16, :16].reshape(number, 8, 2, 8, 2).mean(axis=(2, 4))
        self.coarse = _unit(pooled.reshape(number, -1)) * textured[:, None]
        across = (levels[:, :-1, 1:] > levels[:, :-1, :-1]).reshape(number, -1)
        down = (levels[:, 1:, :-1] > levels[:, :-1, :-1]).reshape(number, -1)
        self.signs = np.concatenate([across, down], axis=1)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)


def leak_faults(
    splits: Mapping[str, AnnotationIndex], pairs: Mapping[tuple[str, str], list[Pair]]
) -> Iterator[Fault]:
    """A warning for each image of a later split that is also in an earlier one."""
    for (first, second), found in pairs.items():
        for pair in found:
            ours, theirs = splits[first], splits[second]
            if ours.files[pair.train] == theirs.files[pair.other]:
                continue  # the reader has reported that both splits list it
            kind = "leak" if pair.likeness == 1.0 and pair.how == "the same bytes" else "near_leak"
            how = pair.how if kind == "leak" else f"{pair.how} ({pair.likeness:.2f})"
            clash = kind == "leak" and agreement(ours, pair.train, theirs, pair.other).kind == "conflict"
            but = ", but with other objects there, and one of the two is wrong" if clash else ""
            yield Fault(
                "warning", kind, str(theirs.files[pair.other]), int(theirs.image_ids[pair.other]),
                f"{how} as {ours.files[pair.train]} in {first}{but}: the score on {second} is not that of unseen "
                "data; keep it in one of them",
            )  # fmt: skip


def augmented_leaks(splits: Mapping[str, AnnotationIndex]) -> Iterator[Fault]:
    """Roboflow's augmented copies of one image share the name before `.rf.`; they belong in one split."""
    seen: dict[str, tuple[str, str]] = {}
    for split, index in splits.items():
        for row, file in enumerate(index.files.tolist()):
            stem, mark, _ = PurePosixPath(file).name.partition(".rf.")
            if not mark:
                continue
            first, where = seen.setdefault(stem, (split, file))
            if first != split:
                yield Fault(
                    "warning", "augmented_leak", file, int(index.image_ids[row]),
                    f"a copy of the same image, {where}, is in {first}: the score on {split} is not that of "
                    "unseen data; split by the name before .rf.",
                )  # fmt: skip
