"""`zoo data check`: exit codes, what is printed, the page, and the cleaned copy, through the command."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from datamodules.doctor import examine
from datamodules.doctor.gallery import worst
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return generate_shapes(tmp_path / "shapes", 12, 4, seed=0, size=64)


def spoil(root: Path) -> None:
    """A cut picture, a box past the edge, a repeated one, a copy in the other split, a name that is HTML."""
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [50, 50, 40, 40]
    content["annotations"].append({**content["annotations"][-1], "id": 10**6})
    content["categories"][0]["name"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(content))
    names = [image["file_name"] for image in content["images"]]
    cut = next((root / "train").rglob(names[1]))
    buffer = io.BytesIO()
    Image.open(cut).save(buffer, "JPEG")  # its header is read without the rest
    cut.write_bytes(buffer.getvalue()[:-60])
    other = json.loads((root / "annotations/instances_val.json").read_text())
    other["categories"] = content["categories"]
    (root / "annotations/instances_val.json").write_text(json.dumps(other))
    copy = next((root / "val").rglob(other["images"][0]["file_name"]))
    copy.write_bytes(next((root / "train").rglob(names[2])).read_bytes())


class Page(html.parser.HTMLParser):
    """Tags, and what images and links point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_page_holds_everything_itself(shapes, tmp_path, capsys):
    spoil(shapes)
    page = tmp_path / "new" / "report.html"
    assert run_command(["data", "check", str(shapes), "--report", str(page), "--workers", "0"]) == 1
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    parsed = Page()
    parsed.feed(text)
    assert "script" not in parsed.tags
    assert "&lt;script&gt;" in text
    assert all(source.startswith("data:image/") for source in parsed.sources)
    pictures = [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in parsed.sources]
    assert [p.format for p in pictures].count("PNG") == 3
    assert [p.format for p in pictures].count("JPEG") >= 4
    for word in (
        "corrupt_image",
        "partly_outside",
        "duplicate_object",
        "leak",
        "The same picture in two splits",
    ):
        assert word in text
    # the box past the edge is drawn in red, in the margin too
    colours = {
        pixel
        for p in pictures
        if p.format == "JPEG"
        for pixel in p.crop((0, p.height - 24, p.width, p.height)).getdata()
    }
    assert any(r > 180 and g < 110 and b < 130 for r, g, b in colours)


def test_page_of_a_clean_set_says_so(shapes, tmp_path):
    page = tmp_path / "report.html"
    assert run_command(["data", "check", str(shapes), "--report", str(page), "--workers", "0"]) == 0
    assert "Ready to train" in page.read_text()
    assert "The worst images" not in page.read_text()


