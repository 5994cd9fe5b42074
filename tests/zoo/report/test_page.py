"""The page of a report: its numbers, that it stands alone, and that nothing from a data set becomes markup."""

import contextlib
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datamodules.custom import CustomDataModule
from zoo.cli.main import run_command
from zoo.contract.batch import Detections
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tiles
from zoo.evaluation.coco_ap import CocoAP
from zoo.report import words
from zoo.runs.console import Silent
from zoo.runs.reports.of_model import evaluate_with_report
from zoo.runs.reports.of_run import faults_of
from zoo.runs.reports.results_file import collected

NAMES = ("cat", "dog", "owl")
SIZE = (120, 90)  # width, height


def write(folder: Path, objects, names=NAMES, seed=0, files="{}.jpg", size=SIZE, train=()) -> Path:
    """A COCO folder with a val split of `objects`: for each image (class, x, y, w, h, crowd) rows."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": 10 + k, "name": name} for k, name in enumerate(names)]
    for split, images in (("train", train), ("val", objects)):
        content = {"images": [], "annotations": [], "categories": categories}
        (folder / split).mkdir()
        for k, rows in enumerate(images):
            name = files.format(k)
            pixels = np.random.default_rng((seed, split == "val", k)).integers(0, 255, (size[1], size[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name)
            content["images"].append({"id": 100 + k, "file_name": name, "width": size[0], "height": size[1]})
            for label, *box, crowd in rows:
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": 100 + k, "category_id": 10 + label, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": crowd}
                )  # fmt: skip
        if images:
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def some(count=12, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [
            (int(rng.integers(classes)), *rng.integers(0, 60, 2).tolist(), *rng.integers(4, 28, 2).tolist(), 0)
            for _ in range(int(rng.integers(1, 6)))
        ]
        for _ in range(count)
    ]  # fmt: skip


def results_of(objects, seed=0, wrong=0.2, classes=3):
    """Detections near the objects, some of another class, some of nothing, some twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, image in enumerate(objects):
        for label, x, y, w, h, _ in image:
            for _ in range(int(rng.integers(0, 3))):
                moved = np.array([x, y, w, h]) + rng.normal(0, 2, 4)
                shown = int(rng.integers(classes)) if rng.random() < wrong else label
                rows.append((k, shown, moved, rng.random()))
        rows.append((k, int(rng.integers(classes)), rng.uniform(1, 40, 4), rng.random() / 2))
    return [
        {
            "image_id": 100 + k,
            "category_id": 10 + c,
            "bbox": np.abs(box).round(2).tolist(),
            "score": round(s, 3),
        }
        for k, c, box, s in rows
    ]


def evaluated(folder: Path, results, **options):
    """(numbers, page)"""
    file = folder.parent / "results.json"
    file.write_text(json.dumps(results))
    out = folder.parent / "out"
    numbers = evaluate_with_report(
        None, folder, predictions=file, output=out, console=options.pop("console", Silent()), **options
    )
    assert json.loads((out / "report.json").read_text()) == numbers
    return numbers, (out / "report.html").read_text()


