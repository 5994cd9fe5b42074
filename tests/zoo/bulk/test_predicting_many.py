"""Many images: the same detections as one by one, whatever ends the job in between."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from registry_case import tiny_checkpoint

from datamodules.shapes import generate_shapes
from zoo.bulk import job as jobs
from zoo.cli.main import run_command
from zoo.runs.subject import load

SIZES = [(60, 80), (64, 48), (60, 80), (33, 90), (60, 80), (64, 48), (50, 50)]
BROKEN = "c.jpg"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.ckpt"
    tiny_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes, kinds and names, one in a folder below, one damaged, and a file that is none."""
    root = tmp_path_factory.mktemp("many images")
    (root / "below").mkdir()
    drawn = np.random.default_rng(0)
    names = ["a.png", 'b "q" ü.png', "below/d.png", "line\nend.png", "e.jpg", "grey.png", "deep.png"]
    for (height, width), name in zip(SIZES, names, strict=True):
        pixels = drawn.integers(0, 255, (height, width, 3), dtype=np.uint8)
        if name == "grey.png":
            pixels = pixels[..., 0]
        if name == "deep.png":
            pixels = pixels[..., 0].astype(np.uint16) * 257
        Image.fromarray(pixels).save(root / name)
    (root / BROKEN).write_bytes(b"\xff\xd8\xff no image")
    (root / "notes.txt").write_text("no image")
    return root


def predict(model, *arguments, output, code=0):
    options = [str(argument) for argument in arguments]
    assert run_command(["predict", str(model), *options, "--output", str(output), "--workers", "0"]) == code
    return output


def rows_of(model, path, image_id):
    """What `Detector.predict` finds in one image, as COCO's results."""
    found = load(model).predict(path, 0.0)
    return [
        {"image_id": image_id, "category_id": i, "score": s, "bbox": [x, y, x1 - x, y1 - y]}
        for i, s, (x, y, x1, y1) in zip(found.source_ids, found.scores, found.boxes_xyxy, strict=True)
    ]


def test_the_detections_are_those_of_each_image_alone(model, folder, tmp_path, capsys):
    output = predict(model, "--data", folder, "--threshold", "0", output=tmp_path / "r.json", code=1)
    facts = json.loads((tmp_path / "r.json.images.json").read_text())
    assert len(facts["images"]) == 7
    alone = [row for i in facts["images"] for row in rows_of(model, folder / i["file_name"], i["id"])]
    assert json.loads(output.read_text()) == alone
    assert len(alone) > 30
    assert [i["id"] for i in facts["images"]] == [1, 2, 3, *range(5, 9)]  # the damaged one has its number
    [left_out] = facts["info"]["unreadable"]
    assert (left_out["image_id"], left_out["file_name"]) == (4, BROKEN)
    said = capsys.readouterr().out
    assert f"left out    {BROKEN}: " in said
    assert "images/s" in said
    loaded = COCO(str(tmp_path / "r.json.images.json")).loadRes(str(output))
    assert {c["name"] for c in loaded.loadCats(loaded.getCatIds())} == {"disc", "square", "no"}
    assert not (tmp_path / "r.json.unfinished").exists()


def test_batches_of_several_sizes_find_the_same(model, folder, tmp_path):
    one = predict(model, "--data", folder, "--threshold", "0", output=tmp_path / "one.json", code=1)
    options = ("--data", folder, "--threshold", "0", "--batch-size", "3")
    three = predict(model, *options, output=tmp_path / "three.json", code=1)
    expected, found = json.loads(one.read_text()), json.loads(three.read_text())
    assert [r["image_id"] for r in found] == [r["image_id"] for r in expected]
    assert [r["category_id"] for r in found] == [r["category_id"] for r in expected]
    np.testing.assert_allclose([r["bbox"] for r in found], [r["bbox"] for r in expected], atol=1e-3)


def test_parquet_says_the_same(model, folder, tmp_path):
    options = ("--data", folder, "--threshold", "0")
    rows = json.loads(predict(model, *options, output=tmp_path / "r.json", code=1).read_text())
    table = pq.read_table(predict(model, *options, output=tmp_path / "r.parquet", code=1)).to_pylist()
    boxes = [[r["x"], r["y"], r["box_width"], r["box_height"]] for r in table]
    assert [(r["image_id"], r["category_id"], r["score"]) for r in table] == [
        (r["image_id"], r["category_id"], r["score"]) for r in rows
    ]
    assert boxes == [r["bbox"] for r in rows]
    assert {(r["file_name"], r["width"], r["height"]) for r in table} >= {('b "q" ü.png', 48, 64)}
    assert {(r["category_id"], r["label"]) for r in table} <= {(7, "disc"), (3, "square"), (12, "no")}


