"""Shards at an address: over a web server that misbehaves, through a cache that is bounded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import socket
import time
from pathlib import Path

import aiohttp
import fsspec
import pytest
import torch
from shard_server import ShardServer
from tiny_sets import module

from datamodules.custom import CustomDataModule
from datamodules.formats.detect import read
from datamodules.index import AnnotationIndex
from datamodules.index.image_store import StoreError
from datamodules.shapes import generate_shapes
from datamodules.shards import cache as shard_cache
from datamodules.shards import remote
from datamodules.shards.cache import CachedShards, ShardCache, cache_limit, parse_size
from datamodules.shards.files import PackedFile
from datamodules.shards.remote import RemoteFolder
from datamodules.shards.writer import SMALLEST_SHARD, pack
from zoo.storage.durable import sha256_of


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """27 + 5 images in 4 shards."""
    plain = generate_shapes(tmp_path_factory.mktemp("plain"), 27, 5, seed=1, size=48)
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert len(pack(read(plain), folder, SMALLEST_SHARD).shards) >= 3
    return folder


@pytest.fixture
def server(packed):
    with ShardServer(packed) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(RemoteFolder, "_pause", lambda self, seconds: None)


@pytest.fixture
def no_fill(monkeypatch):
    """Only `read` reaches the server."""
    monkeypatch.setattr(CachedShards, "fill", lambda self, threads, first: None)


def contents(index: AnnotationIndex) -> list[bytes]:
    return [index.images.read(name) for name in index.files.tolist()]


def entries(folder: Path) -> list[PackedFile]:
    return [PackedFile(f.name, f.stat().st_size, sha256_of(f)) for f in sorted(folder.glob("*.tar"))]


def cached() -> list[str]:
    return sorted(p.name for p in Path(os.environ["ZOO_CACHE"]).rglob("*.tar"))


def wait_for(
    condition, seconds: float = 240.0
) -> None:  # a read that stalls is given up after 30 s, a few times
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_training_over_http_is_that_of_the_folder(packed, server):
    assert module(server.url).digest() == module(packed).digest()
    for workers in (0, 2):
        ours, theirs = (module(r, train_transform="rt_detr") for r in (server.url, packed))
        ours.num_workers = workers
        for a, b in zip(ours.train_dataloader(), theirs.train_dataloader(), strict=True):
            assert a.image_ids == b.image_ids
            assert torch.equal(a.images, b.images)
    assert isinstance(module(server.url), CustomDataModule)


def test_reading_starts_at_once_and_the_cache_fills_behind_it(packed, server):
    data = module(server.url)
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    assert any(asked is not None for _, asked in server.requests)
    wait_for(lambda: len(cached()) == len(entries(packed)))
    before = len(server.requests)
    list(batches)
    list(data.val_dataloader())
    assert len(server.requests) == before  # all is on the local disk
    list(module(server.url).train_dataloader())
    assert {name for name, _ in server.requests[before:]} == {"manifest.json"}


@pytest.mark.usefixtures("no_fill")
def test_cut_short_busy_and_stalled_replies_are_asked_again(packed, server):
    server.cuts = [100, 0]
    server.statuses = [500, 503, 429]
    server.short = [7]
    index = read(server.url).splits["train"]
    assert contents(index) == contents(read(packed).splits["train"])
    assert (server.cuts, server.statuses, server.short) == ([], [], [])


def test_a_silent_server_is_left_and_a_slow_one_waited_for(packed, server):
    folder = RemoteFolder(server.url, timeout=0.3)
    content = (packed / "00000.tar").read_bytes()
    server.stalls = [1.5]
    assert folder.read("00000.tar", 10, 2000, len(content)) == content[10:2000]
    assert server.asked("00000.tar") == 2
    server.pause = 0.1  # 0.5 s in all, each silence shorter than the timeout
    assert folder.read("00000.tar", 0, len(content), len(content)) == content
    assert server.asked("00000.tar") == 3


def test_a_missing_file_is_final_and_named(server):
    with pytest.raises(StoreError, match=rf"{server.url}/99\.tar cannot be read: there is no such file"):
        RemoteFolder(server.url).read("99.tar", 0, 5, 10)
    assert server.asked("99.tar") == 1
    with pytest.raises(StoreError, match=r"nothing/manifest\.json cannot be read: there is no such file"):
        module(f"{server.url}/nothing").read()


def test_a_dead_server_ends_in_one_clear_error(server):
    server.statuses = [500] * 99
    with pytest.raises(
        StoreError, match=r"00000\.tar cannot be read \(8 attempts\): the server answered 500"
    ):
        RemoteFolder(server.url).read("00000.tar", 0, 5, 10)
    with pytest.raises(StoreError, match=r"\(8 attempts\): nobody answers at http://127\.0\.0\.1:9; check"):
        RemoteFolder("http://127.0.0.1:9").read("a", 0, 5, 10)  # a server may start again during a training


@pytest.mark.parametrize("error", [ConnectionRefusedError("ssl:default"), socket.gaierror(-2, "not known")])
def test_an_address_where_nobody_answers_is_told_soon(monkeypatch, error):
    pauses = []
    monkeypatch.setattr(RemoteFolder, "_pause", lambda self, seconds: pauses.append(seconds))

    def refuse(self, name, start, end):
        raise aiohttp.ClientConnectorError(None, error)

    monkeypatch.setattr(RemoteFolder, "_cat", refuse)
    with pytest.raises(StoreError) as caught:
        read("http://localhost:9/shards")
    assert str(caught.value) == (
        "http://localhost:9/shards/manifest.json cannot be read (3 attempts): nobody answers at "
        "http://localhost:9; check the address and the network"
    )
    assert sum(pauses) < 5


def test_each_retry_is_told_without_names_of_libraries(packed, server, caplog):
    server.statuses = [503]
    server.cuts = [100]
    content = (packed / "00000.tar").read_bytes()
    with caplog.at_level(logging.WARNING):
        assert RemoteFolder(server.url).read("00000.tar", 0, 900, len(content)) == content[:900]
    first, second = [record.getMessage() for record in caplog.records]
    assert re.search(
        r"00000\.tar: retrying in 0\.\d+ s \(2 of 8\): (the server answered 503|the connection broke off)",
        first,
    )
    assert "(3 of 8): the" in second
    assert not re.search("Client|aiohttp|Error", first + second)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_error_in_training_names_the_shard_and_not_the_image(server, workers):
    data = module(server.url, num_workers=workers)
    data.setup("fit")
    server.statuses = [403] * 999
    with pytest.raises(StoreError, match=r"0000\d\.tar cannot be read: the server answered 403") as caught:
        list(data.train_dataloader())
    assert "remove it from the annotations" not in str(caught.value)


@pytest.mark.usefixtures("no_fill")
def test_corrupt_bytes_are_asked_again_and_never_used(packed, server):
    server.corrupt = {"00001.tar": 1}
    index = read(server.url).splits["train"]
    assert contents(index) == contents(read(packed).splits["train"])
    server.corrupt = {"00001.tar": -1}
    with pytest.raises(StoreError, match=rf"{server.url}/00001\.tar is damaged: image \S+ at byte 512"):
        contents(read(server.url).splits["train"])


def test_a_corrupt_shard_is_fetched_again_and_never_cached(packed, server, tmp_path, caplog):
    shard = entries(packed)[1]
    cache = ShardCache(tmp_path / "cache", "set", RemoteFolder(server.url), 1 << 20)
    server.corrupt = {"00001.tar": 1}
    with caplog.at_level(logging.WARNING):
        assert cache.fetch(shard)
    assert "00001.tar came with sha256" in caplog.text
    assert cache.path("00001.tar").read_bytes() == (packed / "00001.tar").read_bytes()
    server.corrupt = {"00002.tar": -1}
    with pytest.raises(
        StoreError, match=rf"{server.url}/00002\.tar has sha256 \w+ after 3 fetches, expected"
    ):
        cache.fetch(entries(packed)[2])
    assert [p.name for p in cache.folder.iterdir() if p.suffix == ".tar"] == ["00001.tar"]


def test_a_corrupt_shard_at_the_source_is_told_while_filling_and_stops_the_training_that_needs_it(
    server, caplog
):
    server.corrupt = {"00001.tar": -1}
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(StoreError, match=r"00001\.tar is damaged: image"),
    ):
        list(module(server.url).train_dataloader())
    wait_for(lambda: "not cached:" in caplog.text)
    assert f"{server.url}/00001.tar has sha256" in caplog.text
    assert "00001.tar" not in cached()


def test_a_fetch_goes_on_where_it_was_cut(packed, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 4096)
    shard = entries(packed)[0]
    folder = RemoteFolder(server.url, attempts=1)
    server.statuses = [500]
    with pytest.raises(StoreError, match="500"):
        folder.fetch(shard.name, tmp_path / shard.name, shard.size, shard.sha256)
    (tmp_path / "00000.tar.part").write_bytes((packed / "00000.tar").read_bytes()[:8192])
    server.requests.clear()
    folder.fetch(shard.name, tmp_path / shard.name, shard.size, shard.sha256)
    assert server.requests[0] == ("00000.tar", "bytes=8192-12287")
    assert (tmp_path / "00000.tar").read_bytes() == (packed / "00000.tar").read_bytes()
    assert not (tmp_path / "00000.tar.part").exists()


@pytest.mark.usefixtures("no_fill")
def test_a_server_without_ranges_gives_whole_shards_once(packed, server, caplog):
    server.ranges = False
    index = read(server.url).splits["train"]
    assert contents(index) == contents(read(packed).splits["train"])
    assert "does not answer range requests" in caplog.text
    assert max(server.asked(shard.name) for shard in entries(packed)) <= 2


@pytest.mark.usefixtures("no_fill")
def test_a_server_without_ranges_needs_a_cache_that_holds_the_shards(server, monkeypatch):
    server.ranges = False
    monkeypatch.setenv("ZOO_SHARD_CACHE_SIZE", "1K")
    with pytest.raises(StoreError, match=r"gives only whole files.*raise ZOO_SHARD_CACHE_SIZE"):
        contents(read(server.url).splits["train"])


def test_a_cache_smaller_than_the_data_keeps_what_it_has(server, monkeypatch, caplog):
    monkeypatch.setenv("ZOO_SHARD_CACHE_SIZE", str(2 * SMALLEST_SHARD + 1))
    data = module(server.url)
    data.setup("fit")
    assert "read over the network, image by image" in caplog.text
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = iter(data.train_dataloader())
        seen = list(next(batches).image_ids)
        wait_for(lambda: len(cached()) == 2)  # while the epoch runs: the threads end with it
        seen += [i for b in batches for i in b.image_ids]
        assert len(set(seen)) == 26
    kept = cached()
    server.requests.clear()
    list(data.train_dataloader())
    assert cached() == kept
    assert {name for name, _ in server.requests}.isdisjoint(kept)
    assert len(server.requests) > 1


def test_a_damaged_copy_in_the_cache_is_thrown_out(packed, server, caplog):
    index = read(server.url).splits["train"]
    source = index.images._source
    assert source._cache.fetch(entries(packed)[1])
    file = source._cache.path("00001.tar")
    content = bytearray(file.read_bytes())
    content[700] ^= 0xFF
    file.write_bytes(content)
    assert contents(index) == contents(read(packed).splits["train"])
    assert "00001.tar: the copy in the cache is damaged" in caplog.text
    assert not file.exists()


def filled(root: Path, key: str, server: ShardServer, limit: int, shards: list[PackedFile]) -> list[bool]:
    cache = ShardCache(root, key, RemoteFolder(server.url), limit)
    return [cache.fetch(shard) for shard in shards]


def test_other_data_sets_leave_oldest_first_and_not_while_in_use(packed, server, tmp_path):
    shards, root, limit = entries(packed)[:2], tmp_path / "cache", 3 * SMALLEST_SHARD
    now = time.time()
    assert filled(root, "old", server, limit, shards) == [True, True]
    for age, shard in ((9000, shards[0]), (5000, shards[1])):
        os.utime(root / "old" / shard.name, (now - age, now - age))
    assert filled(root, "new", server, limit, shards[:2]) == [True, True]
    assert [p.name for p in (root / "old").glob("*.tar")] == [shards[1].name]  # the one used longest ago left
    os.utime(root / "old" / shards[1].name)
    assert filled(root, "third", server, limit, shards[:1]) == [False]  # all are in use
    assert not (root / "third" / shards[0].name).exists()


def test_a_shard_that_is_being_fetched_counts_and_is_left_alone(packed, server, tmp_path):
    shards = entries(packed)
    cache = ShardCache(tmp_path, "set", RemoteFolder(server.url), 2 * SMALLEST_SHARD)
    with shard_cache.FileLock(shard_cache._lock_file(cache.path("00000.tar"))) as held:
        assert cache._reserve(shards[0])
        assert not cache.fetch(shards[0], wait=False)
        assert cache.fetch(shards[1])
        assert not cache.fetch(shards[2])  # the place of the first is taken already
    held.release()
    assert cache.fetch(shards[0])
    assert not cache.path("00000.tar.reserved").exists()


def test_a_full_disk_is_not_filled_further(packed, server, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "_DISK_MARGIN", 1 << 60)
    assert filled(tmp_path, "set", server, 1 << 30, entries(packed)[:1]) == [False]


def read_all(index: AnnotationIndex, rank: int) -> None:
    """One of three ranks: its cache fills while it reads."""
    index.images.fill_cache(rank, 3)
    for name in index.files.tolist():
        assert index.images.read(name)


def test_three_processes_share_one_cache(packed, server):
    index = read(server.url).splits["train"]
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=read_all, args=(index, rank)) for rank in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert cached()
    for name in cached():
        (file,) = Path(os.environ["ZOO_CACHE"]).rglob(name)
        assert file.read_bytes() == (packed / name).read_bytes()


def test_other_file_systems(packed, monkeypatch):
    memory = fsspec.filesystem("memory")
    for file in packed.iterdir():
        memory.pipe_file(f"/shards/{file.name}", file.read_bytes())
    assert module("memory://shards").digest() == module(packed).digest()
    assert contents(read("memory://shards").splits["val"]) == contents(read(packed).splits["val"])
    here = read(f"file://{packed}").splits["val"]
    assert here.images.where(str(here.files[0])).startswith(f"{packed}/")  # no copy in the cache
    with pytest.raises(
        StoreError, match=r"what://x/manifest\.json cannot be read: ValueError: Protocol not known"
    ):
        read("what://x")
    with pytest.raises(ValueError, match=r"only shards are read from an address, not the format 'coco'"):
        read("memory://shards", "coco")
    memory.rm("/shards", recursive=True)


@pytest.mark.parametrize(
    ("text", "expected"), [("256M", 256 << 20), ("1.5G", 3 << 29), ("100 GiB", 100 << 30), ("4096", 4096)]
)
def test_sizes(text, expected, monkeypatch):
    assert parse_size(text, "--size") == expected
    monkeypatch.setenv("ZOO_SHARD_CACHE_SIZE", text)
    assert cache_limit() == expected
    with pytest.raises(ValueError, match=r"--size is '5 Q'"):
        parse_size("5 Q", "--size")
    with pytest.raises(ValueError, match="write a size such as"):
        parse_size("9" * 400, "--size")
    with pytest.raises(ValueError, match=r"--size is '9{20,40} *; write"):
        parse_size("9" * 10**5, "--size")
