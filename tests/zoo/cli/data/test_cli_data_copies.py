"""`zoo data convert`, `split` and `show`, as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.formats.detect import FORMATS, read
from datamodules.images.identical import identical_files
from datamodules.shapes import generate_shapes
from datamodules.shards.writer import SMALLEST_SHARD, pack
from datamodules.splits import divide
from datamodules.writers.convert import convert
from zoo.cli.main import run_command
from zoo.pictures.painting import LEGIBLE, class_colour
from zoo.runs.show import GREY, painted


def write_set(root: Path) -> Path:
    """Ten photographs of three copies each in Roboflow's COCO, every third with a dog."""
    (root / "train").mkdir(parents=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 4, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    for i in range(30):
        name = f"photo{i // 3} x_jpg.rf.{i:02}.png"
        Image.new("RGB", (40, 30), (i * 8, 90, 90)).save(root / "train" / name)
        content["images"].append({"id": i, "file_name": name, "width": 40, "height": 30})
        for label in [2, 4] if i % 9 < 3 else [2]:
            number = len(content["annotations"])
            content["annotations"].append(
                {"id": number, "image_id": i, "category_id": label, "bbox": [3, 4 + label, 20, 9],
                 "iscrowd": int(i == 1)}
            )  # fmt: skip
    (root / "train/_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("target", ["coco", "yolo", "voc", "csv"])
def test_convert(tmp_path, capsys, target):
    root = write_set(tmp_path / "set")
    assert run_command(["data", "convert", str(root), "--to", target, "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert f"roboflow_coco -> {target} in out: train 30 images" in said
    assert ("2 x crowd regions, left out" in said) == (target != "coco")
    copy = read(Path("out").resolve())
    assert copy.format == target
    assert (len(copy.splits["train"]), set(copy.classes.values())) == (30, {"cat", "dog"})
    assert said.endswith("pixels were not decoded, `zoo data check out` does\n")


@pytest.mark.parametrize(
    "command", [["convert", "--to", "yolo"], ["split"], ["shard"]], ids=lambda command: command[0]
)
def test_an_output_inside_the_source_is_refused(tmp_path, capsys, command):
    root = write_set(tmp_path / "set")
    inside = root / "train" / "copy"
    assert run_command(["data", command[0], str(root), *command[1:], "--output", str(inside)]) == 2
    assert f"the output {inside} lies inside the source {root}" in capsys.readouterr().err
    assert not inside.exists()
    with pytest.raises(ValueError, match="lies inside the source"):
        pack(read(root), inside, SMALLEST_SHARD)
    with pytest.raises(ValueError, match="lies inside the source"):
        convert(read(root), "yolo", inside)


def test_convert_reports_as_json_and_refuses_a_full_folder(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    command = [
        "data",
        "convert",
        str(root),
        "--to",
        "yolo",
        "--output",
        "out",
        "--images",
        "symlink",
        "--json",
    ]
    assert run_command(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] == {"train": [30, 40]}
    assert report["losses"]["crowd regions, left out"] == 2
    assert Path("out/images/train/photo0 x_jpg.rf.00.png").is_symlink()
    before = sorted(Path("out").rglob("*"))
    assert run_command(command) == 2
    assert "out exists and is not empty" in capsys.readouterr().err
    assert sorted(Path("out").rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "value"), [("--to", "tfrecord"), ("--images", "move"), ("--format", "avi")]
)
def test_unknown_words_are_refused_with_the_known_ones(tmp_path, capsys, option, value):
    root = write_set(tmp_path / "set")
    arguments = {"--to": "coco", "--images": "copy", "--format": "auto"} | {option: value}
    words = [w for pair in arguments.items() for w in pair]
    assert run_command(["data", "convert", str(root), "--output", "out", *words]) == 2
    assert re.search(rf"{option} {value} is unknown; it is one of .*co", capsys.readouterr().err)
    assert not Path("out").exists()


def test_split_keeps_copies_together_and_prints_the_table(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    command = ["data", "split", str(root), "--val", "0.2", "--test", "0.2", "--seed", "1", "--stratify"]
    assert run_command([*command, "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "10 groups of 2 to 3 images were kept together, 30 images in all" in said
    assert re.search(r"\ndog +6 +3 +3 +6 +3 +3\n", said)
    source = read(Path("out").resolve())
    assert {s: len(i) for s, i in source.splits.items()} == {"train": 18, "val": 6, "test": 6}
    photos = [{f.rsplit("/", 1)[1].split(" ")[0] for f in i.files.tolist()} for i in source.splits.values()]
    assert sum(map(len, photos)) == 10
    assert source.classes == {2: "cat", 4: "dog"}
    assert run_command([*command, "--output", "again", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    for file in Path("out/annotations").iterdir():
        assert file.read_bytes() == (Path("again/annotations") / file.name).read_bytes()


def test_split_again_joins_what_there_was(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    assert run_command(["data", "split", str(root), "--val", "0.5", "--output", "out"]) == 0
    capsys.readouterr()
    command = [
        "data",
        "split",
        "out",
        "--val",
        "0.1",
        "--group-by",
        "none",
        "--to",
        "yolo",
        "--output",
        "two",
    ]
    assert run_command(command) == 0
    said = capsys.readouterr().out
    assert "(train, val) were joined and divided anew" in said
    assert "every image was taken by itself, byte-identical ones too (--group-by none)" in said
    assert {s: len(i) for s, i in read(Path("two").resolve()).splits.items()} == {"train": 27, "val": 3}


@pytest.mark.parametrize("stratify", [[], ["--stratify"]])
def test_split_keeps_identical_files_together_and_says_so(tmp_path, capsys, stratify):
    root = generate_shapes(tmp_path / "set", 12, 1, seed=0, size=32)
    (root / "annotations/instances_val.json").unlink()
    files = sorted((root / "train").rglob("*.png"))
    for i in range(6):
        files[6 + i].write_bytes(files[i].read_bytes())
    command = ["data", "split", str(root), "--val", "0.5", *stratify]
    for seed in range(3):
        assert run_command([*command, "--seed", str(seed), "--output", f"out{seed}"]) == 0
        said = capsys.readouterr().out
        assert "6 groups of 2 images were kept together, 12 images in all" in said
        assert "12 of the files are byte-identical to another one (6 pictures)" in said
        of_split = [
            {f.read_bytes() for f in Path(f"out{seed}", split).rglob("*.png")} for split in ("train", "val")
        ]
        assert sum(map(len, of_split)) == 6
        assert not of_split[0] & of_split[1]


def test_identical_files_join_groups(tmp_path):
    root = write_set(tmp_path / "set")
    index = read(root).splits["train"]
    same = identical_files(index)
    assert same == []
    parts = divide(index, {"val": 0.3}, 0, copies=[np.array([0, 4]), np.array([5, 29])])
    together = {0, 1, 2, 3, 4, 5, 27, 28, 29}  # the first two photographs and the last, three copies each
    assert any(together <= set(own.tolist()) for own in parts.values())


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (["--val", "20"], r"--val 20 is no share of the images; give one from 0 to 1 \(20 % is 0\.2\)"),
        (["--val", "-1"], "--val -1 is no share"),
        (["--val", "0"], "--val 0 with --test 0 divides nothing"),
        (["--val", "0.7", "--test", "0.7"], r"--val 0\.7 and --test 0\.7 together are 1\.4"),
    ],
)
def test_shares_that_cannot_be_are_refused_by_their_options(tmp_path, capsys, shares, message):
    assert run_command(["data", "split", str(tmp_path), *shares, "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert "{" not in said


def test_show_draws_boxes_where_they_are(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    assert run_command(["data", "show", str(root), "--count", "5", "--output", "pictures/g.png"]) == 0
    assert "5 of 30 images of train (roboflow_coco) in pictures/g.png" in capsys.readouterr().out
    assert Image.open("pictures/g.png").width > 4 * 400
    source = read(root)
    image = Image.new("RGB", (40, 30))
    picture = painted(source.splits["train"], 4, image, source.label_map())  # one cat: 3, 6, 20, 9
    scale = picture.width / 40
    for x, y in ((3, 10), (23, 10), (12, 6), (12, 15)):
        square = picture.crop([round(v * scale) - 4 for v in (x, y)] + [round(v * scale) + 4 for v in (x, y)])
        assert class_colour(0) in {c for _, c in square.getcolors()}
    assert picture.getpixel((round(12 * scale), round(12 * scale))) == (0, 0, 0)
    assert run_command(["data", "show", str(root), "--count", "1"]) == 0
    assert Path("mlruns/pictures/set.png").is_file()  # and not among the user's own files
    assert run_command(["data", "show", str(root), "--split", "val"]) == 2
    assert "no images in a split 'val'; it has train with 30 images" in capsys.readouterr().err


def test_show_goes_on_past_an_image_that_cannot_be_decoded(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    broken = sorted((root / "train").glob("*.png"))[1]
    Image.effect_noise((40, 30), 90).convert("RGB").save(broken, "JPEG")
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])  # the header is whole
    command = ["data", "show", str(root), "--count", "30", "--output", "g.png"]
    assert run_command(command) == 0
    said = capsys.readouterr().out
    assert f"{broken} (image id 1) cannot be decoded" in said
    assert "30 of 30 images of train" in said
    assert "1 of them cannot be decoded and are grey" in said
    colours = Image.open("g.png").getcolors(1 << 20)
    assert GREY in {colour for number, colour in colours if number > LEGIBLE * LEGIBLE // 2}
    assert run_command([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["broken"] == [f"train/{broken.name}"]


def test_the_help_names_formats(capsys):
    run_command(["data", "convert", "--help"])
    said = capsys.readouterr().out
    assert "coco, yolo, voc or csv" in said
    assert {"coco", "yolo", "voc", "csv", "labelme", "cvat"} <= set(FORMATS)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["check"], "datamodules.doctor.examine"),
        (["convert", "--to", "yolo", "--output", "out"], "datamodules.writers.convert._place"),
        (["split", "--output", "out"], "datamodules.writers.convert._place"),
        (["shard", "--output", "out"], "datamodules.shards.writer._entry"),
        (["show", "--output", "out.png"], "zoo.runs.show.gallery"),
    ],
)
def test_ctrl_c_says_that_nothing_was_written(tmp_path, capsys, monkeypatch, command, place):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    root = generate_shapes(tmp_path / "set", 6, 2, seed=0, size=32)
    monkeypatch.setattr(place, stop)
    assert run_command(["data", command[0], str(root), *command[1:]]) == 130
    assert capsys.readouterr().err.endswith("error: interrupted; nothing was written\n")
    assert not [p for p in Path().iterdir() if "out" in p.name]


def test_ctrl_c_names_what_was_written(tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    root = generate_shapes(tmp_path / "set", 6, 2, seed=0, size=32)
    monkeypatch.setattr("datamodules.doctor.report.write_report", stop)
    command = ["data", "check", str(root), "--fix", "out", "--report", "page.html", "--workers", "0"]
    assert run_command(command) == 130
    assert capsys.readouterr().err.endswith("error: interrupted; look at out\n")


def test_one_is_told_in_the_singular(tmp_path, capsys):
    root = generate_shapes(tmp_path / "set", 1, 1, seed=0, size=32)
    assert run_command(["data", "shard", str(root), "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert "1 image in train, 1 image in val; 1 shard, " in said
    assert run_command(["data", "convert", str(root), "--to", "csv", "--output", "copy"]) == 0
    said = capsys.readouterr().out
    assert "train 1 image " in said
    assert run_command(["data", "check", str(root), "--workers", "-1"]) == 2
    assert "workers is -1; it must be 0 or more" in capsys.readouterr().err