def test_outputs_that_differ_in_their_ending_alone_keep_their_own_lists(model, folder, tmp_path, capsys):
    first = ("--data", folder, "--threshold", "0")
    output = predict(model, *first, output=tmp_path / "a.json", code=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    predict(model, "--data", folder, "--threshold", "0.8", output=tmp_path / "a.parquet", code=1)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.iterdir())) == 2 * len(before) == 4
    capsys.readouterr()
    predict(model, *first, output=output, code=1)
    assert f"{output} is finished" in capsys.readouterr().out


def test_no_result_takes_the_place_of_a_list_and_none_without_its_list_is_to_be_removed(
    model, folder, tmp_path, capsys
):
    predict(model, "--data", folder, output=tmp_path / "a.json.images.json", code=2)
    assert "give another" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.json").write_text("[]")
    predict(model, "--data", folder, output=tmp_path / "mine.json", code=2)
    error = capsys.readouterr().err
    assert "no mine.json.images.json beside it says of which job; give another --output" in error
    assert "rm " not in error


class Ended(BaseException):
    """In the place of a kill: nothing after it runs."""


@pytest.mark.parametrize(
    ("name", "torn"),
    [("r.json", b'{"batch":4,"images":[['), ("r.parquet", b"\0" * 40)],
    ids=["json", "parquet"],
)
def test_an_ended_job_goes_on_and_gives_the_same_bytes(model, folder, tmp_path, monkeypatch, name, torn):
    options = ("--data", folder, "--threshold", "0")
    whole = predict(model, *options, output=tmp_path / "whole" / name, code=1)
    detect, seen = jobs.found_in, []

    def ending(detector, images, batch, wanted):
        if len(seen) in (3, 6):
            seen.append(None)
            raise Ended
        seen.append(batch[0].number)
        return detect(detector, images, batch, wanted)

    monkeypatch.setattr(jobs, "found_in", ending)
    output = tmp_path / name
    for _ in range(2):
        with pytest.raises(Ended):
            predict(model, *options, output=output)
        assert not output.exists()
        with open(tmp_path / f"{name}.unfinished", "ab") as journal:
            journal.write(torn)
    again = []
    monkeypatch.setattr(jobs, "found_in", lambda *a: again.append(a[2][0].number) or detect(*a))
    predict(model, *options, output=output, code=1)
    assert (seen, again) == ([0, 1, 2, None, 3, 4, None], [5, 6, 7])
    assert output.read_bytes() == whole.read_bytes()
    before = (tmp_path / "whole" / f"{name}.images.json").read_text().replace("/whole/", "/")
    assert (tmp_path / f"{name}.images.json").read_text() == before
    again.clear()
    predict(model, *options, output=output, code=1)  # it is finished
    assert again == []


def test_ctrl_c_says_what_is_kept(model, folder, tmp_path, monkeypatch, capsys):
    detect, seen = jobs.found_in, []

    def interrupted(*arguments):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return detect(*arguments)

    monkeypatch.setattr(jobs, "found_in", interrupted)
    predict(model, "--data", folder, output=tmp_path / "r.json", code=130)
    assert "interrupted: 2 of 8 images are kept in" in capsys.readouterr().err


@pytest.mark.parametrize("unfinished", [False, True])
def test_an_output_of_another_job_is_not_touched(model, folder, tmp_path, monkeypatch, capsys, unfinished):
    output, other = tmp_path / "r.json", tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (40, 30)).save(other / "a.png")
    if unfinished:
        with monkeypatch.context() as patched:
            patched.setattr(jobs, "found_in", lambda *a: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                predict(model, "--data", other, output=output)
    else:
        predict(model, "--data", other, output=output)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("r.*")}
    for options in (("--data", folder), ("--data", other, "--threshold", "0.5")):
        predict(model, *options, output=output, code=2)
        error = capsys.readouterr().err
        assert "give another --output, or remove it" in error
        assert error.count("\n") == 1
    Image.new("RGB", (41, 30)).save(other / "a.png")  # other bytes of the same name
    predict(model, "--data", other, output=output, code=2)
    assert kept == {path.name: path.read_bytes() for path in tmp_path.glob("r.*")}


def test_a_foreign_file_is_no_journal(model, folder, tmp_path, capsys):
    (tmp_path / "r.json.unfinished").write_text("my notes\n")
    predict(model, "--data", folder, output=tmp_path / "r.json", code=2)
    assert "is not what an interrupted zoo predict leaves" in capsys.readouterr().err
    assert (tmp_path / "r.json.unfinished").read_text() == "my notes\n"


