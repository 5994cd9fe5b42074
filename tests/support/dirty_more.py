"""Two more dirty sets, drawn and written by code: each fault that a file has is in its name."""

from __future__ import annotations

import io
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SIZE = (160, 120)  # width, height


def scene(seed: int) -> Image.Image:
    """A picture with large and small structure, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", SIZE)
    for cells in (4, 9, 30):
        layer = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        picture = Image.blend(picture, layer.resize(SIZE, Image.Resampling.BICUBIC), 0.5)
    return ImageEnhance.Contrast(picture).enhance(1.6)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **({"quality": 90} | options))
    return buffer.getvalue()


def overwritten(data: bytes) -> bytes:
    """Part of the scan replaced by what is no code of its table: decoders go on with garbage."""
    middle = len(data) * 2 // 3
    return data[:middle] + b"\xa5\x5a" * 60 + data[middle + 120 :]


def cropped(picture: Image.Image, share: float) -> Image.Image:
    x, y = int(SIZE[0] * share / 2), int(SIZE[1] * share / 2)
    return picture.crop((x, y, SIZE[0] - x, SIZE[1] - y))


class Coco:
    """One json under construction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._number = 0

    def add(
        self, name: str, data: bytes | None, id: Any = None, size: tuple[int, int] = SIZE, **box: Any
    ) -> Any:
        """An image, its file if there is any, and one object unless `box` has others."""
        self._number += 1
        if data is not None:
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        id = self._number if id is None else id
        self.images.append({"id": id, "file_name": name, "width": size[0], "height": size[1]})
        self.object(id, **box)
        return id

    def object(self, image_id: Any, **values: Any) -> None:
        number = 1000 + len(self.annotations)
        entry = {"id": number, "image_id": image_id, "category_id": 1, "bbox": [20, 20, 40, 30], "area": 1200}
        self.annotations.append(entry | {"iscrowd": 0} | values)


