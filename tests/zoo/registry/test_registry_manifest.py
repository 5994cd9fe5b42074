import dataclasses

import msgspec
import pytest
import yaml
from registry_case import INPUT, LABELS, MODEL, tiny_manifest

from zoo.contract.preprocess import InputContract
from zoo.registry.manifest import InputBlock, ManifestError, check_file_name, parse_manifest
from zoo.registry.names import logged_model_name, parse_reference

MEASURED = {
    "run": "0" * 32,
    "git_commit": "1" * 40,
    "date": "2026-01-01",
    "dataset": "shapes",
    "split": "val",
    "AP": 0.5,
    "interval": {"AP": [0.4, 0.6]},
}


def changed(**changes):
    return yaml.safe_dump({**tiny_manifest().to_dict(), **changes})


def test_yaml_text_reads_back_equal_also_for_names_that_yaml_would_twist():
    manifest = tiny_manifest(measured=MEASURED)
    again = parse_manifest(manifest.to_yaml())
    assert again == manifest
    assert again.labels() == LABELS  # a class is called `no`
    assert again.measured.interval == {"AP": (0.4, 0.6)}


def test_input_block_is_the_input_contract():
    fields = {f.name for f in dataclasses.fields(InputContract)}
    assert {f.name for f in msgspec.structs.fields(InputBlock)} == fields
    assert InputContract.from_dict(tiny_manifest().to_dict()["input"]).to_dict() == INPUT


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"licence": "MIT"}, "licence"),
        ({"model": {**MODEL, "class_path": "os.system"}}, r"'os\.system' is not a class in a module"),
        ({"model": {**MODEL, "class_path": "zoo.architectures.x.Y.__init__"}}, "not a class in a module"),
        ({"files": [{"path": "../model.safetensors", "size": 1, "sha256": "a" * 64}]}, "not plain"),
        ({"files": [{"path": "model.pth", "size": 1, "sha256": "a" * 64}]}, "pickle"),
        ({"files": [{"path": "model.safetensors", "size": 1, "sha256": "abc"}]}, "sha256"),
        ({"files": []}, r"files has no model\.safetensors"),
        ({"measured": {k: v for k, v in MEASURED.items() if k != "run"}}, "run"),
        ({"measured": {**MEASURED, "git_commit": ""}}, "git_commit"),
        ({"measured": {**MEASURED, "AP": 50.0}}, "AP"),
        ({"origin": {"kind": "converted"}}, "need sources"),
        ({"label_map": {**LABELS.to_dict(), "num_classes": 4}}, "num_classes is 3, label_map is for 4"),
        ({"name": "Rt_Detr"}, "no model name"),
        ({"version": 0}, "version"),
        ({"input": {**INPUT, "mean": [0.5]}}, "three values"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(changes, says):
    with pytest.raises(ManifestError, match=says):
        parse_manifest(changed(**changes))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: *x", "anchors"),
        ("name: a\nname: b", "given twice"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper"),
        ("a: " + "x" * (1 << 20), "larger than"),
        ("a: !!python/object/apply:os.system ['true']", "not plain YAML"),
        ("[1, 2", "not plain YAML"),
        ("1: 2", "unknown field"),
        ("just words", "manifest"),
        ("a: .nan", "no finite number"),
        ("a: 1\n---\nb: 2", "second document"),
    ],
)
def test_hostile_yaml_is_refused(text, says):
    with pytest.raises(ManifestError, match=says):
        parse_manifest(text)


@pytest.mark.parametrize(
    "name",
    [
        "a/b.json",
        "a\\b.json",
        "..",
        ".hidden.json",
        "x.pkl",
        "x",
        "C:x.json",
        "a\n.json",
        "x.safetensors.bin",
    ],
)
def test_file_names_are_plain_and_of_harmless_types(name):
    with pytest.raises(ValueError):
        check_file_name(name)


def test_references_are_read_in_one_place():
    assert str(parse_reference("rt_detr_r18")) == "rt_detr_r18"
    assert parse_reference("rt_detr_r18.coco_72e:3").version == 3
    assert parse_reference("cells@champion").alias == "champion"
    assert logged_model_name("rt_detr_r18.coco_72e") == "rt_detr_r18__coco_72e"


@pytest.mark.parametrize(
    "text", ["a@b:1", "a:0", "a:x", "a@", "a@1", "a@v2", "", "a__b", "a.b.c", "../a", "a b", "A", "a\n"]
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ValueError):
        parse_reference(text)
