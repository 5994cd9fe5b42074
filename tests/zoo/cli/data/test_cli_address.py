"""Commands on shards at an address instead of a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from datamodules.formats.detect import read
from datamodules.shapes import generate_shapes
from datamodules.shards.writer import SMALLEST_SHARD, pack
from zoo.cli.main import run_command
from zoo.runs.finetune import Choices, complete_recipe, starting_point
from zoo.runs.subject import with_data
from zoo.runs.train import refuse_missing_data

ADDRESS = "s3://bucket/shapes"


def root_of(recipe: dict) -> str:
    return recipe["data"]["init_args"]["root"]


def test_an_address_goes_into_the_recipe_as_it_is_and_a_folder_as_a_whole_path(tmp_path):
    start = starting_point("rt_detr_tiny", None)
    for data, root in ((ADDRESS, ADDRESS), ("here", str(tmp_path / "here"))):
        recipe, _ = complete_recipe(start, Choices(model="rt_detr_tiny", data=data))
        assert root_of(recipe) == root
        assert root_of(with_data(recipe, data)) == root


def test_only_a_folder_is_looked_for_before_the_training(tmp_path):
    def recipe(root: str) -> dict:
        return {"data": {"init_args": {"root": root}}}

    for root in (ADDRESS, str(tmp_path), f"file://{tmp_path}"):
        refuse_missing_data(recipe(root))
    with pytest.raises(FileNotFoundError, match="absent is not a folder"):
        refuse_missing_data(recipe(str(tmp_path / "absent")))


@pytest.mark.slow
def test_a_model_is_fine_tuned_and_scored_from_an_address(tmp_path, capsys):
    sys.path.insert(0, str(Path(__file__).parents[3] / "datamodules"))
    from shard_server import ShardServer

    pack(
        read(generate_shapes(tmp_path / "plain", 24, 8, seed=1, size=64)), tmp_path / "shards", SMALLEST_SHARD
    )
    with ShardServer(tmp_path / "shards") as server:
        command = [
            "finetune",
            "rt_detr_tiny",
            "--data",
            server.url,
            "--max-steps",
            "2",
            "--name",
            "rt_detr_tiny.web",
        ]
        assert run_command(command) == 0
        assert "zoo predict rt_detr_tiny.web:1 IMAGE" in capsys.readouterr().out
        digests = []
        for data in (server.url, str(tmp_path / "plain")):
            assert run_command(["validate", "rt_detr_tiny.web", "--data", data, "--json"]) == 0
            document = json.loads(capsys.readouterr().out)
            digests.append((document["data_digest"], document["val"]["AP"]))
        assert digests[0] == digests[1]


def test_check_reads_shards_at_an_address(tmp_path, capsys):
    sys.path.insert(0, str(Path(__file__).parents[3] / "datamodules"))
    from shard_server import ShardServer

    plain = generate_shapes(tmp_path / "plain", 6, 2, seed=1, size=64)
    pack(read(plain), tmp_path / "shards", SMALLEST_SHARD)
    with ShardServer(tmp_path / "shards") as server:
        assert run_command(["data", "check", server.url, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["format"], document["splits"]["train"]["images"]) == ("shards", 6)
        assert run_command(["data", "check", server.url, "--report", "r.html"]) == 0
        assert f"next: zoo finetune MODEL --data {server.url}" in capsys.readouterr().out
        assert Path("r.html").exists()
        assert run_command(["data", "check", server.url, "--fix", "clean"]) == 2
        assert f"{server.url} is an address; a cleaned copy is made of a folder" in capsys.readouterr().err
