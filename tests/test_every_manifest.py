import importlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from zoo.registry.manifest import METRICS_OF_MASKS, read_manifest
from zoo.registry.names import base_name
from zoo.registry.pull import addresses_of, published_hash
from zoo.registry.store import BUILTIN_FOLDER
from zoo.registry.terms import DATA_TERMS, commercial
from zoo.registry.weights import count
from zoo.training.module import build_module

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(BUILTIN_FOLDER.glob("*.yaml"))
MANIFESTS = {path.stem: read_manifest(path) for path in FILES}
OBJECTS365 = yaml.safe_load((ROOT / "tests/data/published_rt_detr_o365.yaml").read_text())["objects365"]
every = pytest.mark.parametrize("name", list(MANIFESTS))


def recipe_of(name):
    """The first recipe of a manifest."""
    return yaml.safe_load(
        (ROOT / "recipes" / f"{MANIFESTS[name].recipes[0]}.yaml").read_text(encoding="utf-8")
    )


def test_every_recipe_of_published_weights_has_its_manifest():
    abouts = [
        yaml.safe_load(p.read_text(encoding="utf-8"))["about"] for p in (ROOT / "recipes").glob("*/*.yaml")
    ]
    assert {f"{a['name']}.{a['tag']}" for a in abouts if a["sources"]} == set(MANIFESTS)
    assert {path.name for path in BUILTIN_FOLDER.iterdir()} == {path.name for path in FILES}


@every
def test_file_is_named_as_its_model_and_written_as_the_writer_writes(name):
    assert MANIFESTS[name].name == name
    assert (BUILTIN_FOLDER / f"{name}.yaml").read_text(encoding="utf-8") == MANIFESTS[name].to_yaml()


@every
def test_family_is_that_of_the_class_and_of_the_name(name):
    manifest = MANIFESTS[name]
    assert manifest.model.class_path.split(".")[2] == manifest.family
    assert base_name(name).startswith(f"{manifest.family}_")


def test_each_bare_name_has_one_default_tag():
    bare = [base_name(name) for name, manifest in MANIFESTS.items() if manifest.default]
    assert sorted(bare) == sorted({base_name(name) for name in MANIFESTS})


@every
def test_model_and_input_equal_those_of_each_recipe(name):
    manifest = MANIFESTS[name].to_dict()
    assert manifest["recipes"]
    if name in OF_PADDLE:
        differs = " ".join(manifest["trained_by"]["differs"])
        assert "batch size, GPUs and learning rate are unpublished" in differs
    for recipe_name in manifest["recipes"]:
        recipe = yaml.safe_load((ROOT / "recipes" / f"{recipe_name}.yaml").read_text(encoding="utf-8"))
        assert manifest["model"] == recipe["model"]
        assert manifest["input"] == {
            **recipe["data"]["init_args"]["input"],
            "size": tuple(manifest["input"]["size"]),
        }
        about = recipe["about"]
        keys = ("params", "macs", "license")
        assert {k: about[k] for k in keys} == {k: manifest[k] for k in keys}
        # the recipe names the authors' own place; the manifest may name a copy after it
        assert manifest["sources"][: len(about["sources"])] == about["sources"]
        assert about["macs"] > about.get("macs_left_out", 0) >= 0
        for metric in ("AP", "AP50"):
            assert manifest["published"][metric] == about["published"].get(metric)
        for metric in METRICS_OF_MASKS:
            assert manifest["published"].get(metric) == about["published"].get(metric)


@every
def test_origin_is_accounted_for(name):
    manifest = MANIFESTS[name]
    first, *others = manifest.sources
    where = urlsplit(first)
    assert where.scheme == "https"
    # Google Drive's addresses hold no file name
    assert where.hostname == "drive.google.com" or where.path.endswith(manifest.origin.file)
    prefix = published_hash(manifest.origin)
    assert where.fragment == (f"sha256={prefix}" if prefix else "")
    for source in others:
        assert urlsplit(source).hostname == "huggingface.co"
        assert source.split("/")[4] in manifest.origin.note
    assert addresses_of(first) or others or "fetch it in a browser" in manifest.origin.note
    module, _, function = manifest.origin.converter.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
    if manifest.origin.sha256 is None:
        assert manifest.origin.pinned is None
        assert "no hash" in manifest.origin.note
    assert manifest.trained_by.differs
    assert manifest.data.name != "" or manifest.data.digest is not None


@every
def test_terms_of_code_weights_and_every_data_set_are_told_with_source_and_date(name):
    manifest = MANIFESTS[name]
    assert manifest.terms, f"{name}.yaml lacks terms: code, weights and data, as in detr_r50.coco_500e.yaml"
    for part, terms in manifest.terms.parts():
        assert terms.source, f"{name}.yaml: terms, {part}: source is null"
        assert terms.date, f"{name}.yaml: terms, {part}: date is null"
    trained_on = [manifest.data.name]
    if manifest.lineage.parent is not None:
        trained_on = [*MANIFESTS[manifest.lineage.parent].terms.data, *trained_on]
    assert list(manifest.terms.data) == trained_on
    for data in trained_on:
        assert manifest.terms.data[data] == DATA_TERMS[data]
    if any("o365" in word for word in name.replace(".", "_").split("_")):
        assert commercial(manifest.terms) != "allowed"
    cards = [address.split("/")[3:5] for address in manifest.sources if "huggingface.co" in address]
    if manifest.terms.weights.commercial == "allowed" and cards:
        assert any("/".join(card) in manifest.terms.weights.source for card in cards)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *((f"rt_detr_{size}.o365_12e", "rtdetr_paddle/README.md") for size in ("r18", "r50", "r101")),
        *((n, "README.md") for n in MANIFESTS if n.startswith("rt_detr_") and "o365_12e" not in n),
        *((n, "rtdetrv2_pytorch/README.md") for n in MANIFESTS if n.startswith("rt_detrv2_") and ".deim" not in n),
        *((n, "README.md") for n in MANIFESTS if n.startswith(("dfine_", "deimv2_")) or ".deim" in n),
        *((n, "README.md") for n in MANIFESTS if n.startswith("detr_")),
        *((n, "README.md") for n in MANIFESTS if n.startswith("deformable_detr_")),
    ],
)  # fmt: skip
def test_scores_are_cited_from_the_file_that_prints_them(name, file):
    """published_schedules.md, sections 1 and 2: the top README of RT-DETR has no row for Objects365 itself."""
    source = MANIFESTS[name].published.source
    repository, _, cited = source.partition(" ")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{7}", repository)
    assert re.match(r"[\w/.]+", cited)[0] == file
    for key in MANIFESTS[name].recipes:
        heading = (ROOT / "recipes" / f"{key}.yaml").read_text(encoding="utf-8").partition("about:")[0]
        assert all(part in heading for part in file.split("/")), f"{key} does not name {file}"