class Page(html.parser.HTMLParser):
    """What a browser would fetch or run, and whether every element is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.addresses, self.handlers, self.scripts, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [(tag, v) for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag == "script":
            self.scripts.append(dict(attrs))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("tiles", [None, Tiles(size=(64, 64))])
def test_objects_are_as_small_as_the_network_sees_them(tmp_path, tiles):
    """Not as the whole image would show them, if it is cut."""
    root = write(
        tmp_path / "set", [[(0, 20, 20, 12, 12, 0)]], train=[[(0, 20, 20, 12, 12, 0)]], size=(640, 640)
    )
    contract = InputContract(resize="stretch", size=(64, 64), tiles=tiles)
    data = CustomDataModule(
        root=str(root),
        input=contract,
        train_transform="none",
        batch_size=1,
        eval_batch_size=1,
        num_workers=0,
        seed=0,
    )
    assert ("below_stride" in {fault.kind for fault in faults_of(data, look=False)}) == (tiles is None)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    objects = some()
    data = write(folder / "set", objects, train=some(4, 2, seed=5))
    return objects, *evaluated(data, results_of(objects)), data


def scene_of(page):
    block = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.S)
    return json.loads(block[1])


def test_ap_of_a_results_file_is_that_of_pycocotools(report):
    objects, numbers, _, data = report
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data / "annotations" / "instances_val.json"))
        run = COCOeval(truth, truth.loadRes(results_of(objects)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert numbers["scores"]["AP"] == pytest.approx(run.stats[0], abs=1e-12)
    precision = run.eval["precision"][0, :, :, 0, -1]
    for k, name in enumerate(NAMES):
        assert numbers["curves"]["classes"][name] == pytest.approx(precision[:, k].tolist(), abs=1e-5)
    assert numbers["curves"]["all"]["0.5"] == pytest.approx(precision.mean(axis=1).tolist(), abs=1e-5)


def test_every_block_adds_up(report):
    objects, numbers, page, _ = report
    count = sum(map(len, objects))
    assert (numbers["images"], numbers["objects"]) == (len(objects), count)
    assert sum(row["objects"] for row in numbers["classes"]) == count
    assert sum(row["objects"] for row in numbers["sizes"]) == count
    assert sum(row["objects"] for row in numbers["fullness"]) == count
    cells = numbers["confusion"]["cells"]
    assert sum(cell["count"] for cell in cells if cell["true"] is not None) == count
    right = sum(cell["count"] for cell in cells if cell["true"] == cell["shown"])
    point = numbers["threshold"]["chosen"]
    assert point["recall"] == pytest.approx(right / count)
    assert point["precision"] == pytest.approx(
        right / sum(cell["count"] for cell in cells if cell["shown"] is not None)
    )
    for trait in numbers["objects_by_trait"]:
        assert trait["objects"] + trait["other_objects"] == count
        found = trait["recall"] * trait["objects"] + (trait["recall_of_others"] or 0) * trait["other_objects"]
        assert found == pytest.approx(right)
    assert [row["learned"] for row in numbers["classes"]][2] == 0  # owl is not in train
    assert "no object of owl" in " ".join(numbers["why"])
    assert sum(cell["count"] for cell in scene_of(page)["cells"]) == sum(cell["count"] for cell in cells)


def test_the_first_sentence_names_the_kind_that_costs_most(report):
    _, numbers, page, _ = report
    costs = {kind: numbers["errors"]["costs"][kind] for kind in words.WHAT}
    assert words.WHAT[max(costs, key=costs.get)] in numbers["why"][0]
    assert numbers["why"][0] in "".join(Page(page).text)


def test_the_page_stands_alone(report):
    page = report[2]
    parsed = Page(page)
    assert not parsed.open
    assert [a for _, a in parsed.addresses if not a.startswith("#")] == []
    assert {a[1:] for _, a in parsed.addresses} <= set(re.findall(r'id="([\w-]+)"', page))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    outside = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert outside == {"http://www.w3.org/2000/svg"}  # a name, which nothing is fetched from
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_pictures_are_small_and_those_of_the_worst_images(report):
    _, _, page, _ = report
    scene = scene_of(page)
    rows = {str(row) for kind in scene["worst"].values() for row in kind}
    assert rows <= set(scene["pictures"])
    for picture in scene["pictures"].values():
        assert 0 < len(picture["jpeg"]) < 60_000
        assert picture["file"].endswith(".jpg")
    kinds = {entry[7] for picture in scene["pictures"].values() for entry in picture["found"]}
    assert {"", "duplicate", "localisation", "classification"} <= kinds


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\x1b[31mé中\u2028'\"&amp;{{7*7}}",
)


def test_names_never_become_markup(tmp_path, capsys):
    from zoo.runs.console import Console

    objects = some()
    data = write(tmp_path / "a<b>&'\"", objects, HOSTILE, files="<b>{} &amp;'.jpg")
    numbers, page = evaluated(data, results_of(objects), console=Console())
    parsed = Page(page)
    assert not parsed.handlers
    assert not parsed.open
    assert parsed.scripts == [{"type": "application/json", "id": "report"}, {}]
    assert [row["name"] for row in numbers["classes"]] == [*HOSTILE]
    scene = scene_of(page)
    assert scene["classes"] == [*HOSTILE]
    assert scene["pictures"][next(iter(scene["pictures"]))]["file"].endswith("&amp;'.jpg")
    assert "49" not in "".join(scene["classes"])
    assert "<img src=x" not in page
    assert "\x1b" not in capsys.readouterr().out


CASES = {
    "no detections": (some(3), lambda o: []),
    "one image": (some(1), results_of),
    "no objects": ([[], []], lambda o: [{"image_id": 100, "category_id": 10, "bbox": [1, 1, 9, 9], "score": 0.5}]),
    "nothing at all": ([[]], lambda o: []),
    "only crowds": ([[(0, 5, 5, 40, 40, 1)]], lambda o: results_of(o)),
    "a class without truth": ([[(0, 5, 5, 40, 40, 0)]], lambda o: [
        {"image_id": 100, "category_id": c, "bbox": [5, 5, 40, 40], "score": 0.5} for c in (10, 12)
    ]),
    "boxes without area, outside, and scores of 0 and 1": ([[(0, 5, 5, 40, 40, 0)]], lambda o: [
        {"image_id": 100, "category_id": 10, "bbox": box, "score": s}
        for box, s in (([5, 5, 0, 0], 1.0), ([-50, -50, 900, 900], 0.0), ([5, 5, 40, 40], 1))
    ]),
    "more than a hundred detections": ([[(0, 5, 5, 40, 40, 0)]], lambda o: [
        {"image_id": 100, "category_id": 10, "bbox": [5, 5, 40, 40], "score": k / 200} for k in range(150)
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_there_is_little_of(tmp_path, case):
    objects, results = CASES[case]
    numbers, page = evaluated(write(tmp_path / "set", objects), results(objects))
    assert not Page(page).open
    assert numbers["why"]
    assert "nan" not in json.dumps(numbers).lower()
    assert "nan" not in page.partition("<script")[0].lower().replace("annannotated", "")


def test_a_thousand_classes_stay_readable(tmp_path):
    names = [f"kind {k}" for k in range(1000)]
    objects = [
        [(int(c), 5 * (k % 20), 5, 4, 20, 0) for k, c in enumerate(range(i, 1000, 50))] for i in range(50)
    ]
    data = write(tmp_path / "set", objects, names)
    _, page = evaluated(data, results_of(objects, classes=1000))
    scene = scene_of(page)
    assert len(scene["matrix"]) == 25
    assert len(scene["cells"]) <= 400
    assert page.partition("<details>")[0].count("<tr><td>kind") == 40
    assert len(page) < 8_000_000


def test_unknown_ids_are_one_line(tmp_path, capsys):
    objects = some(2)
    data = write(tmp_path / "set", objects)
    good = {"image_id": 100, "category_id": 10, "bbox": [1, 1, 9, 9], "score": 0.5}
    cases = {
        "image_id 7 is no image of the split; it has 100, 101; give": [good | {"image_id": 7}],
        "category_id 3 is no class of the data (and 1 more)": [
            good | {"category_id": 3},
            good | {"category_id": 4},
        ],
        "detection 1 is": [good, good | {"bbox": [1, 2, 3]}],
        "detection 0 is": [good | {"score": float("nan")}],
        "holds no list": {"annotations": []},
    }
    file = tmp_path / "results.json"
    for message, rows in cases.items():
        file.write_text(json.dumps(rows))
        assert (
            run_command(["evaluate", "--predictions", str(file), "--data", str(data), "--output", "x"]) == 2
        )
        told = capsys.readouterr().err
        assert message in told
        assert len(told.strip().splitlines()) == 1
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--data", "set"], "evaluate what?"),
        (["evaluate", "m"], "evaluate on which images?"),
        (["evaluate", "m", "--predictions", "r.json", "--data", "set"], "not both"),
        (["evaluate", "--predictions", "r.json", "--data", "set", "--split", "train"], "it is val or test"),
        (["evaluate", "--predictions", "r.json", "--data", "set", "--split", "test"], "no test split; it has val (2"),
        (["evaluate", "--predictions", "r.json", "--data", "set", "--precision-at", "2"], "above 0 and at most 1"),
        (["evaluate", "--predictions", "none.json", "--data", "set"], "none.json"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    write(tmp_path / "set", some(2))
    Path("r.json").write_text("[]")
    assert run_command(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("wanted", "says"), [("0.9", "precision 0.9 from threshold 0."), ("1", "no threshold has the precision 1:")]
)  # fmt: skip
def test_a_wanted_precision_is_told_on_the_terminal(tmp_path, capsys, wanted, says):
    objects = some()
    data = write(tmp_path / "set", objects)
    found = results_of(objects) if wanted == "0.9" else results_of(objects, wrong=1.0, seed=3)
    Path("r.json").write_text(json.dumps(found))
    assert (
        run_command(["evaluate", "--predictions", "r.json", "--data", str(data), "--precision-at", wanted])
        == 0
    )
    assert says in capsys.readouterr().out


def test_a_wanted_precision_is_that_of_the_threshold(tmp_path):
    objects = some()
    data = write(tmp_path / "set", objects)
    numbers, page = evaluated(data, results_of(objects), precision=0.9)
    assert numbers["threshold"]["for"] == "precision 0.9"
    assert numbers["threshold"]["chosen"]["precision"] >= 0.9
    assert "precision 0.9" in page
    none, page = evaluated(data, results_of(objects, wrong=1.0, seed=3), precision=1.0)
    assert none["threshold"]["chosen"] is None
    assert "No threshold has the precision 1" in page


def test_an_image_that_is_in_train_too_is_told_with_the_ap_of_the_others(tmp_path):
    objects = some(6)
    data = write(tmp_path / "set", objects, train=objects)
    for k in (0, 1):  # the same bytes
        (data / "val" / f"{k}.jpg").write_bytes((data / "train" / f"{k}.jpg").read_bytes())
    numbers, page = evaluated(data, results_of(objects))
    assert numbers["without_leaked_images"]["leaked_images"] == 2
    assert "2 of 6 images are in another split too" in " ".join(numbers["why"])
    assert "2 images in another split too" in page
    leaked = next(row for row in numbers["objects_by_trait"] if row["trait"] == "leaked")
    assert leaked["objects"] == len(objects[0]) + len(objects[1])


def test_a_results_file_is_read_as_the_evaluation_collects_it(tmp_path):
    objects = [[*some(1, seed=k)[0], (1, 3, 3, 30, 30, k % 2)] for k in range(5)]
    data = write(tmp_path / "set", objects)
    module = CustomDataModule(
        root=str(data), input=InputContract(resize="stretch", size=(32, 32)), train_transform="none", batch_size=2,
        eval_batch_size=2, num_workers=0, seed=0, needs_train=False,
    )  # fmt: skip
    module.setup("validate")
    metric, generator = CocoAP(), torch.Generator().manual_seed(0)
    for batch in module.val_dataloader():
        found = []
        for _ in range(len(batch)):
            boxes = torch.rand(7, 4, generator=generator) * 40
            boxes[:, 2:] += boxes[:, :2]
            scores = torch.rand(7, generator=generator).sort(descending=True).values
            found.append(Detections(scores, torch.randint(0, 3, (7,), generator=generator), boxes))
        metric.update(found, batch)
    evaluation = metric.evaluation()
    rows = evaluation.coco_results(module.label_map)
    read = collected(rows, module.read().splits["val"], module.label_map, Path("r.json"))
    for mine, theirs in zip(read[:7], evaluation.data[:7], strict=True):
        assert np.array_equal(mine, theirs)


def test_the_files_of_the_page_are_packaged():
    """Hatch packs every file of the packages; what the page includes must lie in them."""
    folder = Path(__import__("zoo.report.page").__file__).parent / "report"
    assert {"report.html.jinja", "report.css", "report.js"} <= {path.name for path in folder.iterdir()}
