"""Objects365: layouts on disk, the known faults of the published files, and the class list."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_sets import SQUARE, write_image

from datamodules.formats import objects365
from datamodules.formats.detect import detect
from datamodules.objects365 import Objects365DataModule

NAMES = list(objects365.class_names().values())
# file_name -> (width, height)
IMAGES = {
    "images/v1/patch0/objects365_v1_00000001.jpg": (40, 30),
    "images/v1/patch8/objects365_v1_00420917.jpg": (32, 48),
    "images/v2/patch16/objects365_v2_00900000.jpg": (40, 40),
}
LAYOUTS = {
    "as_the_json": lambda split, name: Path(split, name),
    "train_archives": lambda split, name: Path(split, *Path(name).parts[2:]),
    "images_once": lambda split, name: Path(split, *Path(name).parts[1:]),
    "flattened": lambda split, name: Path(split, Path(name).name),
    "ultralytics": lambda split, name: Path("images", split, Path(name).name),
}


def categories(order: int = 1) -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)][::order]


def content(images: dict[str, tuple[int, int]] = IMAGES, order: int = 1) -> dict[str, Any]:
    """One object an image, of the class whose id is the number of the image, and a crowd on the first."""
    listed = [
        {"id": i, "file_name": name, "width": size[0], "height": size[1]}
        for i, (name, size) in enumerate(images.items(), start=1)
    ]
    objects = [
        {"id": 100 + i["id"], "image_id": i["id"], "category_id": i["id"], "bbox": [1, 2, 10, 12],
         "area": 120, "iscrowd": 0}
        for i in listed
    ]  # fmt: skip
    objects.append({**objects[0], "id": 99, "category_id": 365, "iscrowd": 1})
    return {"images": listed, "annotations": objects, "categories": categories(order)}


def write(
    root: Path,
    layout: str = "as_the_json",
    splits: tuple[str, ...] = ("train", "val"),
    images: dict[str, tuple[int, int]] = IMAGES,
) -> Path:
    for number, split in enumerate(splits):
        (root / split).mkdir(parents=True)
        # v1's files are known to list their classes in different orders; nothing may depend on it
        text = json.dumps(content(images, -1 if number else 1))
        (root / split / f"zhiyuan_objv2_{split}.json").write_text(text)
        for name, size in images.items():
            write_image(root / LAYOUTS[layout](split, name), size)
    return root


def module(root: Path, **choices: Any) -> Objects365DataModule:
    return Objects365DataModule(
        root=str(root), labels=choices.pop("labels", "contiguous"), input=SQUARE, train_transform="none",
        batch_size=2, eval_batch_size=2, num_workers=0, seed=0, **choices,
    )  # fmt: skip


def kinds(faults: Any) -> list[tuple[str, str]]:
    return [(f.severity, f.kind) for f in faults]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    data = module(write(tmp_path, layout)).read()
    for split in ("train", "val"):
        index = data.splits[split]
        assert [index.path(row) for row in range(3)] == [
            tmp_path / LAYOUTS[layout](split, name) for name in IMAGES
        ]
        assert all(index.path(row).is_file() for row in range(3))
        assert index.num_objects == 4
    assert data.faults == ()


@pytest.mark.parametrize("place", ["annotations", ".", "train/zhiyuan_objv2_train"])
def test_the_json_is_found_where_tools_put_it(tmp_path: Path, place: str) -> None:
    root = write(tmp_path, splits=("train",))
    (root / place).mkdir(parents=True, exist_ok=True)
    name = "zhiyuan_objv2_train.json"
    (root / "train" / name).rename(root / place / name)
    assert len(module(root).read().splits["train"]) == 3


def test_the_layout_is_that_of_most_of_a_sample_and_no_image_is_looked_up_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"images/v1/patch{i % 4}/objects365_v1_{i:08}.jpg": (20, 20) for i in range(400)}
    root = write(tmp_path, "train_archives", ("train",), images)
    looked: list[Path] = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda self: looked.append(self) or is_file(self))
    index = module(root).read().splits["train"]
    assert len(index) == 400
    assert len({p.name for p in looked if p.suffix == ".jpg"}) <= 70, "a sample"


def test_names_are_matched_by_id_in_any_order_of_the_categories(tmp_path: Path) -> None:
    data = module(write(tmp_path))
    assert len(data.label_map.names) == data.label_map.num_classes == 365
    assert (data.label_map.names[0], data.label_map.source_ids[0]) == ("Person", 1)
    assert (data.label_map.names[37], data.label_map.head_of_source[38]) == ("Moniter/TV", 37)
    assert (data.label_map.names[364], data.label_map.source_ids[364]) == ("Table Tennis ", 365)
    for split in ("train", "val"):
        assert data.read().splits[split].source_ids.tolist() == [1, 365, 2, 3]


def test_labels_as_ids_make_a_head_of_366_rows(tmp_path: Path) -> None:
    label_map = module(write(tmp_path), labels="category_id").label_map
    assert label_map.num_classes == 366
    assert label_map.head_of_source[1] == 1
    assert label_map.name_of_head[365] == "Table Tennis "
    assert 0 not in label_map.name_of_head


def test_crowds_stay_crowds(tmp_path: Path) -> None:
    objects = module(write(tmp_path)).read().splits["train"].objects(0)
    assert sorted(zip(objects.source_ids.tolist(), objects.crowd.tolist(), strict=True)) == [
        (1, False),
        (365, True),
    ]


def test_images_known_to_be_missing_or_broken_are_left_out_by_name(tmp_path: Path) -> None:
    known = ["images/v2/patch16/objects365_v2_00908726.jpg", "images/v1/patch15/objects365_v1_00712985.jpg"]
    root = write(tmp_path, splits=("train",), images={**IMAGES, **dict.fromkeys(known, (20, 20))})
    (root / "train" / known[0]).unlink()
    data = module(root)
    data.setup("fit")  # expected, so nothing to refuse
    index = data.read().splits["train"]
    assert index.image_ids.tolist() == [1, 2, 3]
    assert [(f.severity, f.kind, f.file) for f in index.faults] == [
        ("warning", "known_missing", known[0]),
        ("warning", "known_broken", known[1]),
    ]


def test_the_known_files_are_the_published_ones() -> None:
    assert (len(objects365.MISSING), len(objects365.BROKEN), len(objects365.TRANSPOSED)) == (3, 8, 3)
    every = [*objects365.MISSING, *objects365.BROKEN, *objects365.TRANSPOSED]
    assert len(set(every)) == 14
    assert all(name.startswith(("objects365_v1_00", "objects365_v2_0")) for name in every)


@pytest.mark.parametrize("exif", [True, False])
def test_known_exchanged_sizes_are_mended(tmp_path: Path, exif: bool) -> None:
    name = "images/v2/patch44/objects365_v2_02024631.jpg"
    root = write(tmp_path, splits=("train",), images={**IMAGES, name: (50, 20)})
    image = Image.new("RGB", (20, 50))
    tag = Image.Exif()
    tag[0x0112] = 6 if exif else 1
    image.save(root / "train" / name, exif=tag)
    data = module(root)
    index = data.read().splits["train"]
    # with the tag the image is shown 50 wide as the json says, without it is 20 wide whatever the json says
    assert index.size(3) == ((20, 50) if exif else (50, 20))
    assert kinds(index.faults) == ([] if exif else [("warning", "swapped_size")])


def test_other_exchanged_sizes_are_mended_if_every_header_is_read(tmp_path: Path) -> None:
    root = write(tmp_path, splits=("train",))
    Image.new("RGB", (30, 40)).save(root / "train" / next(iter(IMAGES)))  # the json says 40x30
    assert module(root).read().splits["train"].size(0) == (30, 40)
    checked = module(root, verify_sizes=True).read().splits["train"]
    assert checked.size(0) == (40, 30)
    assert kinds(checked.faults) == [("warning", "swapped_size")]


def test_a_missing_image_is_an_error_with_its_name_and_a_missing_patch_is_one(tmp_path: Path) -> None:
    patch = {f"images/v2/patch50/objects365_v2_{i:08}.jpg": (20, 20) for i in range(12)}
    root = write(tmp_path, splits=("train",), images={**IMAGES, **patch})
    for name in patch:
        (root / "train" / name).unlink()
    first = next(iter(IMAGES))
    (root / "train" / first).unlink()
    data = module(root)
    faults = data.read().faults
    assert kinds(faults) == [
        ("error", "missing_image"),
        ("error", "missing_images"),
        ("warning", "no_split"),
    ]
    assert faults[0].file == f"train/{first}"
    assert "12 of the 12" in faults[1].message
    assert faults[1].file == "train/images/v2/patch50"
    with pytest.raises(ValueError, match="2 errors"):
        data.setup("fit")
    assert len(module(root, skip_broken=True).read().splits["train"]) == 2


def test_one_split_alone_is_enough_to_validate_and_named_when_training(tmp_path: Path) -> None:
    data = module(write(tmp_path, splits=("val",)))
    data.setup("validate")
    assert len(data.read().splits["val"]) == 3
    with pytest.raises(ValueError, match="zoo data download objects365 --parts train"):
        data.setup("fit")


def test_the_first_images_are_the_first_of_the_json(tmp_path: Path) -> None:
    index = module(write(tmp_path), limit_eval=2).read().splits["val"]
    assert index.image_ids.tolist() == [1, 2]


def test_version_1_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path)
    old = content()
    # v1 and v2 agree in a few places only
    names = [*NAMES[:7], *reversed(NAMES[7:])]
    old["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    (root / "val" / "zhiyuan_objv2_val.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"not of Objects365 v2 .*v1 \(2019\)"):
        module(root).read()
    old["categories"] = [*categories(), {"id": 366, "name": "extra"}]
    (root / "val" / "zhiyuan_objv2_val.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="category 366 is 'extra'"):
        module(root).read()


def test_another_spelling_is_told_and_accepted(tmp_path: Path) -> None:
    root = write(tmp_path, splits=("val",))
    corrected = content()
    corrected["categories"][37]["name"] = "Monitor/TV"
    corrected["categories"][364]["name"] = "Table Tennis"
    (root / "val" / "zhiyuan_objv2_val.json").write_text(json.dumps(corrected))
    data = module(root)
    spelled = [f for f in data.read().faults if f.kind == "class_spelling"]
    assert [f.id for f in spelled] == [38], "a blank at the end is no other spelling"
    assert data.label_map.names[37] == "Moniter/TV"


def test_a_folder_without_images_or_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zoo data download objects365 --parts annotations"):
        module(tmp_path).read()
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "zhiyuan_objv2_val.json").write_text(json.dumps(content()))
    with pytest.raises(ValueError, match=r"none of 3 images of the val json .* --parts val"):
        module(tmp_path).read()


def test_entries_that_cannot_be_are_faults(tmp_path: Path) -> None:
    root = write(tmp_path, splits=("val",))
    bad = content()
    bad["images"] += [{"id": "x", "file_name": "a.jpg", "width": 1, "height": 1}, {"id": 9, "file_name": "b"}]
    bad["annotations"].append({"id": 7, "image_id": 1, "category_id": 999, "bbox": [0, 0, 5, 5]})
    (root / "val" / "zhiyuan_objv2_val.json").write_text(json.dumps(bad))
    faults = module(root).read().splits["val"].faults
    assert [f.kind for f in faults] == ["invalid_image", "invalid_image", "unknown_category"]


def test_the_folder_is_detected_and_its_index_travels_to_workers(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert detect(root) == "objects365"
    index = module(root).read().splits["train"]
    assert pickle.loads(pickle.dumps(index)).files.tolist() == index.files.tolist()
