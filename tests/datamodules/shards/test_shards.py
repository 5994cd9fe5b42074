"""Packing and reading shards on a local disk."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_sets import CLASSES, coco_content, module, write_coco, write_image, write_voc, write_yolo

from datamodules.coco import CocoDataModule
from datamodules.formats.detect import detect, read
from datamodules.images.decodable import corrupt_images
from datamodules.index.image_store import StoreError
from datamodules.shapes import generate_shapes
from datamodules.shards import writer as shard_writer
from datamodules.shards.files import parse_manifest
from datamodules.shards.writer import SMALLEST_SHARD, pack
from zoo.cli.main import run_command


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("plain"), 27, 5, seed=1, size=48)


@pytest.fixture(scope="module")
def packed(plain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(read(plain), folder, SMALLEST_SHARD)
    return folder


def test_anybody_can_read_a_shard(plain, packed):
    shards = sorted(packed.glob("*.tar"))
    assert len(shards) > 3
    assert all(shard.stat().st_size <= SMALLEST_SHARD for shard in shards)
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                found[member.name] = tar.extractfile(member).read()
    names = [n for index in read(plain).splits.values() for n in index.files.tolist()]
    assert list(found) == names
    assert found == {name: (plain / name).read_bytes() for name in names}


def test_a_shard_is_closed_before_it_passes_its_size_unless_one_image_does(tmp_path):
    root = tmp_path / "plain"
    (root / "labels").mkdir(parents=True)
    for i, size in enumerate([(30, 30), (150, 150), (30, 30), (30, 30)]):
        write_image(root / "images" / f"{i}.png", size, i)
        (root / "labels" / f"{i}.txt").write_text("0 .5 .5 .5 .5")
    (root / "data.yaml").write_text("names: [thing]\ntrain: images\nval: images\n")
    manifest = pack(read(root), tmp_path / "out", SMALLEST_SHARD)
    assert [s.size > SMALLEST_SHARD for s in manifest.shards] == [False, True, False]
    # one file in two splits is packed once
    assert (manifest.splits["train"].images, manifest.splits["val"].images) == (4, 4)
    assert sum(len(tarfile.open(tmp_path / "out" / s.name).getmembers()) for s in manifest.shards) == 4


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc])
def test_every_format_gives_the_same_index_from_shards(tmp_path, write):
    root = write(tmp_path / "plain")
    source = read(root)
    pack(source, tmp_path / "shards", SMALLEST_SHARD)
    again = read(tmp_path / "shards")
    assert detect(tmp_path / "shards") == "shards"
    assert dict(again.classes) == dict(source.classes)
    assert list(again.classes) == list(source.classes)
    assert again.faults == source.faults
    assert list(again.splits) == list(source.splits)
    for name, index in source.splits.items():
        other = again.splits[name]
        for row in range(len(index)):
            assert other.size(row) == index.size(row)
            for a, b in zip(index.objects(row), other.objects(row), strict=True):
                assert a.dtype == b.dtype
                assert (a == b).all()
            file = str(index.files[row])
            assert other.images.read(file) == index.images.read(file)
            assert other.images.where(file) == f"{tmp_path / 'shards' / '00000.tar'}:{file}"
    assert module(root).digest() == module(tmp_path / "shards").digest()


def test_warnings_of_the_source_are_told_by_the_shards(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [30, 10, 20, 15]
    source = read(write_coco(tmp_path / "plain", content))
    assert [fault.kind for fault in source.faults] == ["partly_outside"]
    pack(source, tmp_path / "shards", SMALLEST_SHARD)
    assert read(tmp_path / "shards").faults == source.faults


def test_training_and_evaluation_are_those_of_the_plain_files(plain, packed):
    for workers in (0, 2):
        ours = module(packed, train_transform="rt_detr", num_workers=workers)
        theirs = module(plain, train_transform="rt_detr")
        for loader in ("train_dataloader", "val_dataloader"):
            for a, b in zip(getattr(ours, loader)(), getattr(theirs, loader)(), strict=True):
                assert a.image_ids == b.image_ids
                assert torch.equal(a.images, b.images)
                assert torch.equal(a.targets.boxes, b.targets.boxes)


def test_held_out_and_joined_splits_keep_their_images(tmp_path, packed):
    both = module(packed, train_split="train+val", eval_split="val")
    assert len(both.read().splits["train"]) == 32
    assert both.training_dataset()[(0, 31)].image.shape == (3, 32, 32)
    pack(read(write_yolo(tmp_path / "plain", ("train",))), tmp_path / "shards", SMALLEST_SHARD)
    alone = module(tmp_path / "shards", val_fraction=0.4)
    assert [len(batch) for batch in alone.val_dataloader()] == [1]


def test_coco_module_reads_shards_in_both_label_spaces(tmp_path):
    content = coco_content()
    for split in ("train2017", "val2017"):
        for i, image in enumerate(content["images"]):
            write_image(tmp_path / "coco" / split / f"{i}.jpg", (image["width"], image["height"]), i)
        file = tmp_path / "coco" / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    pack(read(tmp_path / "coco"), tmp_path / "shards", SMALLEST_SHARD)
    arguments = dict(
        input=module(tmp_path).input, train_transform="none", batch_size=1, eval_batch_size=1, num_workers=0,
        seed=0,
    )  # fmt: skip
    for labels in ("contiguous", "category_id"):
        digests = {
            CocoDataModule(root=str(tmp_path / root), labels=labels, **arguments).digest()
            for root in ("coco", "shards")
        }
        assert len(digests) == 1
    with pytest.raises(ValueError, match=r"no split minival; it has train, val"):
        CocoDataModule(
            root=str(tmp_path / "shards"), labels="contiguous", eval_split="minival", **arguments
        ).read()


def test_the_store_pickles_small_and_works_in_a_spawned_process(packed):
    index = read(packed).splits["train"]
    index.images.read(str(index.files[0]))  # its table is open now, and still stays behind
    assert len(pickle.dumps(index.images)) < 5_000
    program = "import pickle, sys; s, n = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(s.read(n))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((index.images, str(index.files[3]))),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.stdout == index.images.read(str(index.files[3]))


def test_a_damaged_shard_is_named_and_not_skipped(packed, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / "00001.tar").read_bytes())
    content[700] ^= 0xFF
    (folder / "00001.tar").write_bytes(content)
    data = module(folder)
    with pytest.raises(
        StoreError, match=r"00001\.tar is damaged: image \S+ at byte 512 .*whole copy of the shard"
    ):
        list(data.train_dataloader())
    helped = module(folder, num_workers=1)
    with pytest.raises(StoreError, match=r"00001\.tar is damaged"):
        list(helped.train_dataloader())


def test_an_image_that_is_in_no_shard_is_named(packed):
    with pytest.raises(StoreError, match=r"other\.jpg is in none of the shards"):
        read(packed).splits["train"].images.read("other.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "00002.tar").unlink(), r"00002\.tar is missing, the manifest says 20480"),
        (lambda f: (f / "00002.tar").write_bytes(b"cut"), r"00002\.tar has 3 bytes, the manifest says 20480"),
        (lambda f: (f / "val.arrow").write_bytes(b""), r"val\.arrow has 0 bytes"),
        (lambda f: (f / "manifest.json").write_text('{"format": "detr-zoo shards"}'), r"no manifest of shards"),
        (
            lambda f: (f / "manifest.json").write_text(
                (f / "manifest.json").read_text().replace('"version": 1', '"version": 9')
            ),
            r"version 9; this code reads 'detr-zoo shards', version 1: pack the data again",
        ),
    ],
)  # fmt: skip
def test_an_incomplete_folder_is_refused(packed, tmp_path, change, message):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_packing_is_repeatable_whole_or_not_at_all(plain, packed, tmp_path, monkeypatch):
    pack(read(plain), tmp_path / "again", SMALLEST_SHARD)
    for file in packed.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    with pytest.raises(ValueError, match=r"again exists; give a new folder"):
        pack(read(plain), tmp_path / "again", SMALLEST_SHARD)
    with pytest.raises(ValueError, match=r"shard size of 5 bytes is too small; take at least 20480"):
        pack(read(plain), tmp_path / "small", 5)

    left = tmp_path / ".new.partial"  # a packing that was killed
    left.mkdir()
    (left / "00099.tar").write_bytes(b"old")
    source = read(plain)
    gone = plain / str(source.splits["val"].files[-1])
    content = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(OSError, match=gone.name):
            pack(source, tmp_path / "new", SMALLEST_SHARD)
    finally:
        gone.write_bytes(content)
    assert not (tmp_path / "new").exists()
    assert not left.exists()
    pack(source, tmp_path / "new", SMALLEST_SHARD)
    assert not (tmp_path / "new" / "00099.tar").exists()
    assert not list(tmp_path.glob(".*"))  # no lock stays


def test_what_was_written_is_read_back(plain, tmp_path, monkeypatch):
    def lossy(path: Path, offset: int, length: int) -> bytes:
        content = bytearray(path.read_bytes()[offset : offset + length])
        content[-1] ^= 1
        return bytes(content)

    monkeypatch.setattr(shard_writer, "read_range", lossy)
    with pytest.raises(OSError, match=r"00000\.tar: \S+ was not written as it was read; check the disk"):
        pack(read(plain), tmp_path / "out", SMALLEST_SHARD)
    assert not (tmp_path / "out").exists()


def test_names_outside_the_root_stay_inside_a_tar(tmp_path):
    write_image(tmp_path / "beside" / "a.jpg", (20, 20))
    (tmp_path / "data" / "labels").mkdir(parents=True)
    content = {
        "images": [{"id": 1, "file_name": "../../beside/a.jpg", "width": 20, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    write_image(tmp_path / "data" / "train" / "b.jpg", (20, 20))
    (tmp_path / "data" / "annotations").mkdir()
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    source = read(tmp_path / "data")
    assert source.splits["train"].files.tolist() == ["../beside/a.jpg"]
    pack(source, tmp_path / "out", SMALLEST_SHARD)
    assert tarfile.open(tmp_path / "out" / "00000.tar").getnames() == ["_/beside/a.jpg"]
    store = read(tmp_path / "out").splits["train"].images
    assert Image.open(io.BytesIO(store.read("../beside/a.jpg"))).size == (20, 20)


def test_the_command_packs_and_says_so(tmp_path, capsys):
    root = write_coco(tmp_path / "plain")
    assert run_command(["data", "shard", str(root), "--output", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["splits"] == {"train": 3, "val": 3}
    assert (said["format"], said["shards"], said["left_out_errors"]) == ("coco", 1, 0)
    assert run_command(["data", "shard", str(root), "--output", str(tmp_path / "out")]) == 2
    assert "out exists; give a new folder" in capsys.readouterr().err
    assert run_command(["data", "shard", str(root), "--output", "new", "--size", "big"]) == 2
    assert "--size is 'big'; write a size such as 256M" in capsys.readouterr().err
    assert run_command(["data", "check", str(tmp_path / "out"), "--json"]) in (0, 1)


def test_the_command_refuses_errors_unless_they_are_left_out(tmp_path, capsys):
    root = write_coco(tmp_path / "plain")
    (root / "train" / "1.jpg").unlink()
    command = ["data", "shard", str(root), "--output", str(tmp_path / "out")]
    assert run_command(command) == 2
    assert "the data set has 1 error, the first:" in (said := capsys.readouterr().err)
    assert "missing_image" in said
    assert run_command([*command, "--skip-broken"]) == 0
    assert "1 error of the data: images and objects at fault were left out\n" in capsys.readouterr().out
    packed, plain = module(tmp_path / "out"), module(root, skip_broken=True)
    packed.setup("fit")  # what was left out is no error of the shards
    assert packed.digest() == plain.digest()
    assert parse_manifest((tmp_path / "out" / "manifest.json").read_bytes(), "").classes == [
        (3, CLASSES[0]), (5, CLASSES[1])
    ]  # fmt: skip


def test_the_command_leaves_out_images_that_cannot_be_decoded(tmp_path, capsys):
    root = write_coco(tmp_path / "plain")
    cut = root / "train" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])  # the header is whole
    command = ["data", "shard", str(root), "--output", str(tmp_path / "out")]
    assert run_command(command) == 2
    assert "1 image cannot be decoded: train/1.jpg\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    assert run_command([*command, "--skip-broken"]) == 0
    said = capsys.readouterr().out
    assert "2 images in train, 3 images in val" in said
    assert "1 image that cannot be decoded: left out, with all objects: train/1.jpg" in said
    index = read(tmp_path / "out").splits["train"]
    assert (index.files.tolist(), index.num_objects) == (["train/0.jpg", "train/2.jpg"], 2)
    other = ["data", "shard", str(root), "--output", str(tmp_path / "two"), "--skip-broken", "--json"]
    assert run_command(other) == 0
    assert json.loads(capsys.readouterr().out)["left_out_undecodable"] == ["train/1.jpg"]


def test_an_image_of_two_splits_is_decoded_once_and_left_out_of_both(tmp_path):
    root = write_coco(tmp_path / "plain")
    splits = read(root).splits
    both = {"train": splits["train"], "val": splits["train"].take([2, 1])}
    (root / "train" / "1.jpg").write_bytes(b"no image")
    steps: list[tuple[int, int]] = []
    found = corrupt_images(both, lambda done, total: steps.append((done, total)))
    assert {split: list(rows) for split, rows in found.items()} == {"train": [1], "val": [1]}
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b.tar", "..\\evil", "..", "", "manifest.json"])
@pytest.mark.parametrize("place", ["images", "shard", "split"])
def test_a_manifest_names_only_files_beside_it(packed, name, place):
    manifest = json.loads((packed / "manifest.json").read_text())
    entry = {
        "images": manifest["images"],
        "shard": manifest["shards"][0],
        "split": manifest["splits"]["train"]["file"],
    }[place]
    entry["name"] = name
    with pytest.raises(ValueError, match="does not lie beside it"):
        parse_manifest(json.dumps(manifest).encode(), "here")


def test_faults_that_name_no_text_are_packed(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    root = write_yolo(tmp_path / "set")
    write_image(root / "images/train" / name, (30, 20), 3)  # without labels: a warning that names it
    source = read(root)
    pack(source, tmp_path / "packed", SMALLEST_SHARD)
    found = read(tmp_path / "packed")
    assert f"images/train/{name}" in found.splits["train"].files.tolist()
    assert [f for f in source.faults if f.severity == "warning"] == found.faults
