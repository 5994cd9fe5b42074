from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equal_indexes import assert_equal
from tiny_sets import SQUARE, coco_content, write_coco, write_voc, write_yolo

from datamodules.coco import CocoDataModule
from datamodules.formats import coco, detect
from datamodules.index import AnnotationIndex, arrow
from datamodules.index.arrow import open_columns, write_columns
from datamodules.index.growing_columns import Scratch
from datamodules.kept import cache as index_cache
from datamodules.kept import large as keeping
from datamodules.kept import watch
from datamodules.kept.watch import LayoutWatch


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The json files that were read; every data set counts as large, and times as settled at once."""
    seen: list[Path] = []
    load = coco.load

    def counted(path: Path, *rest: Any) -> coco.CocoFile:
        seen.append(path)
        return load(path, *rest)

    monkeypatch.setattr(coco, "load", counted)
    monkeypatch.setattr(keeping, "LARGE_BYTES", 0)
    monkeypatch.setattr(watch, "_TICK", 0)
    return seen


def layout(root: Path) -> CocoDataModule:
    return CocoDataModule(
        root=str(root),
        labels="contiguous",
        input=SQUARE,
        train_transform="flip",
        batch_size=1,
        eval_batch_size=1,
        num_workers=0,
        seed=0,
        train_split="train",
        eval_split="val",
    )


def train_of(root: Path) -> AnnotationIndex:
    return layout(root).read().splits["train"]


def entries() -> list[str]:
    return sorted(p.name for p in index_cache.cache_folder().iterdir() if p.is_dir())


def outlined() -> dict[str, Any]:
    content = coco_content()
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y + h, x + w, y, x, y]]
    content["annotations"][1]["segmentation"] = {"size": [30, 40], "counts": [5, 7, 1188]}
    content["annotations"][1]["iscrowd"] = 1
    return content


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("content", [coco_content(), outlined()], ids=["boxes", "outlines"])
def test_a_mapped_index_is_the_one_that_was_written(content, tmp_path):
    index = coco.read(write_coco(tmp_path / "set", content)).splits["train"]
    write_columns(index.columns, tmp_path / "a.arrow")
    mapped = AnnotationIndex(index.root, open_columns(str(tmp_path / "a.arrow")))
    assert_equal(mapped, index)
    back = mapped.take([2, 0])
    assert_equal(back, index.take([2, 0]))
    assert len(pickle.dumps(mapped.columns)) < 100 + len(str(tmp_path))
    assert_equal(pickle.loads(pickle.dumps(back)), index.take([2, 0]))


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(ValueError, match=r"a\.arrow is no annotation index"):
        open_columns(str(tmp_path / "a.arrow"))


def test_an_index_without_images_can_be_stored(tmp_path):
    index = coco.read(write_coco(tmp_path / "set")).splits["train"]
    write_columns(index.columns.take(np.zeros(0, np.int64)), tmp_path / "a.arrow")
    mapped = AnnotationIndex("/", open_columns(str(tmp_path / "a.arrow")))
    assert (len(mapped), mapped.num_objects, mapped.files.tolist()) == (0, 0, [])


def test_file_names_are_those_of_the_disk(tmp_path):
    name = os.fsdecode(
        b"caf\xe9 \xe5\x9b\xbe.jpg"
    )  # Latin-1 and UTF-8 in one name: no text, but a legal name
    content = coco_content()
    root = write_coco(tmp_path / "set", content)
    (root / "train/0.jpg").rename(root / "train" / name)
    content["images"][0]["file_name"] = name
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    index = coco.read(root).splits["train"]
    write_columns(index.columns, tmp_path / "a.arrow")
    mapped = AnnotationIndex(index.root, open_columns(str(tmp_path / "a.arrow")))
    assert mapped.files[0] == f"train/{name}"
    assert mapped.path(0).is_file()


# ---------------------------------------------------------------------- the cache


def test_a_large_set_is_read_once(reads, tmp_path):
    root = write_coco(tmp_path / "set", outlined())
    first = train_of(root)
    assert len(reads) == 2
    assert_equal(train_of(root), first)
    assert len(reads) == 2
    assert first.columns.reopen is not None


def test_a_small_set_is_not_kept(tmp_path):
    assert train_of(write_coco(tmp_path / "set")).columns.reopen is None
    assert not index_cache.cache_folder().exists()


def test_faults_and_digest_are_those_of_a_fresh_reading(reads, monkeypatch, tmp_path):
    content = outlined()
    content["annotations"][0]["segmentation"] = [[1]]
    content["annotations"].append({"id": 9, "image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]})
    root = write_coco(tmp_path / "set", content)
    (root / "train/1.jpg").unlink()
    made, opened = layout(root), layout(root)
    kept = [(m.read().faults, m.digest(), m.label_map) for m in (made, opened)]
    assert len(reads) == 2
    monkeypatch.setattr(keeping, "LARGE_BYTES", 1 << 40)
    fresh = layout(root)
    assert kept == [(fresh.read().faults, fresh.digest(), fresh.label_map)] * 2
    assert [f.kind for f in fresh.read().faults] == ["missing_image", "unknown_image", "invalid_segmentation"]


def change_json(root: Path) -> None:
    file = root / "annotations/instances_train.json"
    file.write_text(file.read_text().replace("7.5", "8.5"))


def change_json_keeping_its_times(root: Path) -> None:
    file = root / "annotations/instances_train.json"
    times = file.stat()
    change_json(root)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def remove_an_image(root: Path) -> None:
    (root / "train/1.jpg").unlink()


def rename_an_image(root: Path) -> None:
    (root / "train/1.jpg").rename(root / "train/other.jpg")


def add_an_image_below(root: Path) -> None:
    (root / "train/below").mkdir()
    shutil.copy(root / "train/1.jpg", root / "train/below/1.jpg")


CHANGES = [change_json, change_json_keeping_its_times, remove_an_image, rename_an_image, add_an_image_below]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layout_is_read_again(change, reads, tmp_path):
    root = write_coco(tmp_path / "set")
    before = train_of(root)
    change(root)
    after = train_of(root)
    assert len(reads) == 4
    if change in (remove_an_image, rename_an_image):
        assert (len(before), len(after)) == (3, 2)
    if change in (change_json, change_json_keeping_its_times):
        assert after.areas.tolist() == [8.5, 8.5, 8.5]


@pytest.mark.parametrize("late", ["folder", "file"])
def test_what_was_not_there_is_seen_when_it_comes(late, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_TICK", 0)
    json_of, folders = tmp_path / "train/train.json", [tmp_path / "train", tmp_path / "val"]
    json_of.parent.mkdir()
    json_of.write_text("{}")
    record = LayoutWatch([json_of], folders).record()
    assert LayoutWatch([json_of], folders).unchanged(record)
    files = [json_of]
    if late == "folder":
        (tmp_path / "val").mkdir()
    else:  # in a folder that is not looked into
        files.append(tmp_path / "val.json")
        files[-1].write_text("{}")
    assert not LayoutWatch(files, folders).unchanged(record)


def test_faults_that_name_no_text_are_kept(monkeypatch, tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    root = write_yolo(tmp_path / "set")
    (root / "images/train" / name).write_bytes(b"no picture")
    monkeypatch.setattr(keeping, "LARGE_COUNT", 0)
    monkeypatch.setattr(watch, "_TICK", 0)
    made, opened = detect.read(root), detect.read(root)
    assert made.splits["train"].columns.reopen is not None
    assert made.faults == opened.faults
    assert any(f.file.endswith(name) for f in opened.faults)


def test_an_equal_source_is_not_read_again(reads, tmp_path):
    root = write_coco(tmp_path / "set")
    train_of(root)
    (root / "annotations/instances_train.json").touch()
    train_of(root)
    assert len(reads) == 2
    assert len(entries()) == 1


def test_times_of_just_now_are_not_trusted(reads, monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "_TICK", 10**12)
    root = write_coco(tmp_path / "set")
    file = root / "annotations/instances_train.json"
    # as if it was changed within one tick of the clock: the facts stay equal
    now = time.time_ns()
    monkeypatch.setattr(watch, "_facts", lambda found: [0, now, now, 0])
    train_of(root)
    file.write_text(file.read_text().replace("7.5", "8.5"))
    assert train_of(root).areas.tolist() == [8.5, 8.5, 8.5]


def test_the_entry_before_stays_for_those_who_read_it(reads, tmp_path):
    root = write_coco(tmp_path / "set")
    old = [train_of(root)]
    for area in ("8.5", "9.5"):
        file = root / "annotations/instances_train.json"
        file.write_text(file.read_text().replace("7.5", area).replace("8.5", area))
        old.append(train_of(root))
    assert len(entries()) == 2
    assert pickle.loads(pickle.dumps(old[1])).areas.tolist() == [8.5, 8.5, 8.5]


@pytest.mark.parametrize("write", [write_yolo, write_voc, write_coco])
def test_any_format_is_kept_and_watched(write, monkeypatch, tmp_path):
    monkeypatch.setattr(keeping, "LARGE_COUNT", 1)
    monkeypatch.setattr(watch, "_TICK", 0)
    root = write(tmp_path / "set")
    built = []
    making = index_cache.write_source
    monkeypatch.setattr(index_cache, "write_source", lambda *a: (built.append(1), making(*a))[1])
    first, again = detect.read(root), detect.read(root)
    assert len(built) == 1
    for split in first.splits:
        assert_equal(first.splits[split], again.splits[split])
    assert (first.classes, first.faults) == (again.classes, again.faults)
    picture = next(root.rglob("0.jpg"))
    picture.write_bytes(picture.read_bytes()[:30])  # overwritten in its place
    assert "unreadable_image" in [f.kind for f in detect.read(root).faults]
    assert len(built) == 2


def test_pictures_outside_the_folder_are_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(keeping, "LARGE_COUNT", 1)
    monkeypatch.setattr(watch, "_TICK", 0)
    root = write_coco(tmp_path / "set")
    shutil.move(root / "train", tmp_path / "train")
    content = coco_content([f"../../train/{i}.jpg" for i in range(3)])
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    (root / "train").mkdir()
    assert len(detect.read(root).splits["train"]) == 3
    assert entries() == []


def damage_columns(entry: Path) -> None:
    file = next(entry.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-100])


def damage_bytes(entry: Path) -> None:
    file = next(entry.glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<4d", 5, 5, 10, 10))] ^= 1  # a box, not the frame of the file
    file.write_bytes(content)


def damage_faults(entry: Path) -> None:
    next(entry.glob("*.faults.json")).write_text("[{")


def damage_source(entry: Path) -> None:
    (entry / "source.json").write_bytes(b"\0" * 40)


def remove_columns(entry: Path) -> None:
    next(entry.glob("*.arrow")).unlink()


@pytest.mark.parametrize(
    "damage", [damage_columns, damage_bytes, damage_faults, damage_source, remove_columns, shutil.rmtree]
)
def test_a_damaged_entry_is_made_again(damage, reads, tmp_path):
    root = write_coco(tmp_path / "set", outlined())
    first = layout(root).digest()
    damage(index_cache.cache_folder() / entries()[0])
    assert layout(root).digest() == first
    assert len(reads) == 4
    layout(root).read()
    assert len(reads) == 4


def test_a_damaged_note_is_no_harm(reads, tmp_path):
    root = write_coco(tmp_path / "set")
    train_of(root)
    for note in index_cache.cache_folder().glob("*.json"):
        note.write_text("{")
    train_of(root)
    assert len(reads) == 2


def test_remains_of_a_killed_process_go(reads, tmp_path):
    root = write_coco(tmp_path / "set")
    train_of(root)
    place = entries()[0].partition("-")[0]
    (index_cache.cache_folder() / f".making-{place}").mkdir()
    remove_an_image(root)
    train_of(root)
    assert not list(index_cache.cache_folder().glob(".making*"))


def test_another_version_of_the_code_makes_another_index(reads, monkeypatch, tmp_path):
    root = write_coco(tmp_path / "set")
    train_of(root)
    monkeypatch.setattr(index_cache, "code_digest", lambda: "another")
    train_of(root)
    assert len(reads) == 4


def test_a_set_that_changes_while_it_is_read_is_refused(reads, monkeypatch, tmp_path):
    root = write_coco(tmp_path / "set")
    load = coco.load
    monkeypatch.setattr(coco, "load", lambda *a: (load(*a), change_json(root))[0])
    with pytest.raises(ValueError, match="changed while it was read"):
        train_of(root)
    assert entries() == []


def test_a_folder_that_cannot_be_written_is_told_and_done_without(reads, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file" / "below"))  # also root cannot make this folder
    root = write_coco(tmp_path / "set")
    with caplog.at_level(logging.WARNING):
        index = train_of(root)
    assert "set ZOO_CACHE" in caplog.text
    assert (len(index), len(reads)) == (3, 2)
    assert index.columns.reopen is not None


@pytest.mark.parametrize("at", ["columns", "mapped columns", "the file", "its note"])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_full_disk_is_told_once_and_done_without(reads, monkeypatch, tmp_path, caplog, at, elsewhere):
    """Where the disk is full, in the cache alone or also where temporary files lie."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "full"))
    index_cache._of_this_process.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "rest" if elsewhere else tmp_path / "full"))
    Path(tempfile.tempdir).mkdir()
    content = coco_content()
    content["annotations"].reverse()  # so that they are sorted
    root = write_coco(tmp_path / "set", content)

    def refuse(place):
        if Path(place).is_relative_to(tmp_path / "full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def watched(owner, name, place_of):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (refuse(place_of(*a)), real(*a, **k))[1])

    if at == "columns":
        watched(Scratch, "column", lambda scratch, *rest: scratch.folder)
    elif at == "mapped columns":
        watched(os, "posix_fallocate", lambda file, *rest: os.readlink(f"/proc/self/fd/{file}"))
    elif at == "the file":
        watched(arrow, "write_atomically", lambda path, *rest: path)
    else:
        watched(index_cache, "write_atomically", lambda path, *rest: path)
    if not elsewhere:
        with pytest.raises(OSError, match=rf"No space left on device; {root} cannot be read without room"):
            train_of(root)
        assert not list((tmp_path / "full").rglob(".making*"))
        return
    index, read = train_of(root), len(reads)
    again = train_of(root)
    assert caplog.text.count("is not kept") == 1
    assert (
        f"the index of {root} is not kept, for {tmp_path / 'full' / 'index'} cannot be written" in caplog.text
    )
    assert (len(index), len(reads)) == (3, read)
    assert_equal(again, index)


# ---------------------------------------------------------------------- processes


def _columns_of(index: AnnotationIndex) -> tuple[str, list[str], float]:
    return index.path(0).name, index.files.tolist(), float(index.boxes_xywh.sum())


def _build(root: str, start: Any, out: Any) -> None:
    keeping.LARGE_BYTES = 0
    start.wait()
    out.put(_columns_of(train_of(Path(root))))


def test_two_processes_that_build_at_once_make_one_entry(monkeypatch, tmp_path):
    monkeypatch.setattr(keeping, "LARGE_BYTES", 0)
    root = write_coco(tmp_path / "set")
    context = multiprocessing.get_context("fork")
    start, out = context.Event(), context.Queue()
    workers = [context.Process(target=_build, args=(str(root), start, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.set()
    found = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0] == found[1] == _columns_of(train_of(root))
    assert len(entries()) == 1


def test_a_spawned_worker_gets_a_path(reads, tmp_path):
    index = train_of(write_coco(tmp_path / "set"))
    assert len(pickle.dumps(index.columns)) < 200 + len(str(tmp_path))
    assert len(pickle.dumps(index)) < 1200 + 3 * len(str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(AnnotationIndex.objects, (index.take([1, 0]), 1))
    assert (
        theirs.boxes_xywh.tolist()
        == index.objects(0).boxes_xywh.tolist()
        == [[5, 5, 10, 10], [20, 10, 15, 12]]
    )