@every
def test_published_and_measured_are_apart(name):
    manifest = MANIFESTS[name]
    assert manifest.published is not None
    assert 1 < manifest.published.AP < 100
    if manifest.measured is not None:
        assert 0 < manifest.measured.AP < 1


COCO = [name for name, manifest in MANIFESTS.items() if manifest.data.name == "coco_2017"]
PANOPTIC = [name for name, manifest in MANIFESTS.items() if manifest.data.name == "coco_2017_panoptic"]
OF_OBJECTS365 = [name for name, manifest in MANIFESTS.items() if manifest.data.name == "objects365"]
OF_PADDLE = [name for name in OF_OBJECTS365 if name.startswith("rt_detr_")]  # converted from Paddle


def test_manifests_of_each_data_set_were_found():
    assert len(COCO) > 10
    assert set(PANOPTIC) == {
        name for name in MANIFESTS if "panoptic" in name
    }  # label map: test_recipes_panoptic.py
    assert set(OF_PADDLE) == {f"rt_detr_{size}.o365_12e" for size in OBJECTS365}


@pytest.mark.parametrize("name", COCO)
def test_labels_are_cocos_80_of_91(name):
    labels = MANIFESTS[name].labels()
    # `category_id` keeps COCO's ids, holes and all
    width = {"contiguous": 80, "category_id": 91}[recipe_of(name)["data"]["init_args"]["labels"]]
    assert (len(labels.names), labels.num_classes) == (80, width)
    if width == 91:
        assert all(labels.name_of_head[i] == n for i, n in zip(labels.source_ids, labels.names, strict=True))
    rows = dict(zip(labels.source_ids, labels.names, strict=True))
    assert (rows[1], rows[44], rows[90]) == ("person", "bottle", "toothbrush")
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91} & set(rows)
    assert list(labels.source_ids) == sorted(labels.source_ids)


@pytest.mark.parametrize("name", OF_OBJECTS365)
def test_labels_are_objects365s_in_the_order_of_its_ids(name):
    labels = MANIFESTS[name].labels()
    # `category_id` keeps the ids, and row 0 is never used
    first = {"contiguous": 0, "category_id": 1}[recipe_of(name)["data"]["init_args"]["labels"]]
    assert (len(labels.names), len(set(labels.names)), labels.num_classes) == (365, 365, 365 + first)
    assert labels.source_ids == tuple(range(1, 366))
    assert labels.head_indices == tuple(range(first, 365 + first))
    rows = dict(zip(labels.source_ids, labels.names, strict=True))
    assert (rows[1], rows[6], rows[93], rows[365]) == ("Person", "Car", "Dog", "Table Tennis")
    assert all(label == label.strip() for label in labels.names)


@pytest.mark.parametrize("name", OF_PADDLE)
def test_objects365_weights_are_the_published_ones_and_start_a_coco_model(name):
    manifest, entry = MANIFESTS[name], OBJECTS365[base_name(name).removeprefix("rt_detr_")]
    assert manifest.sources == [entry["checkpoint"]]
    assert name.endswith(f"_{entry['epochs']}e")
    assert manifest.published.dataset == "Objects365 val"
    assert (manifest.published.AP, manifest.published.AP50) == (entry["AP"], entry["AP50"])
    [child] = [m for m in MANIFESTS.values() if m.lineage.parent == name]
    differ = {"num_classes": (365, 80)}
    ours, theirs = manifest.model.init_args, child.model.init_args
    assert {k: (ours[k], theirs[k]) for k in ours if ours[k] != theirs[k]} == differ


@pytest.mark.parametrize("name", ["rt_detr_r18.coco_72e"])
def test_params_and_macs_are_those_of_the_network(name):
    check_counts(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MANIFESTS if n != "rt_detr_r18.coco_72e"])
def test_params_and_macs_are_those_of_the_larger_networks(name):
    check_counts(name)


def check_counts(name):
    from zoo.contract.preprocess import InputContract

    manifest = MANIFESTS[name]
    module = build_module(manifest.to_dict()["model"], backbone_weights="random")
    contract = InputContract.from_dict(manifest.to_dict()["input"])
    module.adopt(manifest.labels(), contract)
    params, macs, counted = count(module, contract)
    assert params == manifest.params
    assert macs == manifest.macs
    size = "{}x{}".format(*contract.resized_size(480, 640))
    for text in (manifest.counted, counted):
        assert f"torch.utils.flop_counter / 2, batch 1, evaluation, {size}" in text
