"""CSV headers, YOLO layouts, and folders that may be two formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sets import PICTURES, coco_content, module, write_coco, write_image, write_voc, write_yolo

from datamodules.formats.csv_columns import columns_of
from datamodules.formats.detect import FORMATS, READERS, detect, evidence, read


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    for image in ("a.png", "b.png"):
        write_image(root / "images" / image, (40, 30))
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root


@pytest.mark.parametrize("text", [
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cat,1,2,11,22\nb.png,40,30,dog,0,0,5,6\n",
    "FileName;Width;Height;Class;XMin;YMin;XMax;YMax\na.png;40;30;cat;1;2;11;22\nb.png;40;30;dog;0;0;5;6\n",
    "/content/images/a.png,1,2,11,22,cat\n/content/images/b.png,0,0,5,6,dog\n",
    '"image","xmin","ymin","xmax","ymax","label"\n"a.png",1,2,11,22,"cat"\n"b.png",0,0,5,6,"dog"\n',
    "image_path\tx\ty\tw\th\tclass_name\nimages/a.png\t1\t2\t10\t20\tcat\nimages/b.png\t0\t0\t5\t6\tdog\n",
    "filename,cell_type,xmin,xmax,ymin,ymax\na.png,cat,1,11,2,22\nb.png,dog,0,5,0,6\n",
    "Image Name,Label,X1,Y1,X2,Y2,Comment\na.png,cat,1,2,11,22,x\nb.png,dog,0,0,5,6,3\n",
    "image,label,xmin,ymin,xmax,ymax\na.png,cat,0.025,0.0666666666666667,0.275,0.7333333333333333\n"
    "b.png,dog,0,0,0.125,0.2\n",
])  # fmt: skip
def test_tables_read_alike(tmp_path, text):
    source = read(table(tmp_path, text))
    index = source.splits["train"]
    assert (source.format, source.classes) == ("csv", {0: "cat", 1: "dog"})
    assert index.boxes_xywh.tolist() == [pytest.approx([1, 2, 10, 20]), pytest.approx([0, 0, 5, 6])]
    assert index.source_ids.tolist() == [0, 1]
    assert [f.kind for f in source.faults] == (["unknown_column"] if "Comment" in text else [])


def test_table_of_two_unnamed_word_columns_is_refused_with_its_columns(tmp_path):
    root = table(tmp_path, "filename,foo,bar,xmin,ymin,xmax,ymax\na.png,cat,red,1,2,3,4\n")
    with pytest.raises(
        ValueError, match=r"columns are filename, foo, bar, xmin.*lacks a column of classes \(class"
    ):
        read(root)
    assert columns_of(["a", "b"], ["1", "2"]) == ""


def test_table_rows_without_box_class_or_image(tmp_path):
    root = table(
        tmp_path, "images/a.png,,,,,\nimages/b.png,1,2,3,x,cat\nimages/b.png,1,2,3,4,\n,1,2,3,4,cat\n"
    )
    source = read(root, "csv")
    assert (len(source.splits["train"]), source.splits["train"].num_objects) == (2, 0)
    assert sorted(f.kind for f in source.faults) == ["invalid_box", "invalid_row", "unlabelled"]


def test_whole_numbers_are_pixels_even_if_they_are_0_and_1(tmp_path):
    source = read(table(tmp_path, "images/a.png,0,0,1,1,cat\nimages/b.png,,,,,\n"))
    assert source.splits["train"].boxes_xywh.tolist() == [[0, 0, 1, 1]]


def test_retinanet_class_table_and_splits_by_name(tmp_path):
    for split in ("train", "val"):
        table(tmp_path, "images/a.png,1,2,11,22,cat\nimages/b.png,0,0,5,6,dog\n", f"{split}.csv")
    (tmp_path / "classes.csv").write_text("dog,0\ncat,3\n")
    source = read(tmp_path)
    assert source.classes == {0: "dog", 3: "cat"}
    assert {s: i.num_objects for s, i in source.splits.items()} == {"train": 2, "val": 2}


def test_split_column_and_unlisted_images(tmp_path):
    root = table(tmp_path, "filename,class,xmin,ymin,xmax,ymax,split\na.png,cat,1,2,3,4,valid\n")
    source = read(root)
    assert list(source.splits) == ["val"]
    assert [(f.kind, "images/b.png" in f.message) for f in source.faults] == [("unlisted_image", True)]


def yolo(root: Path, **files: str) -> Path:
    """The layout of `write_yolo`, with other files at the top."""
    write_yolo(root)
    (root / "data.yaml").unlink()
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


NAMES = "names: [cat, dog]\n"


@pytest.mark.parametrize("text", [
    "train: images/train\nval: images/val\n",
    "path: .\ntrain: [images/train]\nval:\n- images/val\n",
    "train: /content/drive/set/images/train\nval: ../images/val\n",
    "path: /kaggle/working\ntrain: train_list.txt\nval: val_list.txt\n",
])  # fmt: skip
def test_yolo_split_is_a_folder_a_list_or_a_file(tmp_path, text):
    lists = {f"{s}_list__txt": "".join(f"./images/{s}/{i}.jpg\n" for i in range(3)) for s in ("train", "val")}
    root = yolo(tmp_path / "set", data__yaml=text + NAMES, **(lists if "list.txt" in text else {}))
    source = read(root)
    assert {s: (len(i), i.num_objects) for s, i in source.splits.items()} == {"train": (3, 3), "val": (3, 3)}
    assert {f.kind for f in source.faults} <= {"split_path"}
    assert bool(source.faults) == ("/content" in text)


def test_yolo_nested_folders_and_a_listed_image_that_is_gone(tmp_path):
    root = yolo(tmp_path / "set", data__yaml="train: images\nval: val.txt\n" + NAMES, val__txt="gone/x.jpg\n")
    source = read(root)
    assert (len(source.splits["train"]), source.splits["train"].num_objects) == (6, 6)
    assert [f.kind for f in source.splits["val"].faults] == ["missing_image"]


def test_yolo_one_absent_folder_of_several_is_told(tmp_path):
    root = yolo(tmp_path / "set", data__yaml="train: [images/train, images/extra]\nval: images/val\n" + NAMES)
    source = read(root)
    assert len(source.splits["train"]) == 3
    assert [(f.kind, "images/extra does not exist" in f.message) for f in source.faults] == [
        ("missing_split", True)
    ]


def test_darknet(tmp_path):
    for split in ("train", "valid"):
        for i, (size, objects) in enumerate(PICTURES):
            write_image(tmp_path / f"obj_{split}_data/{i}.jpg", size)
            (tmp_path / f"obj_{split}_data/{i}.txt").write_text("1 0.5 0.5 0.5 0.5\n" * len(objects[:1]))
        lines = "".join(f"data/obj_{split}_data/{i}.jpg\n" for i in range(3))
        (tmp_path / f"{split}.txt").write_text(lines)
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    source = read(tmp_path)
    assert (source.format, source.classes) == ("yolo", {0: "cat", 1: "dog"})
    assert {s: (len(i), i.num_objects) for s, i in source.splits.items()} == {"train": (3, 2), "val": (3, 2)}


def test_darknet_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / split / "0.jpg", (20, 10))
        (tmp_path / split / "0.txt").write_text("0 0.5 0.5 1 1\n")
        (tmp_path / split / "_darknet.labels").write_text("cat\n")
    source = read(tmp_path)
    assert source.classes == {0: "cat"}
    assert {s: i.boxes_xywh.tolist() for s, i in source.splits.items()} == {
        "train": [[0, 0, 20, 10]],
        "val": [[0, 0, 20, 10]],
    }


def test_yolo_polygon_and_turned_box_keep_their_outline(tmp_path):
    root = write_yolo(tmp_path / "set", splits=("train",))
    (root / "labels/train/0.txt").write_text(
        "0 0.5 0.5 1 0.5 1 1\n1 0.5 0 1 0.5 0.5 1 0 0.5\n1 0.5 0.5 0.5 0.5\n"
    )
    index = read(root).splits["train"]  # the image is 40x30
    assert index.objects(0).boxes_xywh.tolist() == [[20, 15, 20, 15], [0, 0, 40, 30], [10, 7.5, 20, 15]]
    outlines = [s and s.to_coco() for s in index.segmentations(0)]
    assert outlines == [[[20, 15, 40, 15, 40, 30]], [[20, 0, 40, 15, 20, 30, 0, 15]], None]
    assert [(f.kind, f.message[:8]) for f in index.faults] == [("polygon", "2 x row ")]


def test_images_alone_are_no_data_set(tmp_path):
    write_image(tmp_path / "images/train/a.jpg", (20, 10))
    with pytest.raises(ValueError, match="It has images and no annotation file that can be read"):
        read(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="It has masks and no boxes"):
        read(tmp_path)


def test_label_studios_yolo_export(tmp_path):
    root = yolo(tmp_path / "set", classes__txt="cat\ndog\n")
    notes = {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {"year": 2024}}
    (root / "notes.json").write_text(json.dumps(notes))
    source = read(root)
    assert (source.format, source.classes) == ("yolo", {0: "cat", 1: "dog"})
    assert {s: i.num_objects for s, i in source.splits.items()} == {"train": 3, "val": 3}


def test_captions_beside_images_are_no_labels(tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", (20, 20))
        (tmp_path / f"{i}.txt").write_text("a photograph of a cat")
    with pytest.raises(ValueError, match="It has images and no annotation file that can be read"):
        read(tmp_path)


def test_loose_labels_of_two_tools_are_ambiguous(tmp_path):
    write_image(tmp_path / "a.png", (20, 20))
    (tmp_path / "a.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.png"}))
    with pytest.raises(ValueError, match=r"labelme \(a.json\) and yolo \(a.txt\)"):
        read(tmp_path)


def test_two_layouts_are_ambiguous_until_one_is_named(tmp_path):
    root = write_coco(tmp_path / "set")
    write_yolo(root)
    with pytest.raises(
        ValueError, match=r"may be coco \(annotations/instances_train.json and 1 more\) and yolo"
    ):
        read(root)
    assert read(root, "coco").splits["train"].areas.tolist() == [7.5, 7.5, 7.5]
    assert read(root, "yolo").format == "yolo"
    assert len(module(root, format="yolo").read().splits["train"]) == 3


def test_loose_files_beside_a_layout_are_leftovers_and_told(tmp_path):
    root = write_voc(tmp_path / "set")
    table(root, "filename,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,3,4\n")
    assert detect(root) == "voc"
    [note] = [f for f in read(root).faults if f.kind == "other_format"]
    assert (note.severity, note.file) == ("note", "labels.csv")
    assert "this is csv and is not read" in note.message


def test_two_loose_formats_are_ambiguous(tmp_path):
    table(tmp_path, "filename,class,xmin,ymin,xmax,ymax\na.png,cat,1,2,3,4\n")
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.png"}))
    with pytest.raises(ValueError, match=r"labelme \(a.json\) and csv \(labels.csv\).*--format labelme"):
        read(tmp_path)


def test_content_tells_and_not_the_name(tmp_path):
    (tmp_path / "annotations").mkdir()
    for i, (size, _) in enumerate(PICTURES):
        write_image(tmp_path / "images" / f"{i}.jpg", size)
    (tmp_path / "annotations" / "labelme.json").write_text(json.dumps(coco_content()))
    (tmp_path / "annotations.xml").write_text("<project><item/></project>")
    (tmp_path / "prices.csv").write_text("x,y\n1,2\n")
    assert [e.format for e in evidence(tmp_path)] == ["coco"]


def test_the_names_that_are_accepted_are_those_of_the_readers():
    assert sorted(FORMATS) == sorted(reader.name for reader in READERS)


def write_table(root: Path) -> Path:
    write_image(root / "images" / "0.jpg", (30, 20))
    (root / "boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n0.jpg,cat,1,1,9,9\n")
    return root


@pytest.mark.parametrize("make", [write_yolo, write_table])
def test_a_link_to_a_folder_above_gives_no_image_twice(make, tmp_path):
    root = make(tmp_path / "set")
    before = [sorted(index.files) for index in read(root).splits.values()]
    folder = (root / read(root).splits["train"].files[0]).parent
    (folder / "self").symlink_to(".")
    (folder / "up").symlink_to(root)
    assert [sorted(index.files) for index in read(root).splits.values()] == before


def test_a_link_beside_is_followed(tmp_path):
    root = write_yolo(tmp_path / "set")
    elsewhere = tmp_path / "elsewhere"
    (root / "images/train").rename(elsewhere)
    (root / "images/train").symlink_to(elsewhere)
    assert len(read(root).splits["train"]) == 3


def test_yolo_names_by_word_are_refused_with_their_file(tmp_path):
    root = write_yolo(tmp_path / "set")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {cat: 0}\n")
    with pytest.raises(ValueError, match=r"data\.yaml: names has the keys"):
        read(root)
