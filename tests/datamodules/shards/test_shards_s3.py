"""Shards in a bucket: an S3 endpoint that moto emulates on the loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_sets import module

from datamodules.formats.detect import read
from datamodules.index.image_store import StoreError
from datamodules.shapes import generate_shapes
from datamodules.shards.remote import RemoteFolder
from datamodules.shards.writer import SMALLEST_SHARD, pack

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    plain = generate_shapes(tmp_path_factory.mktemp("plain"), 15, 3, seed=2, size=48)
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(read(plain), folder, SMALLEST_SHARD)
    return folder


@pytest.fixture(scope="module")
def bucket(packed):
    """Address of the shards in the bucket."""
    environment = pytest.MonkeyPatch()
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        environment.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("training-data")
    for file in packed.iterdir():
        system.pipe_file(f"training-data/shapes/{file.name}", file.read_bytes())
    yield "s3://training-data/shapes"
    server.stop()
    environment.undo()
    s3fs.S3FileSystem.clear_instance_cache()


def test_training_from_a_bucket_is_that_of_the_folder(packed, bucket):
    assert module(bucket).digest() == module(packed).digest()
    for workers in (0, 1):
        batches = module(bucket, train_transform="rt_detr", num_workers=workers).train_dataloader()
        for a, b in zip(batches, module(packed, train_transform="rt_detr").train_dataloader(), strict=True):
            assert a.image_ids == b.image_ids
            assert torch.equal(a.images, b.images)


def test_what_is_not_in_the_bucket_is_named(bucket):
    with pytest.raises(
        StoreError, match=r"s3://training-data/other/manifest\.json cannot be read: there is no"
    ):
        read("s3://training-data/other")
    folder = RemoteFolder(bucket)
    assert len(folder.read("00000.tar", 512, 1024, 20480)) == 512
