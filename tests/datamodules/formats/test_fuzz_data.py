"""Every reader of annotations on damaged files: faults or one line of error, never a crash, never a long wait."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import pytest
import tool_samples as samples
from panoptic_case import panoptic_folder
from tiny_sets import write_coco, write_image, write_roboflow, write_voc, write_yolo

from datamodules.formats.detect import read
from datamodules.shards.reader import open_shards
from datamodules.shards.writer import SMALLEST_SHARD, pack

NAMES = ("a.png", "b.png", "c.png")


def files(root: Path, **content: Any) -> Path:
    """Three images and the files, `__` for a slash in their names."""
    for number, name in enumerate(NAMES):
        write_image(root / name, (40, 30), number)
    for name, value in content.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value.encode() if isinstance(value, str) else mutations.as_json(value))
    return root


def plain(**content: Any) -> Callable[[Path], Path]:
    return lambda root: files(root, **content)


def darknet(root: Path) -> Path:
    return files(
        root, obj_DOT_data="classes = 2\ntrain = train.txt\nnames = obj.names\n", obj_DOT_names="cat\ndog\n",
        train_DOT_txt="a.png\nb.png\n", a_DOT_txt="0 .5 .5 .2 .2\n", b_DOT_txt="1 .5 .5 .2 .2\n",
    )  # fmt: skip


def beside(folder: str, pictures: str, text: str) -> Callable[[Path], Path]:
    """A text with labels beside the folder of its image."""

    def make(root: Path) -> Path:
        write_image(root / pictures / "a.png", (40, 30))
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "a.txt").write_text(text)
        return root

    return make


def mot(root: Path) -> Path:
    write_image(root / "train/S/img1/000001.jpg", (40, 30))
    (root / "train/S/gt").mkdir()
    (root / "train/S/gt/gt.txt").write_text(samples.MOT)
    (root / "train/S/seqinfo.ini").write_text(
        "[Sequence]\nname=S\nimDir=img1\nseqLength=1\nimWidth=40\nimHeight=30\n"
    )
    return root


def supervisely(root: Path) -> Path:
    write_image(root / "ds/img/a.png", (40, 30))
    (root / "ds/ann").mkdir()
    (root / "ds/ann/a.png.json").write_bytes(mutations.as_json(samples.SUPERVISELY))
    meta = {"classes": [{"title": "cat", "shape": "rectangle", "color": "#ff0000"}], "tags": []}
    (root / "meta.json").write_bytes(mutations.as_json(meta))
    return root


def lines(value: Any) -> str:
    return mutations.as_json(value).decode() + "\n"


CREATE_TABLE = "image,x1,y1,x2,y2,label\na.png,1,2,9,9,cat\nb.png,2,2,9,9,dog\n"
SETS: dict[str, Callable[[Path], Path]] = {
    "coco": write_coco,
    "roboflow": write_roboflow,
    "coco_panoptic": panoptic_folder,
    "yolo": write_yolo,
    "darknet": darknet,
    "voc": write_voc,
    "oriented": beside("labelTxt", "images", "1 2 9 2 9 8 1 8 cat 0\n3 4 9 4 9 9 3 9 dog 1\n"),
    "csv": plain(boxes_DOT_csv=samples.TABLE),
    "csv by corners": plain(train_DOT_csv=CREATE_TABLE),
    "labelme": plain(a_DOT_json=samples.LABELME),
    "labelme xml": plain(a_DOT_xml=samples.OLD_LABELME),
    "cvat": plain(annotations_DOT_xml=samples.CVAT),
    "label_studio": plain(export_DOT_json=samples.STUDIO),
    "open_images": plain(train__x_DOT_csv=samples.OPEN),
    "vott": plain(export_DOT_json=samples.VOTT),
    "createml": plain(_annotations_DOT_createml_DOT_json=samples.CREATEML),
    "via": plain(via_DOT_json=samples.VIA),
    "via 3": plain(via_DOT_json=samples.VIA_3),
    "via table": plain(via_DOT_csv=samples.VIA_TABLE),
    "sagemaker": plain(output_DOT_manifest=lines(samples.MANIFEST)),
    "imagefolder": plain(metadata_DOT_jsonl=lines(samples.HUB)),
    "supervisely": supervisely,
    "crowdhuman": plain(annotation_train_DOT_odgt=lines(samples.ODGT)),
    "bdd100k": plain(labels_DOT_json=samples.BDD),
    "box_list": plain(train_DOT_txt=samples.BOX_LIST, classes_DOT_txt="cat\ndog\n"),
    "kitti": beside("training/label_2", "training/image_2", samples.KITTI),
    "visdrone": beside("train/annotations", "train/images", samples.VISDRONE),
    "wider_face": plain(wider_face_split__wider_face_train_bbx_gt_DOT_txt=samples.WIDER),
    "mot": mot,
    "oidv4": beside("train/Human face/Label", "train/Human face", samples.OID),
}
PICTURES = (".png", ".jpg")


def damage(root: Path, whole: dict[Path, bytes], draw: random.Random) -> list[Path]:
    """Damages one file, seldom two; returns which, so that they can be mended."""
    chosen = draw.sample(list(whole), draw.choice((1, 1, 1, 2)) if len(whole) > 1 else 1)
    for file in chosen:
        content = whole[file]
        if file.suffix == ".json" and draw.random() < 0.7:
            file.write_bytes(mutations.damaged_json(mutations.json.loads(content), draw))
        else:
            file.write_bytes(mutations.damaged_bytes(content, draw))
    return chosen


def fuzz(make: Callable[[Path], Path], root: Path, inputs: int, slow: bool = False) -> None:
    make(root)
    whole = {f: f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file() and f.suffix not in PICTURES}
    assert whole

    def one(draw: random.Random) -> None:
        damaged = damage(root, whole, draw)
        try:
            source = read(root)
            for fault in source.faults:
                mutations.check_words(fault.message)
            for index in source.splits.values():
                for row in range(len(index)):
                    index.objects(row)
            source.label_map()
        finally:
            for file in damaged:
                file.write_bytes(whole[file])

    mutations.run(one, inputs, slow)


@pytest.mark.parametrize("name", SETS)
def test_damaged_annotations_are_told(name, tmp_path):
    fuzz(SETS[name], tmp_path / "set", inputs=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_damaged_annotations_are_told_for_a_long_time(name, tmp_path):
    fuzz(SETS[name], tmp_path / "set", inputs=0, slow=True)
    shutil.rmtree(tmp_path)


# run by itself: what a damaged Arrow file does to its reader may be the end of the process
READ_SHARDS = """
import random, sys
from pathlib import Path
import mutations, test_fuzz_data