def test_two_processes_do_not_write_one_output(model, folder, tmp_path, capsys):
    with jobs.Journal(tmp_path / "r.json.unfinished"):
        predict(model, "--data", folder, output=tmp_path / "r.json", code=2)
    assert "is being written by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{empty}", "--output", "{out}/r.json"], "no known layout|holds no image"),
        (["--data", "{empty}/gone", "--output", "{out}/r.json"], "is not a folder"),
        (["--data", "{folder}", "--output", "{out}/r.csv"], "results.json or results.parquet"),
        (["--data", "{folder}", "--output", "{out}"], "results.json or results.parquet"),
        (["--data", "{folder}", "--split", "val", "--output", "{out}/r.json"], "no splits"),
        (["--data", "{folder}", "--classes", "disc,cat", "--output", "{out}/r.json"], "no class 'cat'; it has disc"),
        (["--data", "{folder}", "--device", "gpu9", "--output", "{out}/r.json"], "--device gpu9"),
        (["--data", "{folder}", "x.png", "--output", "{out}/r.json"], "images or --data, not both"),
        (["--batch-size", "3", "x.png"], "--batch-size belongs to --data DIR"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(model, folder, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "folder": folder, "out": tmp_path}
    assert run_command(["predict", str(model), *(word.format(**places) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert any(words in error for words in message.split("|")), error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


def test_classes_and_the_best(model, folder, tmp_path):
    options = ("--data", folder, "--threshold", "0", "--classes", "disc, no", "--max-detections", "2")
    rows = json.loads(predict(model, *options, output=tmp_path / "r.json", code=1).read_text())
    everything = rows_of(model, folder / "a.png", 1)
    assert [r for r in rows if r["image_id"] == 1] == [r for r in everything if r["category_id"] != 3][:2]


def test_tiles_are_those_of_one_image(model, folder, tmp_path):
    options = ("--data", folder, "--threshold", "0", "--tiles", "48")
    rows = json.loads(predict(model, *options, output=tmp_path / "r.json", code=1).read_text())
    alone = load(model).predict(folder / "a.png", 0.0, tiles=48)
    assert [r["score"] for r in rows if r["image_id"] == 1] == alone.scores


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    generate_shapes(root, 3, 4, seed=0)
    return root


def test_a_data_set_keeps_its_ids_and_shards_give_the_same(model, shapes, tmp_path, capsys):
    rows = json.loads(
        predict(model, "--data", shapes, "--threshold", "0", output=tmp_path / "r.json").read_text()
    )
    said = capsys.readouterr().out
    assert "split val" in said
    assert "category_id are the model's" in said
    [annotations] = shapes.rglob("*val*.json")
    of_file = {i["id"]: i["file_name"] for i in json.loads(annotations.read_text())["images"]}
    facts = json.loads((tmp_path / "r.json.images.json").read_text())["images"]
    assert len(facts) == 4
    assert {i["id"]: i["file_name"].rsplit("/")[-1] for i in facts} == of_file
    assert run_command(["data", "shard", str(shapes), "--output", str(tmp_path / "shards")]) == 0
    packed = predict(model, "--data", tmp_path / "shards", "--threshold", "0", output=tmp_path / "s.json")
    assert json.loads(packed.read_text()) == rows
    train = predict(model, "--data", shapes, "--split", "train", output=tmp_path / "t.json")
    assert len(json.loads(train.with_name("t.json.images.json").read_text())["images"]) == 3
    predict(model, "--data", shapes, "--split", "night", output=tmp_path / "n.json", code=2)
    assert "has train, val; choose by --split" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_job_goes_on(model, folder, tmp_path):
    """By a real kill, with data workers."""
    for copy in range(60):
        Image.new("RGB", (80, 60), (copy, 0, 0)).save(tmp_path / f"{copy}.png")
    command = [
        sys.executable,
        "-m",
        "zoo",
        "predict",
        str(model),
        "--data",
        str(tmp_path),
        "--threshold",
        "0",
    ]
    options = ["--workers", "2", "--output"]
    subprocess.run([*command, *options, str(tmp_path / "whole.json")], check=True, capture_output=True)
    journal, output = tmp_path / "r.json.unfinished", tmp_path / "r.json"
    for _ in range(3):
        running = subprocess.Popen(
            [*command, *options, str(output)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        before = journal.stat().st_size if journal.exists() else 0
        while running.poll() is None and (not journal.exists() or journal.stat().st_size < before + 3000):
            time.sleep(0.005)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert journal.exists()
    subprocess.run([*command, *options, str(output)], check=True, capture_output=True)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
