"""A registered model goes to the hub: what is there is not sent, the card says what the manifest does."""

import json
import logging

import huggingface_hub
import pytest
import yaml
from hub_models import saved
from hub_server import HubServer

from zoo.cli.main import run_command
from zoo.registry.hugging_face.card import model_card
from zoo.registry.manifest import parse_manifest
from zoo.registry.pull import pull

SECRET = "hf_very_secret"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder, registry = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("registry")
    saved("rt_detr", folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    pull(f"hf:{folder}", registry=registry, name="rt_detr.mine")
    return registry


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubServer(token=SECRET) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        yield server


def pushed(registry, *options, code=0):
    assert run_command(["push", "rt_detr.mine", "hf:me/model", "--registry", str(registry), *options]) == code


def test_a_version_is_sent_once_and_comes_back_as_it_was(hub, registry, tmp_path, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    pushed(registry, "--dry-run")
    assert "would send 4 of 4 files to a new repository" in capsys.readouterr().out
    assert (hub.repos, hub.created, hub.commits) == ({}, [], [])
    pushed(registry, "--private")
    out, error = capsys.readouterr()
    assert "sent 4 of 4 files to a new repository" in out
    assert "commercial use is unclear" in out
    assert "private" in json.dumps(hub.created[0])  # a flag once, a visibility now
    version = registry / "rt_detr.mine" / "1"
    for path in version.iterdir():
        assert hub.repos["me/model"][path.name] == path.read_bytes()
    assert hub.commits[0]["lines"][0]["value"]["summary"] == "detr-zoo: rt_detr.mine:1"
    for text in (out, error, caplog.text, json.dumps(hub.commits)):
        assert SECRET not in text
    pushed(registry)
    assert "has all 4 files of rt_detr.mine unchanged; nothing is sent" in capsys.readouterr().out
    assert len(hub.commits) == 1
    hub.repos["me/model"]["README.md"] = b"another"
    pushed(registry)
    assert "sent 1 of 4 files to http" in capsys.readouterr().out
    assert [line["value"]["path"] for line in hub.commits[1]["lines"][1:]] == ["README.md"]
    back = pull(f"{hub.url}/me/model/resolve/main/manifest.yaml", registry=tmp_path)
    assert (back.folder / "model.safetensors").read_bytes() == (version / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match=r"is a model of this package: zoo pull http.*/manifest\.yaml"):
        pull("hf:me/model", registry=tmp_path)


def test_a_folder_of_transformers_is_sent_and_comes_back_equal(hub, registry, tmp_path, capsys):
    pushed(registry, "--as", "transformers", "--json")
    document = json.loads(capsys.readouterr().out)
    assert {file["path"] for file in document["files"]} == {
        "README.md", "certificate.json", "certificate.md", "config.json", "model.safetensors",
        "preprocessor_config.json",
    }  # fmt: skip
    assert document["commit"] == hub.commit_of("me/model")
    back = pull("hf:me/model", registry=tmp_path, name="back")
    own = pull("rt_detr.mine", registry=registry)
    assert (back.folder / "model.safetensors").read_bytes() == (own.folder / "model.safetensors").read_bytes()
    assert back.manifest.license == own.manifest.license == "Apache-2.0"


def test_what_the_hub_refuses_is_one_line_without_the_token(hub, registry, monkeypatch, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    hub.refuse["/api/repos/create"] = (403, {"error": f"{SECRET} may not write to me"})
    pushed(registry, code=2)
    told = capsys.readouterr()
    assert "forbids it (403): the token in HF_TOKEN may not" in told.err
    hub.refuse = {"/api/repos/create": (500, {"error": f"failed with {SECRET}"})}
    pushed(registry, code=2)
    told2 = capsys.readouterr()
    hub.refuse.clear()
    monkeypatch.setenv("HF_TOKEN", "")
    pushed(registry, code=2)
    told3 = capsys.readouterr()
    assert "HF_TOKEN is not set" in told3.err
    for text in (*told, *told2, *told3, caplog.text):
        assert SECRET not in text
    for error in (told.err, told2.err, told3.err):
        assert error.count("\n") == 1
    assert hub.commits == []


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("/api/models/me/model/paths-info/", 500),
        ("/api/models/me/model/preupload/", 429),
        ("/me/model.git/info/lfs", 403),
        ("/upload/", 500),
        ("/api/models/me/model/commit/", 401),
        ("/api/models/me/model/commit/", 404),
        ("/api/models/me/model/commit/", 429),
    ],
)
def test_every_step_of_a_push_that_is_refused_is_one_line(
    where, status, hub, registry, monkeypatch, capsys, caplog
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    caplog.set_level(logging.DEBUG)
    hub.refuse[where] = (status, {"error": f"no, Bearer {SECRET}"})
    pushed(registry, code=2)
    out, error = capsys.readouterr()
    assert error.startswith("error: hf:me/model")
    assert str(status) in error
    assert error.count("\n") == 1
    assert SECRET not in out + error + caplog.text
    assert hub.commits == []
    hub.refuse.clear()
    pushed(registry)  # what was sent before is there, and the rest follows
    assert set(hub.repos["me/model"]) >= {"manifest.yaml", "model.safetensors"}


@pytest.mark.parametrize("to", ["hf:me/model@main", "hf:./folder", "me/model", "hf:me"])
def test_what_is_no_repository_is_told(to, registry, capsys):
    assert run_command(["push", "rt_detr.mine", to, "--registry", str(registry)]) == 2
    assert "hf:ORG/REPO" in capsys.readouterr().err


def full_manifest():
    from registry_case import tiny_manifest

    scores = {"source": "the paper, table 1", "dataset": "COCO val2017", "AP": 46.5, "AP50": 63.8}
    measured = {
        "run": "0" * 32, "git_commit": "1" * 40, "date": "2026-01-02", "dataset": "shapes", "split": "val",
        "AP": 0.4567, "AP50": 0.7, "APs": -1.0, "interval": {"AP": [0.41, 0.49]}, "protocol": {"maxDets": 100},
    }  # fmt: skip
    return tiny_manifest(
        published=scores, measured=measured, recipes=["rt_detr/tiny"],
        data={"name": "coco_2017", "split": "train", "digest": "d" * 64},
        lineage={"run": "0" * 32, "git_commit": "1" * 40, "dirty": True, "parent": "rt_detr_r18.coco_72e"},
        license="my <b>own</b> words",
    )  # fmt: skip


def card(manifest, **more):
    from zoo.contract.preprocess import InputContract

    contract = InputContract.from_dict(manifest.to_dict()["input"])
    options = {"masks": False, "usage": "import zoo", "library": "detr-zoo"} | more
    return model_card(manifest.name, manifest.labels(), contract, manifest, **options)


def test_the_card_says_what_the_manifest_does():
    text = card(full_manifest())
    for part in (
        "0: disc; 1: square; 2: no", "64x64", "rt_detr/tiny", "d" * 64, "began from: rt_detr_r18.coco_72e", "0" * 32,
        "with changes that are not committed", "published, the paper, table 1; on COCO val2017: AP 46.5, AP50 63.8",
        "measured, run", "on shapes val: AP 45.7, AP50 70.0", "maxDets 100", "AP 41.0 to 49.0",
        "Commercial use is unclear",
        "my \\<b\\>own\\</b\\> words",
    ):  # fmt: skip
        assert part in text, part
    assert "APs" not in text
    facts = yaml.safe_load(text.split("---")[1])
    assert facts["license"] == "other"
    assert (facts["library_name"], facts["pipeline_tag"]) == ("detr-zoo", "object-detection")
    values = [m["value"] for result in facts["model-index"][0]["results"] for m in result["metrics"]]
    assert values == [46.5, 63.8, 45.67, 70.0]
    data = huggingface_hub.ModelCard(text).data
    assert [result.metric_value for result in data.eval_results] == values
    assert data.datasets == ["detection-datasets/coco"]


def test_a_card_without_scores_says_so():
    from registry_case import tiny_manifest

    text = card(tiny_manifest(), masks=True, library="transformers")
    assert "None are known." in text
    facts = yaml.safe_load(text.split("---")[1])
    assert facts["license"] == "apache-2.0"
    assert facts["pipeline_tag"] == "image-segmentation"
    assert "model-index" not in facts
    assert parse_manifest(tiny_manifest().to_yaml()) == tiny_manifest()
