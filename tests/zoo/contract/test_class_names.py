"""COCO and Objects365 by name: the right rows, and nothing by accident."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.formats.objects365 import class_names
from zoo.contract.class_names import corrected, match_classes
from zoo.contract.labels import LabelMap
from zoo.registry.manifest import read_manifest
from zoo.registry.store import builtin_manifests
from zoo.training.transfer import LoadReport, copy_rows

ROOT = Path(__file__).resolve().parents[3]
TABLE = yaml.safe_load((ROOT / "zoo/contract/class_names.yaml").read_text(encoding="utf-8"))
PUBLISHED = list(class_names().values())

# Objects365 index of each COCO class in D-FINE's table (src/solver/_solver.py), in COCO's order
DFINE = [
    0, 46, 5, 58, 114, 55, 116, 65, 21, 40, 176, 127, 249, 24, 56, 139, 92, 78, 99, 96, 144, 295, 178, 180,
    38, 39, 13, 43, 120, 219, 148, 173, 165, 154, 137, 113, 145, 146, 204, 8, 35, 10, 88, 84, 93, 26, 112,
    82, 265, 104, 141, 152, 234, 143, 150, 97, 2, 50, 25, 75, 98, 153, 37, 73, 115, 132, 106, 61, 163, 134,
    277, 81, 133, 18, 94, 30, 169, 70, 328, 226,
]  # fmt: skip
# where it is wrong by the names: skis are no ski boots, a sports ball is no baseball
CORRECTIONS = {"skis": 119, "sports ball": None}


def of_manifest(name: str) -> LabelMap:
    return LabelMap.from_dict(read_manifest(builtin_manifests()[name]).to_dict()["label_map"])


def coco() -> LabelMap:
    return of_manifest("rt_detr_r50.coco_72e")


def objects365() -> LabelMap:
    return LabelMap.contiguous(PUBLISHED, range(1, 366))


def expected() -> dict[str, int | None]:
    return {**dict(zip(coco().names, DFINE, strict=True)), **CORRECTIONS}


def test_each_coco_class_takes_the_row_of_its_objects365_class() -> None:
    source = torch.arange(365.0)[:, None]
    target = torch.full((80, 1), -1.0)
    matches = copy_rows(target, source, objects365(), coco())
    rows = dict(zip(coco().names, target[:, 0].int().tolist(), strict=True))
    assert rows == {name: -1 if index is None else index for name, index in expected().items()}
    assert len(matches) == 79
    assert sorted(n for n, m in matches.items() if m.how == "alias") == sorted(TABLE["aliases"])


def test_each_objects365_class_takes_the_row_of_its_coco_class() -> None:
    target = torch.full((366, 1), -1.0)
    label_map = LabelMap.category_id(PUBLISHED, range(1, 366))
    copy_rows(target, torch.arange(80.0)[:, None], coco(), label_map)
    found = {row - 1: int(value) for row, value in enumerate(target[:, 0].tolist()) if value >= 0}
    assert found == {index: i for i, index in enumerate(expected().values()) if index is not None}


def test_the_manifests_name_the_published_classes_in_corrected_spelling() -> None:
    for size in ("r18", "r50", "r101"):
        label_map = of_manifest(f"rt_detr_{size}.o365_12e")
        assert objects365().difference(label_map) is None
        assert [corrected(n) for n in PUBLISHED] == [corrected(n) for n in label_map.names]


def test_another_class_at_an_index_is_a_difference() -> None:
    other = LabelMap.contiguous([*PUBLISHED[:-2], PUBLISHED[-1], PUBLISHED[-2]], range(1, 366))
    assert (
        objects365().difference(other)
        == "head index 363 is 'Curling' in one and 'Table Tennis ' in the other"
    )


def test_the_table_names_classes_that_there_are() -> None:
    names = {corrected(name) for name in PUBLISHED}
    assert set(TABLE["spellings"]) <= {name.strip() for name in PUBLISHED}
    assert set(TABLE["spellings"].values()) <= names
    assert set(TABLE["aliases"].values()) <= names
    assert {*TABLE["aliases"], *TABLE["none"]} <= set(coco().names)


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        (["Cat", "Dog"], ["cat", "bird"], {"cat": ("Cat", "spelling")}),
        (["tv", "Monitor/TV"], ["Moniter/TV"], {"Moniter/TV": ("Monitor/TV", "spelling")}),
        (["tv"], ["Moniter/TV "], {"Moniter/TV ": ("tv", "alias")}),
        (["Cat", "cat"], ["CAT"], {}),  # which one?
        (["cat"], ["Cat", "cat"], {"cat": ("cat", "name")}),
        (["baseball", "tennis ball"], ["sports ball"], {}),
    ],
)
def test_matching(source: list[str], target: list[str], found: dict[str, tuple[str, str]]) -> None:
    assert {n: (m.source, m.how) for n, m in match_classes(source, target).items()} == found


def test_the_report_counts_and_names_the_classes() -> None:
    matches = match_classes(PUBLISHED, coco().names)
    report = LoadReport(classes=list(matches), new_classes=["sports ball"], matches=matches)
    carried, new = report.lines()[1:]
    assert carried.startswith("class rows carried over for 79 of 80 classes by name or alias; 9 by alias: ")
    assert "tv from Moniter/TV" in carried
    assert new.endswith(": sports ball")


def test_the_facts_agree_where_they_are(test_data: Path) -> None:
    facts = json.loads((test_data / "facts/objects365_classes.json").read_text())
    assert [c["official_name"] for c in facts["classes"]] == PUBLISHED
    assert facts["coco80_index_to_obj365_index_dfine"] == DFINE
    for entry in facts["classes"]:
        assert corrected(entry["official_name"]) == corrected(entry["clean_name"])