def test_cleaned_copy_through_the_command(shapes, tmp_path, capsys):
    spoil(shapes)
    out = tmp_path / "clean"
    assert run_command(["data", "check", str(shapes), "--fix", str(out), "--json", "--workers", "0"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fixed"]["folder"] == str(out)
    assert document["fixed"]["changes"]["image_left_out"] == 2  # the cut one, and the copy of one in val
    assert run_command(["data", "check", str(out), "--workers", "0"]) == 0
    assert run_command(["data", "check", str(shapes), "--fix", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert run_command(["data", "check", str(shapes), "--fix", str(tmp_path / "x"), "--quick"]) == 2
    assert "--quick" in capsys.readouterr().err


def test_quick_decodes_nothing_and_says_so(shapes, capsys):
    spoil(shapes)
    assert run_command(["data", "check", str(shapes), "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "no image was decoded" in printed
    assert "corrupt_image" not in printed
    assert "partly_outside" in printed


def test_queries_and_size_are_the_users(shapes, capsys):
    options = ["--quick", "--queries", "1", "--image-size", "32", "--json"]
    run_command(["data", "check", str(shapes), *options])
    document = json.loads(capsys.readouterr().out)
    assert (document["statistics"]["queries"], document["statistics"]["image_size"][:18]) == (
        1,
        "stretched to 32x32",
    )
    assert "more_objects_than_queries" in {f["kind"] for f in document["faults"]}
    assert document["statistics"]["splits"]["train"]["below_stride"]["16"] > 0.5
    for wrong in (["--image-size", "big"], ["--image-size", "9" * 10**5], ["--queries", "0"]):
        assert run_command(["data", "check", str(shapes), *wrong]) == 2
        said = capsys.readouterr().err
        assert re.search("big|'9+ is none of 640|queries is 0", said)
        assert len(said) < 300


def test_terminal_page_and_json_count_the_same_and_listed_minus_left_out_is_the_copy(
    shapes, tmp_path, capsys
):
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    gone = content["images"][5]
    file.write_text(json.dumps(content))
    next((shapes / "train").rglob(gone["file_name"])).unlink()
    objects = sum(a["image_id"] != gone["id"] for a in content["annotations"]) - 1
    page, out = tmp_path / "report.html", tmp_path / "clean"
    command = ["data", "check", str(shapes), "--workers", "0"]
    assert run_command([*command, "--report", str(page)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"split +listed +images +objects +crowds +images without any\n", said)
    assert re.search(rf"\ntrain +12 +11 +{objects} +1 +\d+\n", said)
    assert run_command([*command, "--fix", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    train, val = (document["splits"][split] for split in ("train", "val"))
    assert (train["listed"], train["images"], train["objects"], train["crowd"]) == (12, 11, objects, 1)
    assert document["statistics"]["splits"]["train"]["objects"] == objects
    assert sum(row["counts"]["train"] for row in document["classes"]) == objects
    assert f">{objects + val['objects']}<" in page.read_text()  # the tile at the top
    assert f'<td class="number">{objects}</td><td class="number">1</td>' in page.read_text()
    left = json.loads((out / "annotations/instances_train.json").read_text())["images"]
    assert train["listed"] - document["fixed"]["changes"]["image_left_out"] == len(left)


def test_two_classes_of_one_box_are_told_by_their_names(shapes, capsys):
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    first, (one, other, *_) = content["annotations"][0], content["categories"]
    content["annotations"].append({**first, "id": 10**6})
    first["category_id"], content["annotations"][-1]["category_id"] = one["id"], other["id"]
    file.write_text(json.dumps(content))
    run_command(["data", "check", str(shapes), "--quick"])
    assert f"which is {one['name']!r} where this is {other['name']!r}" in capsys.readouterr().out


def test_each_kind_is_told_with_a_few_examples(shapes, capsys):
    for file in (shapes / "train").rglob("*.png"):
        file.write_bytes(b"no picture")
    for file in (shapes / "train").rglob("*.jpg"):
        file.write_bytes(b"no picture")
    assert run_command(["data", "check", str(shapes)]) == 1
    printed = capsys.readouterr().out
    assert "error unreadable_image: 12" in printed
    assert printed.count("its bytes are in no image format") == 5
    assert "... and 7 more (--json lists all)" in printed


def test_importing_the_command_needs_no_plots():
    """The page's libraries are imported when one is written."""
    heavy = ("matplotlib", "jinja2", "torch")
    code = f"import sys, zoo.cli.data.check, zoo.cli.main; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--report", "file/report.html"], "--report file/report.html cannot be written: Not a directory"),
        (["--fix", "file/clean"], "--fix file/clean cannot be written: Not a directory"),
        (["--fix", "full"], "exists and is not empty"),
        (["--fix", "shapes/clean"], "lie in one another"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_images(
    shapes, monkeypatch, capsys, options, told
):
    Path("file").write_text("no folder")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    monkeypatch.setattr("datamodules.doctor.examine", lambda *_, **__: pytest.fail("it was examined first"))
    assert run_command(["data", "check", str(shapes), *options]) == 2
    assert told in capsys.readouterr().err


def test_findings_are_printed_although_the_report_cannot_be_written(shapes, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError("no space left")

    spoil(shapes)
    monkeypatch.setattr("datamodules.doctor.report.write_report", full)
    assert run_command(["data", "check", str(shapes), "--report", "r.html"]) == 2
    said = capsys.readouterr()
    assert "error corrupt_image: 1" in said.out
    assert said.err.endswith("error: no space left\n")
    assert "the page:" not in said.out
    assert run_command(["data", "check", str(shapes), "--report", "r.html", "--fix", "clean", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["fixed"]["folder"] == "clean"  # one failure does not stop the other
    assert Path("clean/fix_log.md").exists()


@pytest.mark.parametrize("given", ["new/", "there"])
def test_a_report_in_a_folder_is_report_html(shapes, capsys, given):
    Path("there").mkdir()
    assert run_command(["data", "check", str(shapes), "--quick", "--report", given]) == 0
    page = Path(given) / "report.html"
    assert page.read_text().startswith("<!doctype html>")
    assert f"the page: {page}" in capsys.readouterr().out


def test_the_page_marks_a_box_without_area(tmp_path):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    Image.new("RGB", (100, 80), (128, 128, 128)).save(root / "train/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [60, 50, 0, 0], "area": 0},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    [card] = worst(examine(root, workers=0))
    with Image.open(io.BytesIO(base64.b64decode(card.picture))) as picture:
        scale = (picture.width - 52) / 100  # 26 pixels of margin a side
        x, y = round(26 + 60 * scale), round(26 + 50 * scale)
        for dx, dy in ((5, 5), (-5, 5), (5, -5), (-5, -5)):
            red, green, blue = picture.convert("RGB").getpixel((x + dx, y + dy))
            assert red > 180, (dx, dy)
            assert max(green, blue) < 120, (dx, dy)