def write_adversarial_coco(root: Path) -> Path:
    """COCO json with what neither a labelling tool nor a parser expects."""
    train, val = Coco(root / "train"), Coco(root / "val")
    for k in range(3):
        train.add(f"fine_{k}.jpg", jpeg(scene(k)))
    # names
    nfd = unicodedata.normalize("NFD", "café.jpg")
    train.add(unicodedata.normalize("NFC", "café.jpg"), None)
    (root / "train" / nfd).write_bytes(jpeg(scene(10)))
    (root.parent / "stranger.jpg").write_bytes(jpeg(scene(11)))
    train.add("../../stranger.jpg", None)
    train.add(f"{'../' * len((root / 'train').resolve().parents)}etc/hostname", None)
    train.add("listed_twice.jpg", jpeg(scene(12)))
    train.add("listed_twice.jpg", None)
    os.symlink(root / "train", root / "train" / "loop")
    os.symlink(root / "nowhere.jpg", root / "train" / "dangling.jpg")
    train.add("dangling.jpg", None)
    train.add("folder.jpg", None)
    (root / "train" / "folder.jpg").mkdir()
    train.add("no_suffix", jpeg(scene(13)))
    (root / "train" / "unlisted_no_suffix").write_bytes(jpeg(scene(14)))
    train.add("", None)
    train.add("nul\0byte.jpg", None)
    # ids
    train.add("huge_id.jpg", jpeg(scene(15)), id=2**53 + 1)
    train.add("over_64_bits.jpg", jpeg(scene(16)), id=2**70)
    train.add("text_id.jpg", jpeg(scene(17)), id="17")
    train.add("bool_id.jpg", jpeg(scene(18)), id=True)
    train.add("float_id.jpg", jpeg(scene(19)), id=2.5)
    train.add("negative_id.jpg", jpeg(scene(20)), id=-5)
    # objects
    odd = train.add("objects.jpg", jpeg(scene(21)))
    for values in (
        {"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}, {"bbox": "20 20 40 30"}, {"bbox": [True, 1, 5, 5]},
        {"bbox": [1e308, 1e308, 1e308, 1e308]}, {"category_id": -3}, {"category_id": 1.0}, {"category_id": True},
        {"category_id": [1]}, {"iscrowd": 1}, {"area": "big"}, {"segmentation": "polygon"}, {"id": 2**70},
        {"id": "a"}, {"segmentation": [[1, 2, 3, 4, 5, float("inf")]]},
    ):  # fmt: skip
        train.object(odd, **values)
    # pictures
    grey_alpha = io.BytesIO()
    Image.merge("LA", (scene(22).convert("L"), scene(23).convert("L"))).save(grey_alpha, "PNG")
    train.add("grey_alpha.png", grey_alpha.getvalue())
    animation = io.BytesIO()
    scene(24).save(animation, "WEBP", save_all=True, append_images=[scene(25)], duration=50)
    train.add("animated.webp", animation.getvalue())
    train.add("no_dpi.jpg", jpeg(scene(26), dpi=(0, 0)))
    train.add("progressive.jpg", jpeg(scene(27), progressive=True))
    train.add("damaged_progressive.jpg", overwritten(jpeg(scene(28), progressive=True)))
    train.add("damaged.jpg", overwritten(jpeg(scene(29), quality=95)))
    train.add("trailing_bytes.jpg", jpeg(scene(30)) + b"\0" * 200)
    train.add("no_end_marker.jpg", jpeg(scene(31))[:-2])
    png = io.BytesIO()
    scene(32).save(png, "PNG")
    broken = bytearray(png.getvalue())
    broken[len(broken) // 2] ^= 0xFF
    train.add("bad_checksum.png", bytes(broken))
    train.add("cut.png", png.getvalue()[:-400])
    train.add("text.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    exif = Image.Exif()
    exif[0x0112] = 99
    train.add("orientation_99.jpg", jpeg(scene(33), exif=exif))
    train.add("flat.jpg", jpeg(Image.new("RGB", SIZE, "white")))
    # copies across the splits
    original = scene(40)
    train.add("original.jpg", jpeg(original))
    small = original.resize((80, 60), Image.Resampling.BICUBIC)
    for name, copy in {
        "reencoded": original, "mirrored": ImageOps.mirror(original), "cropped": cropped(original, 0.04),
        "brighter": ImageEnhance.Brightness(original).enhance(1.2),
    }.items():  # fmt: skip
        val.add(f"{name}.jpg", jpeg(copy, quality=40), size=copy.size)
    val.add("halved.jpg", jpeg(small), size=small.size)
    val.add("flat.jpg", jpeg(Image.new("RGB", SIZE, (254, 255, 255))))  # as flat as the one in train
    val.add("other.jpg", jpeg(scene(41)))
    names = [unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")]
    categories: list[dict[str, Any]] = [{"id": 1, "name": names[0]}, {"id": 2, "name": names[1]}]
    categories += [{"id": -3.5, "name": "float"}, {"id": True, "name": "bool"}, {"id": 4, "name": None}]
    (root / "annotations").mkdir()
    for split, made in (("TRAIN", train), ("Val", val)):
        own = {"categories": categories, "images": made.images, "annotations": made.annotations}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(own))
    return root


ROW = "0 .5 .5 .4 .4\n"


def write_adversarial_yolo(root: Path) -> Path:
    """YOLO labels as editors, spreadsheets and other tools leave them."""
    (root / "images/train").mkdir(parents=True)
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text("train: images/train\nnames: {0: cat, 1: 'Katze', 2: 'cat '}\n")
    labels: dict[str, bytes | str | None] = {
        "fine": ROW, "fine_tabs": "0\t.5\t.5\t.4\t.4\n", "fine_exponent": "1 5e-1 .5 4E-1 .4",
        "fine_blank_lines": f"\n\n{ROW}\n  \n", "fine_old_mac": "0 .5 .5 .4 .4\r1 .2 .2 .1 .1\r",
        "latin_1": "0 .5 .5 .4 .4 # gro\u00df".encode("latin-1"), "utf_16": ROW.encode("utf-16"),
        "nan": "0 nan .5 .4 .4", "infinite": "0 .5 .5 inf .4", "negative_class": "-1 .5 .5 .4 .4",
        "class_name": "cat .5 .5 .4 .4", "huge_class": f"{10**30} .5 .5 .4 .4", "huge_number": "0 1e999 .5 .4 .4",
        "four_columns": ".5 .5 .4 .4", "comment": f"# made by hand\n{ROW}", "json": '{"boxes": []}',
        "negative_size": "0 .5 .5 -.4 .4", "polygon_of_nan": "0 .1 .1 nan .1 .5 .5", "binary": bytes(range(256)),
        "semicolons": "0;.5;.5;.4;.4", "underscores": "0 .5 .5 .4 .4_0", "edge_by_rounding": "0 .2 .5 .4003 .4",
    }  # fmt: skip
    for seed, (name, text) in enumerate(labels.items()):
        (root / f"images/train/{name}.jpg").write_bytes(jpeg(scene(100 + seed)))
        data = text.encode() if isinstance(text, str) else text or b""
        (root / f"labels/train/{name}.txt").write_bytes(data)
    (root / "images/train/upper_label.jpg").write_bytes(jpeg(scene(90)))
    (root / "labels/train/upper_label.TXT").write_text(ROW)
    (root / "images/train/no_suffix").write_bytes(jpeg(scene(91)))
    (root / "labels/train/no_suffix.txt").write_text(ROW)
    (root / "images/train/folder_label.jpg").write_bytes(jpeg(scene(92)))
    (root / "labels/train/folder_label.txt").mkdir()
    return root


def voc(
    name: str, box: str = "<xmin>21</xmin><ymin>21</ymin><xmax>60</xmax><ymax>50</ymax>", more: str = ""
) -> str:
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
    thing = f"<object><name>cat</name>{more}<bndbox>{box}</bndbox></object>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{thing}</annotation>"


def write_adversarial_voc(root: Path) -> Path:
    """VOC xml: attacks, encodings, namespaces and other xml that looks like it."""
    laughs = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e0 "ha">{laughs}]>'
    outside = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    second = "</bndbox><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    box = "<xmin>21</xmin><ymin>21</ymin><xmax>60</xmax><ymax>50</ymax>"
    utf_16 = '<?xml version="1.0" encoding="utf-16"?>'
    files: dict[str, str | bytes] = {
        "fine": voc("fine"),
        "fine_utf_16": (utf_16 + voc("fine_utf_16")).encode("utf-16"),
        "fine_namespace": voc("fine_namespace").replace(
            "<annotation>", '<annotation xmlns="http://x.org/voc">'
        ),
        "fine_bom": b"\xef\xbb\xbf" + voc("fine_bom").encode(),
        "fine_doctype": "<!DOCTYPE annotation>" + voc("fine_doctype"),
        "fine_parts": voc("fine_parts", more=f"<part><name>head</name><bndbox>{box}</bndbox></part>"),
        "bomb": bomb + voc("bomb").replace(">cat<", ">&e9;<"),
        "external": outside + voc("external").replace(">cat<", ">&x;<"),
        "bomb_utf_16": (bomb + voc("bomb_utf_16")).encode("utf-16"),
        "two_boxes": voc("two_boxes", box + second),
        "same_box_twice": voc("same_box_twice", f"{box}</bndbox><bndbox>{box}"),
        "no_box": voc("no_box").replace("bndbox", "polygon"),
        "words": voc("words", box.replace("21", "one", 1)),
        "nan": voc("nan", box.replace("21", "nan", 1)),
        "latin_1": voc("latin_1").replace("cat", "K\u00e4tzchen").encode("latin-1"),
        "html": "<html><body>404</body></html>",
        "empty": "",
        "unknown_encoding": '<?xml version="1.0" encoding="klingon"?>' + voc("unknown_encoding"),
        "no_name": voc("no_name").replace("<name>cat</name>", ""),
        "capital": voc("capital").replace("cat", "Cat"),
        "zero_width": voc("zero_width", box.replace("60", "21")),
        "far": voc("far", box.replace("21", "921").replace("60", "990")),
    }
    root.mkdir(parents=True)
    for seed, (name, text) in enumerate(files.items()):
        (root / f"{name}.jpg").write_bytes(jpeg(scene(200 + seed)))
        (root / f"{name}.xml").write_bytes(text.encode() if isinstance(text, str) else text)
    return root
