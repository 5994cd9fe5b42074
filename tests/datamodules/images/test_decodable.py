"""How many cores a process may use; what cannot be decoded is found out once."""

import os

import pytest
from PIL import Image

from datamodules.custom import CustomDataModule
from datamodules.formats.detect import read
from datamodules.images import decodable
from datamodules.images.decodable import corrupt_images, usable_cores
from datamodules.images.probe import probe_all
from datamodules.shapes import generate_shapes
from zoo.contract.preprocess import InputContract


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", 8),
        ("250000 100000", 2),
        ("10000 100000", 1),
        ("6400000 100000", 8),
        ("x", 8),
        (None, 8),
    ],
)
def test_the_quota_of_a_container_counts(monkeypatch, tmp_path, text, cores):
    quota = tmp_path / "cpu.max"
    if text is not None:
        quota.write_text(text)
    monkeypatch.setattr(decodable, "_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores() == cores


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    names = []

    def probed(store, given, workers):
        names.extend(given)
        return probe_all(store, given, workers)

    monkeypatch.setattr(decodable, "probe_all", probed)
    return names


def cut(file):
    """Its header stays whole; returns the bytes of the whole file."""
    with Image.open(file) as image:
        image.convert("RGB").save(file, "JPEG")
    whole = file.read_bytes()
    file.write_bytes(whole[:-300])
    return whole


def test_a_file_is_decoded_again_only_when_it_has_changed(tmp_path, decoded):
    root = generate_shapes(tmp_path / "shapes", 3, 1, seed=0, size=64)
    first, second = sorted((root / "train").iterdir())[:2]
    whole = cut(first)
    splits = read(root).splits
    broken = corrupt_images(splits)
    assert {split: list(rows) for split, rows in broken.items()} == {"train": [0], "val": []}
    assert len(decoded) == 4
    assert corrupt_images(splits) == broken
    assert len(decoded) == 4
    (tmp_path / "zoo_cache" / "decoded").rename(tmp_path / "gone")
    assert corrupt_images(splits) == broken
    assert len(decoded) == 8  # they were kept nowhere else

    first.write_bytes(whole)  # mended
    size, changed = second.stat().st_size, second.stat().st_mtime_ns
    second.write_bytes(b"x" * size)  # of the same size
    os.utime(second, ns=(changed, changed + 1))
    del decoded[:]
    assert {split: list(rows) for split, rows in corrupt_images(splits).items()} == {"train": [1], "val": []}
    assert sorted(decoded) == [f"train/{first.name}", f"train/{second.name}"]


def test_another_decoder_or_a_damaged_record_decodes_again(tmp_path, decoded, monkeypatch):
    splits = read(generate_shapes(tmp_path / "shapes", 2, 1, seed=0, size=64)).splits
    corrupt_images(splits)
    [record] = (tmp_path / "zoo_cache" / "decoded").glob("*.json")
    record.write_bytes(record.read_bytes()[:-9])
    corrupt_images(splits)
    assert len(decoded) == 6
    decodable._decoders.cache_clear()
    monkeypatch.setattr(decodable.PIL, "__version__", "0")
    corrupt_images(splits)
    assert len(decoded) == 9
    decodable._decoders.cache_clear()
    monkeypatch.setattr(
        decodable, "find_spec", lambda name: None
    )  # as if rasterio, which reads bands, were gone
    corrupt_images(splits)
    assert len(decoded) == 12
    decodable._decoders.cache_clear()


def test_a_training_that_leaves_out_what_is_broken_decodes_at_its_first_start_alone(tmp_path, decoded):
    root = generate_shapes(tmp_path / "shapes", 3, 1, seed=0, size=64)
    cut(next((root / "train").iterdir()))
    for _ in range(2):
        data = CustomDataModule(
            root=str(root), input=InputContract(resize="stretch", size=(64, 64)), train_transform="none", batch_size=1,
            eval_batch_size=1, num_workers=0, seed=0, skip_broken=True,
        )  # fmt: skip
        assert len(data.read().splits["train"]) == 2
    assert len(decoded) == 4
