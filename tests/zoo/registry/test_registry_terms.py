"""Terms of use in a manifest: what is strict, what is inherited, and that what is unclear is never free."""

import msgspec
import pytest
from registry_case import tiny_checkpoint, tiny_manifest

from zoo.registry.manifest import ManifestError, parse_manifest
from zoo.registry.publish import publish
from zoo.registry.pull import pull
from zoo.registry.store import LocalRegistry, builtin_manifest, builtin_manifests
from zoo.registry.terms import DATA_TERMS, ModelTerms, Terms, commercial, inherited, not_stated, restriction

FREE = {"licence": "MIT", "source": "LICENSE", "date": "2026-01-02", "commercial": "allowed"}
NAME = "rt_detr_tiny.mine"


def terms(**changes):
    return {"code": FREE, "weights": {**FREE, "licence": "Apache-2.0"}, "data": {"shapes": FREE}} | changes


def typed(**changes) -> ModelTerms:
    return msgspec.convert(terms(**changes), ModelTerms)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({k: v for k, v in terms().items() if k != "weights"}, r"missing required field `weights` - at `\$\.terms`"),
        ({k: v for k, v in terms().items() if k != "data"}, "missing required field `data`"),
        (terms(data={}), "length >= 1"),
        (terms(code={k: v for k, v in FREE.items() if k != "source"}), r"field `source` - at `\$\.terms\.code`"),
        (terms(code={k: v for k, v in FREE.items() if k != "date"}), "field `date`"),
        (terms(code={k: v for k, v in FREE.items() if k != "commercial"}), "field `commercial`"),
        (terms(code={**FREE, "license": "MIT"}), "unknown field `license`"),
        (terms(code={**FREE, "commercial": "yes"}), "'yes'"),
        (terms(code={**FREE, "commercial": True}), "bool"),
        (terms(code={**FREE, "licence": "mit"}), "terms, code: 'mit' is no SPDX id; write MIT"),
        (terms(data={"shapes": {**FREE, "licence": "Apache2"}}), "terms, data shapes: 'Apache2' is no SPDX id"),
        (terms(code={**FREE, "source": None}), "commercial use is 'allowed' and source is null"),
        (terms(code={**FREE, "commercial": "forbidden", "date": None}), "'forbidden' and date is null"),
        (terms(code={**FREE, "date": "2026-02-30"}), "'2026-02-30' is no day"),
        (terms(code={**FREE, "date": "20260228"}), "is no day"),
        (terms(code={**FREE, "licence": "CC-BY-NC-4.0"}), "CC-BY-NC-4.0 does not allow commercial use"),
        (terms(weights=FREE), "license is 'Apache-2.0', terms.weights.licence is 'MIT'"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named_in_one_line(given, says):
    text = msgspec.json.encode({**tiny_manifest().to_dict(), "terms": given})
    with pytest.raises(ManifestError, match=says) as error:
        parse_manifest(text, "here.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("here.yaml")


def test_terms_read_back_as_written():
    manifest = tiny_manifest(
        terms=terms(data={"shapes": FREE, "no": {**FREE, "licence": "own words: ask us"}})
    )
    assert parse_manifest(manifest.to_yaml()) == manifest
    assert list(manifest.terms.data) == ["shapes", "no"]


def test_a_manifest_of_before_is_read_and_its_licence_is_no_proof():
    manifest = tiny_manifest()
    assert manifest.terms is None
    assert commercial(manifest.terms) == "unclear"
    assert restriction(manifest.terms, "free\nto use") == (
        "commercial use is unclear: the licence (free to use) is told without a source"
    )


@pytest.mark.parametrize("part", ["code", "weights", "data"])
@pytest.mark.parametrize("word", ["unclear", "forbidden"])
def test_one_part_that_is_not_free_binds_the_model(part, word):
    one = {**FREE, "licence": "owner's own\nterms", "commercial": word}
    found = typed(**{part: {"shapes\nand": one} if part == "data" else one})
    assert commercial(found) == word
    line = restriction(found, "Apache-2.0")
    name = "data shapes and" if part == "data" else part
    assert line == f"commercial use is {word}: {name} (owner's own terms)"


def test_forbidden_goes_before_unclear_and_free_says_nothing():
    assert (commercial(typed()), restriction(typed(), "Apache-2.0")) == ("allowed", "")
    closed = {**FREE, "licence": "CC-BY-NC-4.0", "commercial": "forbidden"}
    found = typed(code={**FREE, "commercial": "unclear"}, data={"a": closed, "b": FREE})
    assert commercial(found) == "forbidden"
    assert restriction(found, "") == (
        "commercial use is forbidden: data a (CC-BY-NC-4.0); commercial use is unclear: code (MIT)"
    )


def test_a_licence_of_its_own_does_not_free_weights_from_their_parent():
    code = msgspec.convert(FREE, Terms)
    bound = typed(weights={**FREE, "licence": "CC-BY-NC-4.0", "commercial": "forbidden"})
    found = inherited(("p", bound, "CC-BY-NC-4.0", "shapes"), code, "MIT", ("mine", code))
    assert (found.weights.licence, found.weights.commercial) == ("MIT", "forbidden")
    assert "the parent p is under CC-BY-NC-4.0" in found.weights.note
    free = inherited(("p", typed(), "Apache-2.0", "shapes"), code, "MIT", ("mine", code))
    assert (free.weights.commercial, free.weights.source) == ("unclear", None)
    same = inherited(("p", typed(), "Apache-2.0", "shapes"), code, "Apache-2.0", ("mine", code))
    assert commercial(same) == "allowed"


def test_own_data_of_a_known_name_do_not_take_its_terms():
    free = msgspec.convert(FREE, Terms)
    found = inherited(("p", typed(), "Apache-2.0", "shapes"), free, None, ("shapes", not_stated()))
    assert found.data == {"shapes": free, "shapes, again": not_stated()}
    assert inherited(("q", found, "Apache-2.0", "shapes"), free, None, ("shapes", not_stated())) == found
    mine = inherited(("p", typed(), "Apache-2.0", "shapes"), free, None, ("mine", not_stated()))
    assert inherited(("q", mine, "Apache-2.0", "mine"), free, None, ("mine", not_stated())) == mine


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def recipe(source: str, root: str = "/images/cells") -> str:
    return f"init_from: {{source: {source}}}\ndata: {{init_args: {{root: {root}}}}}\n"


def test_fine_tuned_weights_inherit_the_terms_and_pass_them_on(place):
    parent = builtin_manifest(builtin_manifests()["rt_detr_r18.o365_coco_60e"])
    first = publish(place, NAME, recipe=recipe(parent.name)).manifest
    assert first.terms.weights == parent.terms.weights
    assert first.license == parent.license
    assert first.terms.data == {**parent.terms.data, "cells": not_stated()}
    assert first.lineage.parent == parent.name
    assert first.data.name == "cells"
    assert "objects365" in restriction(first.terms, first.license)
    second = publish(place, "rt_detr_tiny.next", parent=f"{NAME}:1", data_name="more").manifest
    assert list(second.terms.data) == [*first.terms.data, "more"]
    assert pull("rt_detr_tiny.next").manifest == second


def test_the_own_data_may_be_stated(place):
    own = Terms(licence="own images, ours to sell", source="us", date="2026-01-02", commercial="allowed")
    free = publish(place, NAME, parent="rt_detr_r18.coco_72e", data_name="cells", data_terms=own).manifest
    assert commercial(free.terms) == "allowed"
    assert publish(place, NAME, parent="rt_detr_r18.coco_72e").manifest.terms.data["custom"] == not_stated()


@pytest.mark.parametrize("source", ["none", "/runs/a/last.ckpt", "official.pth", "x.safetensors"])
def test_weights_from_scratch_or_from_a_file_have_no_terms_but_those_stated(place, source):
    manifest = publish(place, NAME, recipe=recipe(source), license="MIT").manifest
    assert manifest.lineage.parent is None
    assert (manifest.terms.weights.licence, manifest.terms.weights.commercial) == ("MIT", "unclear")
    assert publish(place, NAME, recipe=recipe(source)).manifest.license == "not stated"


@pytest.mark.parametrize("statement", ["Apache-2.0", "GPL", "ask the author"])
def test_a_parent_of_before_and_one_that_is_gone_make_it_unclear(place, statement):
    publish(place, NAME)
    path = LocalRegistry().folder(NAME, 1) / "manifest.yaml"
    old = msgspec.structs.replace(pull(NAME).manifest, terms=None, license=statement)
    path.write_text(old.to_yaml())
    child = publish(place, "rt_detr_tiny.next", parent=NAME).manifest
    assert child.license in (statement, f"stated as {statement}")
    assert NAME in child.terms.weights.note
    assert list(child.terms.data) == ["custom"]
    assert commercial(child.terms) == "unclear"
    orphan = publish(place, "rt_detr_tiny.next", parent="rt_detr_tiny.gone").manifest
    assert (orphan.license, list(orphan.terms.data)) == ("not stated", ["not known", "custom"])


def test_the_code_of_a_network_from_elsewhere_is_not_called_ours(place, monkeypatch):
    assert publish(place, NAME).manifest.terms.code.commercial == "allowed"
    monkeypatch.setattr("zoo.registry.publish.BUILTIN_FOLDER", place.parent / "elsewhere" / "manifests")
    monkeypatch.setattr("zoo.registry.publish.find", lambda *_: None)
    assert publish(place, NAME).manifest.terms.code.licence == "not stated"


def test_objects365_is_not_called_free():
    assert DATA_TERMS["objects365"].commercial == "unclear"
