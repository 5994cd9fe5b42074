from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from equal_indexes import assert_equal
from tiny_sets import coco_content, write_coco

from datamodules.formats import coco
from datamodules.formats.coco_annotations import USUAL
from datamodules.index import AnnotationIndex, IndexBuilder
from datamodules.index import growing_columns as scratch_module
from datamodules.index.growing_columns import Scratch
from datamodules.index.object_rules import is_id
from datamodules.reading.json_stream import JsonError, JsonStream, outline

CHUNKS = (1, 2, 3, 7, 16, 61, 1000)
TEXTS = ("a", '"', "}, {", '\\"', "\\", "é{", "图", "[", "x" * 40, '}, {"id": 1}, {', "\n", "\ud800")
ANYTHING = msgspec.json.Decoder(list[dict])


def parts(path: Path, chunk: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with JsonStream(path, chunk) as stream:
        for name in stream.members():
            if name == "skipped":
                stream.skip()
            else:
                found[name] = [value for piece in stream.elements(ANYTHING) for value in piece.values]
    return found


def some_value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if kind < 0.25 and depth < 3:
        return {draw.choice(TEXTS[:-1]): some_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    if kind < 0.45 and depth < 3:
        return [some_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return draw.choice([1, -2.5, None, True, float("nan"), float("-inf"), 1e300, 2**70, *TEXTS])


def some_file(draw: random.Random) -> dict[str, Any]:
    lists = {name: [{"v": some_value(draw)} for _ in range(draw.randrange(6))] for name in ("a", "b")}
    members = [*lists.items(), ("skipped", some_value(draw))]
    draw.shuffle(members)
    return dict(members)


# ---------------------------------------------------------------------- json


@pytest.mark.parametrize("seed", range(60))
def test_any_json_is_read_as_python_reads_it(seed, tmp_path):
    draw = random.Random(seed)
    file = tmp_path / "a.json"
    for _ in range(5):
        text = json.dumps(some_file(draw), indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.7)
        file.write_bytes(b"\xef\xbb\xbf" * draw.randrange(2) + text.encode("utf-8", "replace"))
        expected = json.loads(text.encode("utf-8", "replace"))
        del expected["skipped"]
        for chunk in CHUNKS:
            assert repr(parts(file, chunk)) == repr(expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_that_is_cut_anywhere_is_told_where(seed, tmp_path):
    draw = random.Random(seed)
    file = tmp_path / "a.json"
    text = json.dumps(some_file(draw)).encode()
    for _ in range(10):
        cut = draw.randrange(len(text))
        file.write_bytes(text[:cut])
        for chunk in (1, 5, 1000):
            with pytest.raises(JsonError) as caught:
                parts(file, chunk)
            assert caught.value.offset <= cut


WRONG: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 0),
    "list": (b"[]", 0),
    "blank": (b"  \n", 3),
    "trailing": (b'{"a": []} x', 10),
    "two objects": (b'{"a": []}{"a": []}', 9),
    "no colon": (b'{"a" []}', 5),
    "name without quotes": (b"{a: []}", 1),
    "comma at the end": (b'{"a": [],}', 9),
    "comma at the end of a list": (b'{"a": [{},]}', 10),
    "comma at the start of a list": (b'{"a": [,{}]}', 7),
    "two commas": (b'{"a": [{},,{}]}', 10),
    "no comma": (b'{"a": [{} {}]}', 10),
    "wrong bracket": (b'{"a": [{}}, {}]}', 9),
    "no number": (b'{"a": [{"v": 1.}]}', 14),
    "no list": (b'{"a": {}}', 6),
    "bad skipped": (b'{"skipped": {"x": tru}}', 18),
    "bad in a skipped list": (b'{"skipped": [1, tru]}', 16),
    "bad utf-8": (b'{"a": [{"v": "\xff"}]}', 14),
    "control character": (b'{"a": [{"v": "\x01"}]}', 14),
    "element": (b'{"a": [{"v": "\xc3\xa9"}, {"v": x}]}', 26),
}


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_json_is_named_by_its_byte(case, chunk, tmp_path):
    text, offset = WRONG[case]
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(JsonError, match=rf"\(byte {offset}\)"):
        parts(tmp_path / "a.json", chunk)


def test_deep_nesting_is_an_error_and_no_crash(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [{"v": ' + "[" * 100_000 + "]" * 100_000 + "}]}")
    with pytest.raises(JsonError, match="nested too deeply"):
        parts(tmp_path / "a.json", 1000)


def test_a_bracket_too_few_does_not_read_the_whole_file(monkeypatch, tmp_path):
    monkeypatch.setattr("datamodules.reading.json_stream.LONGEST", 1000)
    (tmp_path / "a.json").write_text('{"a": [{"v": [1}' + ', {"v": 1}' * 5000 + "]}")
    with pytest.raises(JsonError, match=r"not closed within .*\(byte 7\)"):
        parts(tmp_path / "a.json", 100)


def test_the_outline_ignores_strings():
    commas, end = outline(b'{"a": "},\\"{"}, [1, 2] , 3], 4')
    assert (commas.tolist(), end) == ([14, 23], 26)


def test_progress_ends_at_the_size_of_the_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(coco_file(random.Random(0))))
    told: list[tuple[int, int]] = []
    coco.load(file, None, lambda done, total: told.append((done, total)))
    assert told[-1] == (file.stat().st_size,) * 2


# ---------------------------------------------------------------------- COCO

BOXES: list[Any] = [
    [1, 2, 3, 4], [1.5, 2.25, 30, 20.125], [0, 0, 40, 30], [30, 2, 14, 3], [50, 50, 3, 3], [1, 2, 0, 3],
    [9, 9, -3, 3], [1, 2, 3], ["1", 2, 3, 4], None, [float("nan"), 1, 2, 3], [1, 1, float("inf"), 2],
    [1e308, 1, 1e308, 1],
    [-5, 2, 9, 3], [2, -5, 3, 9], [2, 20, 3, 19],
    [-0.9, -0.9, 5, 5], [True, 1, 2, 3], {}, "box", [10**400, 1, 2, 3],
]  # fmt: skip
AREAS: list[Any] = [None, 5, 7.5, 0, -1, float("nan"), "7", True, 10**400]
OUTLINES: list[Any] = [
    None, [], [[1, 2, 4, 2, 4, 6]], [[1, 2, 4, 2, 4, 6], [2, 3, 3, 3, 3, 4, 2, 4]], [[1, 2, 4, 2, 4]], [[]], [[1, 2]],
    {"size": [30, 40], "counts": [5, 7, 1188]}, {"size": [3, 4], "counts": [5, 7]}, {},
    [[200, 200, 210, 200, 210, 210]],
    "outline", [[1, 2, float("nan"), 2, 4, 6]], [[1, 2, 4, 2, 4, 6], [1]],
]  # fmt: skip
IDS: list[Any] = [*range(1, 40), 7, 7, "9", None, 2**63, True]


def some_annotation(draw: random.Random, usual: float) -> dict[str, Any]:
    plain = draw.random() < usual

    def one_of(values: list[Any]) -> Any:
        return values[0] if plain else draw.choice(values)

    annotation: dict[str, Any] = {
        "id": draw.randrange(10**9) if plain else draw.choice(IDS),
        "image_id": draw.choice([5, 6, 7] if plain else [5, 6, 7, 8, 99, "5", None, [5], 2**70]),
        "category_id": draw.choice([1, 3] if plain else [1, 3, 9, "1", None, True, 1.0]),
        "bbox": one_of(BOXES),
        "area": draw.choice([5, 7.5]) if plain else draw.choice(AREAS),
        "iscrowd": 0 if plain else draw.choice([0, 1, True, None, "1"]),
        "segmentation": draw.choice(OUTLINES[:3]) if plain else draw.choice(OUTLINES),
        "attributes": {"text": draw.choice(TEXTS), "list": [{"a": 1}, {"b": [{}]}]},
    }
    for name in list(annotation):
        if draw.random() < (0.02 if plain else 0.1):
            del annotation[name]
    items = list(annotation.items())
    draw.shuffle(items)
    return dict(items)


def coco_file(draw: random.Random) -> dict[str, Any]:
    usual = draw.choice([0.0, 0.5, 0.9, 1.0])
    members: list[tuple[str, Any]] = [
        ("images", [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (7, 5, 6)]),
        ("annotations", [some_annotation(draw, usual) for _ in range(draw.randrange(40))]),
        ("categories", [{"id": 3, "name": "}, {"}, {"id": 1, "name": "图"}]),
        ("info", {"images": [1], "text": '"annotations": [{'}),
        ("licenses", [1, "a", [{}], None]),
    ]
    draw.shuffle(members)
    return dict(members)


def plainly_read(text: str) -> AnnotationIndex:
    """The whole file by python's parser, and one object after the other."""
    content = json.loads(text)
    builder = IndexBuilder(Path("/set"), {i["id"]: i["name"] for i in content["categories"]})
    for image in content["images"]:
        builder.add_image(Path("/set") / image["file_name"], image["id"], (image["height"], image["width"]))
    for number, annotation in enumerate(content["annotations"]):
        own = annotation.get("id")
        builder.add_object(
            annotation.get("image_id"),
            annotation.get("bbox"),
            annotation.get("category_id"),
            own if is_id(own) else number,
            area=annotation.get("area"),
            crowd=bool(annotation.get("iscrowd", 0)),
            segmentation=annotation.get("segmentation"),
            file="a.json",
        )
    return builder.build()


def streamed(file: Path, scratch: Scratch) -> AnnotationIndex:
    content = coco.load(file, scratch)
    builder = IndexBuilder(Path("/set"), {c.id: c.name for c in content.categories}, scratch=scratch)
    for image in content.images:
        builder.add_image(f"/set/{image.file_name}", image.id, (image.height, image.width))
    content.annotations.add_to(builder, "a.json")
    return builder.build()


@pytest.mark.parametrize("seed", range(40))
def test_streaming_judges_as_one_by_one(seed, tmp_path, monkeypatch):
    draw = random.Random(seed)
    file = tmp_path / "a.json"
    file.write_text(
        json.dumps(coco_file(draw), ensure_ascii=draw.random() < 0.5), encoding="utf-8", errors="replace"
    )
    expected = plainly_read(file.read_text(encoding="utf-8"))
    for chunk in (1, 9, 64, 1000, 1 << 20):
        monkeypatch.setattr(coco, "CHUNK", chunk)
        block = draw.choice([1, 2, 5, 100])
        for module in ("scratch", "object_columns", "formats.coco_annotations"):
            monkeypatch.setattr(f"datamodules.{module}.BLOCK", block)
        found = streamed(file, Scratch(draw.choice([None, tmp_path])))
        assert found.faults == expected.faults
        assert_equal(found, expected)
    assert scratch_module.BLOCK == block


def test_the_usual_annotations_take_the_fast_way():
    text = (
        b'[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3.5, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]}]'
    )
    assert len(USUAL.decode(text)) == 1


def test_a_name_that_is_given_twice_counts_once(tmp_path):
    image = {"file_name": "a", "width": 4, "height": 4}
    first, second = (json.dumps([{"id": i, **image}]) for i in (1, 2))
    (tmp_path / "a.json").write_text(
        f'{{"images": {first}, "annotations": [{{"image_id": 1}}], "categories": [{{"id": 1, "name": "x"}}],'
        f'"images": {second}, "annotations": []}}'
    )
    content = coco.load(tmp_path / "a.json")
    assert ([i.id for i in content.images], len(content.annotations)) == ([2], 0)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"annotations": []}', "no images and no categories"),
        ('{"images": [], "categories": [], "annotations": null}', r"expected a list \(byte 48\)"),
        ('{"images": [1], "categories": []}', r"got `int`.*\(byte 12\)"),
        ('{"images": [], "categories": [], "annotations": [[]]}', r"got `array`.*\(byte 49\)"),
        ('{"images": [{"id": 1,', "cut off"),
    ],
)
def test_what_is_no_coco_file_is_named(text, word, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json is no COCO annotation file.*{word}"):
        coco.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("value", "crowd"), [("0", False), ("", False), ("false", False), ("1", True), (0.5, True)]
)
def test_a_crowd_in_quotes_is_what_it_says(value, crowd, tmp_path):
    content = coco_content()
    content["annotations"] = [{**content["annotations"][0], "iscrowd": value}]
    index = coco.read(write_coco(tmp_path, content)).splits["train"]
    assert index.crowd.tolist() == [crowd]
