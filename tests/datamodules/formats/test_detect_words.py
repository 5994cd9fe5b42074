"""What is said of a folder that cannot be read, or not as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sets import write_coco, write_image, write_voc, write_yolo

from datamodules.doctor import examine
from datamodules.doctor.fix import mend
from datamodules.formats.detect import read
from datamodules.shards.writer import SMALLEST_SHARD, pack


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_an_archive_is_to_be_unpacked_first(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=f"{name} is an archive; unpack it first and give the folder"):
        read(tmp_path / name)


def test_folders_that_are_data_sets_are_named(tmp_path):
    write_coco(tmp_path / "all/coco")
    write_yolo(tmp_path / "all/yolo")
    (tmp_path / "all/empty").mkdir()
    with pytest.raises(ValueError, match=r"give one of: \S+all/coco \(coco\), \S+all/yolo \(yolo\)$"):
        read(tmp_path / "all")
    write_voc(tmp_path / "all/voc")  # VOC alone is looked for a folder down
    with pytest.raises(ValueError, match=r"\S+all/yolo \(yolo\)"):
        read(tmp_path / "all")


@pytest.mark.parametrize("format", ["auto", "shards"])
def test_shards_without_their_manifest(tmp_path, format):
    folder = tmp_path / "shards"
    pack(read(write_coco(tmp_path / "coco")), folder, SMALLEST_SHARD)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"shards has shards but manifest\.json is missing"):
        read(folder, format)


def test_faults_of_voc_name_the_place_in_the_xml(tmp_path):
    root = write_voc(tmp_path / "voc")
    for file in sorted((root / "Annotations").glob("*.xml")):
        text = file.read_text()
        box = "<xmin>5</xmin><ymin>5</ymin><xmax>x</xmax><ymax>9</ymax>"
        bad = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
        file.write_text(text.replace("</annotation>", f"{bad}</annotation>"))
    faults = [f for f in read(root).faults if f.kind == "invalid_box"]
    assert len(faults) > 1
    for fault in faults:
        xml = root / "Annotations" / f"{Path(fault.file).stem}.xml"
        place = xml.read_text().count("<object>")
        assert fault.id == f"object {place}"
        assert f"(object {place})" in str(fault)


def test_ids_that_no_file_has_are_not_told(tmp_path):
    root = write_voc(tmp_path / "voc")
    for file in sorted((root / "Annotations").glob("*.xml")):
        head, mark, rest = file.read_text().rpartition("<object>")
        file.write_text(head + 2 * (mark + rest.replace("</annotation>", "")) + "</annotation>")
    faults = [f for f in examine(root, quick=True).faults if f.kind == "duplicate_object"]
    assert faults
    for fault in faults:
        assert fault.id is None
        assert fault.box is not None
        assert "repeats that of an earlier object, of the same class" in fault.message


def test_a_list_of_names_that_is_too_short_is_one_fault(tmp_path):
    for split in ("train", "val"):
        for i in range(8):
            write_image(tmp_path / f"images/{split}/{i}.png", (40, 30), seed=8 * (split == "val") + i)
            label = tmp_path / f"labels/{split}/{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{i} 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    source = read(tmp_path)
    (fault,) = [f for f in source.faults if f.severity == "error"]
    assert (fault.kind, fault.file) == ("short_class_list", "data.yaml")
    assert (
        "class ids up to 7 but there are only 2 names ('cat', 'dog'); 12 objects are left out"
        in fault.message
    )
    with pytest.raises(ValueError, match="short_class_list"):
        mend(examine(tmp_path, workers=0), tmp_path.parent / "fixed")


def test_a_folder_of_no_layout_is_refused_without_the_weight_of_torch(tmp_path):
    write_image(tmp_path / "set/a.jpg", (20, 10))
    script = (
        "import sys\nfrom zoo.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print(sorted({'torch', 'torchvision', 'lightning', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "data", "check", str(tmp_path / "set")], capture_output=True, text=True
    )
    first, second, *rest = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert "has no known layout. It has images and no annotation file that can be read." in first
    assert second == "Layouts that are understood:"
    assert [line.split("  ")[1] for line in rest[:3]] == ["COCO json", "COCO panoptic", "Objects365 v2"]
