"""What is known of the published files, and their addresses."""

from __future__ import annotations

import pytest

from datamodules.published.downloads import address, publications

COCO, OBJECTS365 = publications()["coco"], publications()["objects365"]


def test_objects365_is_51_and_44_patches_and_two_annotation_files() -> None:
    paths = [file.path for file in OBJECTS365.files]
    assert len(paths) == len(set(paths)) == 51 + 44 + 2
    assert {f"train/patch{i}.tar.gz" for i in range(51)} < set(paths)
    assert {f"val/images/v{1 if i < 16 else 2}/patch{i}.tar.gz" for i in range(44)} < set(paths)
    annotations = [file.path for file in OBJECTS365.select(["annotations"])]
    assert annotations == ["val/zhiyuan_objv2_val.json", "train/zhiyuan_objv2_train.tar.gz"]
    assert len(OBJECTS365.select(["val"])) == 45, "a split comes with its annotations"
    assert all(file.into == file.path.split("/")[0] for file in OBJECTS365.files)
    assert not any(file.sha256 for file in OBJECTS365.files), "nobody publishes one"


def test_letters_of_the_folder_are_encoded_once() -> None:
    encoded = "https://dorc.ks3-cn-beijing.ksyun.com/data-set/2020Objects365%E6%95%B0%E6%8D%AE%E9%9B%86"
    assert address(OBJECTS365.prefix, "train/patch0.tar.gz") == f"{encoded}/train/patch0.tar.gz"
    assert address(encoded, "train/patch0.tar.gz") == f"{encoded}/train/patch0.tar.gz"
    assert address("/mnt/mirror/数据/", "a b.zip") == "/mnt/mirror/数据/a b.zip"


def test_coco_has_its_default_files_with_size_and_hash() -> None:
    files = COCO.select(COCO.default_parts)
    assert [address(COCO.prefix, file.path) for file in files] == [
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/zips/train2017.zip",
    ]
    assert all(file.size and len(file.sha256 or "") == 64 for file in COCO.files)
    assert COCO.parts == ("train", "val", "annotations", "panoptic")


@pytest.mark.parametrize("parts", [["test"], [""], []])
def test_other_parts_are_refused(parts: list[str]) -> None:
    with pytest.raises(ValueError, match="its parts are train, val, annotations"):
        OBJECTS365.select(parts)