mutations.run(test_fuzz_data.shards(Path(sys.argv[1])), int(sys.argv[2]), slow=sys.argv[3] == "slow")
"""


def shards(root: Path) -> Callable[[random.Random], None]:
    """Opens damaged shards and takes everything out of them."""
    whole = {f: f.read_bytes() for f in sorted(root.iterdir()) if f.suffix in (".json", ".arrow")}

    def one(draw: random.Random) -> None:
        damaged = draw.choice(list(whole))
        content = whole[damaged]
        if damaged.suffix == ".json":
            content = mutations.damaged_json(mutations.json.loads(content), draw)
        else:
            for _ in range(draw.choice((1, 2, 8))):  # of the same length: another is told by its size alone
                at, new = (
                    draw.randrange(len(content)),
                    draw.choice((b"\xff", b"\0", b"\x7f", bytes([draw.randrange(256)]))),
                )
                new *= draw.choice((1, 1, 4, 8, 64))
                content = (content[:at] + new + content[at + len(new) :])[: len(content)]
        damaged.write_bytes(content)
        try:
            for index in open_shards(str(root)).splits.values():
                index.take(range(len(index))).files.tolist()
                for row in range(len(index)):
                    index.objects(row)
                    index.segmentations(row)
                    index.images.read(index.files[row])
        finally:
            damaged.write_bytes(whole[damaged])

    return one


def fuzz_shards(folder: Path, inputs: int, slow: str) -> None:
    pack(read(write_outlined(folder / "plain")), folder / "shards", SMALLEST_SHARD)
    here, tests = Path(__file__).parent, Path(__file__).parents[2]
    places = [str(place) for place in (tests.parent, tests / "support", here)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", READ_SHARDS, str(folder / "shards"), str(inputs), slow]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]


def write_outlined(root: Path) -> Path:
    """COCO with polygons and a run length, so that every column of an index is there."""
    write_coco(root)
    file = root / "annotations" / "instances_train.json"
    content = mutations.json.loads(file.read_bytes())
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    content["annotations"][1]["segmentation"] = {"size": [30, 40], "counts": [100, 50, 1050]}
    content["annotations"][1]["iscrowd"] = 1
    file.write_bytes(mutations.as_json(content))
    return root


def test_damaged_shards_are_told(tmp_path):
    fuzz_shards(tmp_path, 300, "fast")


@pytest.mark.slow
def test_damaged_shards_are_told_for_a_long_time(tmp_path):
    fuzz_shards(tmp_path, 0, "slow")


@pytest.mark.parametrize("name", SETS)
def test_the_whole_files_are_read(name, tmp_path):
    """The fuzz would hold for files that no reader wants, too."""
    source = read(SETS[name](tmp_path / "set"))
    assert source.format == name.split()[0].replace("roboflow", "roboflow_coco").replace(
        "darknet", "yolo"
    ).replace("vott", "vott_json")
    assert sum(len(index) for index in source.splits.values()) > 0


@pytest.mark.parametrize(
    "where", ["images.id", "annotations.image_id", "segments.id", "segments.category_id", "categories.id"]
)
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_a_number_of_a_panoptic_file_that_is_no_id_is_told(where, number, tmp_path):
    panoptic_folder(tmp_path)
    file = tmp_path / "annotations" / "panoptic_train2017.json"
    content = mutations.json.loads(file.read_bytes())
    content["segments"] = content["annotations"][0]["segments_info"]
    owner, key = where.split(".")
    content[owner][0][key] = number
    file.write_bytes(mutations.as_json(content))
    with pytest.raises(
        ValueError, match=r"panoptic_train2017.json is no COCO panoptic file: .* `int`"
    ) as told:
        read(tmp_path)
    assert f"{owner.replace('segments', 'annotations')}[" in str(told.value)
