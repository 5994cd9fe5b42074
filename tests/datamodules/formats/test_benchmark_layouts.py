"""KITTI, VisDrone, WIDER FACE and MOT as they are published, small and self-made."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sets import write_image, write_yolo

from datamodules.formats.detect import detect, read
from datamodules.index.source import Source


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def objects(source: Source, split: str, crowd: bool = False) -> list[tuple[str, list[float]]]:
    index = source.splits[split]
    rows = zip(index.source_ids.tolist(), index.boxes_xywh.tolist(), index.crowd.tolist(), strict=True)
    return [(source.classes[i], box) for i, box, own in rows if own == crowd]


def counts(source: Source) -> dict[str, tuple[int, int]]:
    return {s: (len(i), int((~i.crowd).sum())) for s, i in source.splits.items()}


def faults(source: Source) -> list[tuple[str, str]]:
    return [(f.severity, f.kind) for f in source.faults]


SPACE = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"


def kitti(root: Path, base: str = "training", labels: str = "label_2", pictures: str = "image_2") -> Path:
    rows = {
        "000000": f"Pedestrian 0.00 0 -0.20 12.40 13.00 20.73 27.92 {SPACE}\n",
        "000001": f"Truck 0.00 0 -1.57 9.29 6.75 29.77 17.51 {SPACE}\nCar 0.50 0 1.85 7.63 1.54 23.67 8.12 {SPACE}\n"
        "DontCare -1 -1 -10 3.59 10.85 8.41 19.43 -1 -1 -1 -1000 -1000 -1000 -10\n",
        "000002": "",
    }  # fmt: skip
    for number, (stem, text) in enumerate(rows.items()):
        write_image(root / base / pictures / f"{stem}.png", (40, 30), number)
        write(root / base / labels / f"{stem}.txt", text)
    return root


def test_kitti(tmp_path):
    root = kitti(tmp_path)
    write_image(root / "testing/image_2/000000.png", (40, 30), 9)  # of the same name, and without labels
    write_image(root / "training/image_3/000000.png", (40, 30), 9)  # of the other camera
    source = read(root)
    assert (source.format, source.classes) == ("kitti", {0: "Car", 1: "Truck", 2: "Pedestrian"})
    assert counts(source) == {"train": (3, 3)}
    assert objects(source, "train") == [
        ("Pedestrian", pytest.approx([12.4, 13, 8.33, 14.92])),
        ("Truck", pytest.approx([9.29, 6.75, 20.48, 10.76])),
        ("Car", pytest.approx([7.63, 1.54, 16.04, 6.58])),
    ]
    region = pytest.approx([3.59, 10.85, 4.82, 8.58])
    assert objects(source, "train", crowd=True) == [(name, region) for name in ("Car", "Truck", "Pedestrian")]
    assert source.splits["train"].files[0] == "training/image_2/000000.png"
    assert ("note", "ignore_region") in faults(source)


def test_kitti_labels_never_go_to_test_images_of_their_name(tmp_path):
    root = kitti(tmp_path)
    (root / "training/image_2/000000.png").rename(root / "000000.png")
    (root / "testing/image_2").mkdir(parents=True)
    (root / "000000.png").rename(root / "testing/image_2/000000.png")
    assert counts(read(root)) == {"train": (2, 2)}
    assert ("error", "missing_image") in faults(read(root))


def test_kitti_with_lists_of_splits(tmp_path):
    root = kitti(tmp_path)
    write(root / "ImageSets/train.txt", "000000\n000002\n")
    write(root / "ImageSets/val.txt", "000001\n")
    write(root / "ImageSets/trainval.txt", "000000\n000001\n000002\n")
    assert counts(read(root)) == {"train": (2, 1), "val": (1, 2)}


@pytest.mark.parametrize(
    ("labels", "pictures"), [("labels", "images"), ("label_2", "image_2"), ("labels", "labels")]
)
def test_kitti_of_other_tools_per_split(tmp_path, labels, pictures):
    for split in ("train", "val"):
        kitti(tmp_path, split, labels, pictures)
    source = read(tmp_path)
    assert source.format == "kitti"
    assert counts(source) == {"train": (3, 3), "val": (3, 3)}


DRONE = {
    "0000001_1": "10,4,8,6,1,4,0,0\n0,0,5,5,0,0,0,0\n",
    "0000002_1": "1,2,3,4,1,1,0,2,\n20,10,9,7,0,11,0,0\n12,12,6,6,0,10,1,1\n",
    "0000003_1": "",
}
DRONE_CLASSES = ("pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus",
                 "motor")  # fmt: skip


def visdrone(root: Path, folder: str) -> Path:
    for number, (stem, text) in enumerate(DRONE.items()):
        write_image(root / folder / "images" / f"{stem}.jpg", (40, 30), number)
        write(root / folder / "annotations" / f"{stem}.txt", text)
    return root


def test_visdrone(tmp_path):
    for part in ("train", "val", "test-dev"):
        visdrone(tmp_path, f"VisDrone2019-DET-{part}")
    source = read(tmp_path)
    assert source.format == "visdrone"
    assert source.classes == dict(enumerate(DRONE_CLASSES, start=1))
    assert counts(source) == {"train": (3, 2), "val": (3, 2), "test": (3, 2)}
    assert objects(source, "test") == [("car", [10, 4, 8, 6]), ("pedestrian", [1, 2, 3, 4])]
    crowds = objects(source, "train", crowd=True)
    assert crowds == [*((name, [0, 0, 5, 5]) for name in DRONE_CLASSES), ("motor", [12, 12, 6, 6])]
    assert {kind for severity, kind in faults(source) if severity == "note"} == {"others", "ignore_region"}


def test_visdrone_video(tmp_path):
    write(
        tmp_path / "VID-train/annotations/uav1.txt",
        "1,0,10,4,8,6,1,4,0,0\n3,0,11,4,8,6,1,4,0,0\n3,1,0,0,2,2,0,0,0,0\n",
    )
    for frame in (1, 2, 3):
        write_image(tmp_path / f"VID-train/sequences/uav1/{frame:07d}.jpg", (40, 30), frame)
    source = read(tmp_path)
    assert counts(source) == {"train": (3, 2)}
    assert source.splits["train"].objects(2).boxes_xywh[0].tolist() == [11, 4, 8, 6]


def test_wider_face(tmp_path):
    text = (
        "0--Parade/0_Parade_1.jpg\n2\n4 5 10 12 0 0 0 0 0 0 \n20 3 6 7 2 0 0 1 2 0 \n"
        "0--Parade/0_Parade_2.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"
        "1--Handshaking/1_H_1.jpg\n1\n1 2 3 4 0 0 0 0 0 0 \n"
    )
    for split in ("train", "val"):
        write(tmp_path / f"wider_face_split/wider_face_{split}_bbx_gt.txt", text)
        for number, name in enumerate(
            ("0--Parade/0_Parade_1", "0--Parade/0_Parade_2", "1--Handshaking/1_H_1")
        ):
            write_image(tmp_path / f"WIDER_{split}/images/{name}.jpg", (40, 30), number)
    write(tmp_path / "wider_face_split/wider_face_test_filelist.txt", "0--Parade/x.jpg\n")
    source = read(tmp_path)
    assert (source.format, source.classes) == ("wider_face", {0: "face"})
    assert counts(source) == {"train": (3, 2), "val": (3, 2)}
    assert objects(source, "val") == [("face", [4, 5, 10, 12]), ("face", [1, 2, 3, 4])]
    assert objects(source, "val", crowd=True) == [("face", [20, 3, 6, 7])]
    assert source.splits["val"].files[0] == "WIDER_val/images/0--Parade/0_Parade_1.jpg"
    assert source.faults == []


def test_wider_face_of_a_wrong_count(tmp_path):
    text = "0--Parade/a.jpg\n3\n4 5 10 12 0 0 0 0 0 0\n0--Parade/b.jpg\n1\nx 5 10 12 0 0 0 0 0 0\n"
    write(tmp_path / "wider_face_split/wider_face_train_bbx_gt.txt", text)
    for name in "ab":
        write_image(tmp_path / f"WIDER_train/images/0--Parade/{name}.jpg", (40, 30), ord(name))
    source = read(tmp_path)
    assert counts(source) == {"train": (2, 1)}
    assert faults(source) == [("error", "invalid_row"), ("warning", "face_count")]


TRUTH = (
    "1,1,11,6,10,12,1,1,1\n2,1,12,6,10,12,1,1,0.5\n"  # a pedestrian
    "1,2,21,3,6,7,0,8,1\n1,3,1,1,4,5,0,3,1\n"  # a distractor, a car
)


def mot(root: Path, sequence: str, truth: str | None = TRUTH) -> Path:
    base = root / sequence
    for frame in (1, 2, 3):
        write_image(base / f"img1/{frame:06d}.jpg", (40, 30), frame)
    write(
        base / "seqinfo.ini",
        "[Sequence]\nname=x\nimDir=img1\nframeRate=30\nseqLength=3\nimWidth=40\nimHeight=30\n",
    )
    write(base / "det/det.txt", "1,-1,5,5,5,5,0.9\n")
    if truth is not None:
        write(base / "gt/gt.txt", truth)
    return root


def test_mot17(tmp_path):
    for detector in ("DPM", "FRCNN", "SDP"):
        mot(tmp_path, f"train/MOT17-02-{detector}")
        mot(tmp_path, f"test/MOT17-01-{detector}", None)
    source = read(tmp_path)
    assert (source.format, source.classes) == ("mot", {0: "pedestrian"})
    assert counts(source) == {"train": (3, 2)}
    assert objects(source, "train") == [("pedestrian", [10, 5, 10, 12]), ("pedestrian", [11, 5, 10, 12])]
    assert objects(source, "train", crowd=True) == [("pedestrian", [20, 2, 6, 7])]
    assert {f.kind: (f.severity, f.message[:4]) for f in source.faults} == {
        "repeated_sequence": ("note", "2 x "), "not_considered": ("note", "1 x "), "no_truth": ("note", "3 x "),
    }  # fmt: skip


def test_mot15_and_a_frame_that_is_gone(tmp_path):
    root = mot(
        tmp_path,
        "train/KITTI-13",
        "1,1,11,6,10,12,1,-1,-1,-1\n7,1,11,6,10,12,1,-1,-1,-1\n1,2,2,2,3,3,0,4.5,2.5,0\n",
    )
    source = read(root)
    assert objects(source, "train") == [("pedestrian", [10, 5, 10, 12])]
    assert objects(source, "train", crowd=True) == [("pedestrian", [1, 1, 3, 3])]
    assert faults(source) == [("error", "missing_frame")]


def test_mot_frames_are_looked_for_below_the_set_only(tmp_path):
    root = mot(tmp_path / "set", "train/a")
    for elsewhere in ("/", "../../..", str(tmp_path)):
        write(root / "train/a/seqinfo.ini", f"imDir={elsewhere}\n")
        assert ("error", "missing_frame") in faults(read(root))


def test_mot_of_cvat_has_its_own_names(tmp_path):
    root = mot(tmp_path, ".", "1,1,11,6,10,12,1,2,1.0\n2,1,12,6,10,12,1,1,1.0\n")
    write(root / "gt/labels.txt", "cat\ndog\n")
    assert objects(read(root), "train") == [("dog", [10, 5, 10, 12]), ("cat", [11, 5, 10, 12])]


@pytest.mark.parametrize("make", [
    lambda root: kitti(root, "extra"),
    lambda root: visdrone(root, "extra"),
    lambda root: mot(root, "extra"),
    lambda root: write(root / "wider_face_train_bbx_gt.txt", "a/b.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n"),
])  # fmt: skip
def test_beside_yolo_they_are_left_over_and_told(tmp_path, make):
    root = write_yolo(tmp_path / "set")
    make(root)
    assert detect(root) == "yolo"
    assert "other_format" in {f.kind for f in read(root).faults}


@pytest.mark.parametrize(("make", "name"), [
    (lambda root: kitti(root, "extra"), "kitti"),
    (lambda root: visdrone(root, "extra"), "visdrone"),
    (lambda root: mot(root, "extra"), "mot"),
    (lambda root: write(root / "train.txt", "images/train/0.jpg 1,2,3,4,0\n"), "box_list"),
])  # fmt: skip
def test_beside_labels_of_yolo_without_data_yaml_neither_is_taken_in_silence(tmp_path, make, name):
    root = write_yolo(tmp_path / "set")
    (root / "data.yaml").unlink()
    make(root)
    with pytest.raises(ValueError, match=rf"may be {name} .* and yolo \(labels/train/0.txt\)"):
        read(root)


def test_rows_that_are_no_numbers_are_told_with_file_and_line(tmp_path):
    kitti(tmp_path / "kitti")
    write(tmp_path / "kitti/training/label_2/000002.txt", f"Car 0 0 0 1 2 x 4 {SPACE}\nCar 1\n")
    visdrone(tmp_path / "drone", "train")
    write(tmp_path / "drone/train/annotations/0000003_1.txt", "1,2,3\n1,2,3,4,1,99,0,0\n")
    mot(tmp_path / "mot", "train/a", TRUTH + "1,2\n1,1,nan,1,1,1,1,1,1\n")
    for name in ("kitti", "drone", "mot"):
        [fault] = [
            f
            for f in read(tmp_path / name, {"drone": "visdrone"}.get(name, name)).faults
            if f.severity == "error"
        ]
        assert (fault.kind, fault.message[:4]) == ("invalid_row", "2 x ")
        assert "line 2" in fault.message or "line 6" in fault.message
