"""Annotation files that are not in UTF-8: read where the encoding is certain, else refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sets import voc_xml, write_coco, write_image, write_yolo

from datamodules.formats.detect import read
from datamodules.reading.text import decode_text, decode_xml

TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


@pytest.mark.parametrize(("text", "encoding"), [
    ("café,crème", "utf-8-sig"), ("a,猫", "utf-16"), ("a,b,c,猫", "utf-16-le"), ("a,b,c,d", "utf-16-be"),
    ("猫", "utf-32"), ("cat,café", "cp1252"), ("Größe,Bär", "latin-1"), ("łódź", "cp1250"), ("ネコ", "shift_jis"),
])  # fmt: skip
def test_text_is_read_where_its_encoding_is_certain(text, encoding):
    assert decode_text(text.encode(encoding)) == text


@pytest.mark.parametrize(("text", "encoding", "readings"), [
    ("señal", "cp1252", ("cp1250 ('seńal')", "cp1252 ('señal')")),
    ("кошка", "cp1251", ("cp1251 ('кошка')",)),
    ("行人,1", "gbk", ("gb2312 ('行人')",)),
    ("고양이", "euc_kr", ("big5", "euc_kr ('고양이')", "gb2312")),
])  # fmt: skip
def test_text_of_several_code_pages_is_refused_with_what_it_may_be(text, encoding, readings):
    with pytest.raises(ValueError, match=r"^it is not UTF-8 \(byte 0x.*save it as UTF-8$") as error:
        decode_text(text.encode(encoding))
    assert all(reading in str(error.value) for reading in readings)


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "utf-16", "utf-8", "big5", "euc_jp"])
def test_xml_is_read_in_the_encoding_that_it_declares(encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation>犬</annotation>'
    assert decode_xml(text.encode(encoding)) == "\n<annotation>犬</annotation>"


def test_xml_that_declares_utf_16_and_is_utf_8_is_read():
    assert decode_xml('<?xml version="1.0" encoding="utf-16"?><a>犬</a>'.encode()) == "<a>犬</a>"
    with pytest.raises(ValueError, match=r"declares euc_kr and is not that .*save it as UTF-8"):
        decode_xml(b'<?xml version="1.0" encoding="euc_kr"?><a>' + b"\xff\xff</a>")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "utf-8-sig"])
def test_a_table_is_read(tmp_path, encoding):
    write_image(tmp_path / "a.png", (40, 30))
    (tmp_path / "labels.csv").write_text(TABLE + "a.png,40,30,bär,1,2,11,22\n", encoding=encoding)
    source = read(tmp_path)
    assert source.classes == {0: "bär"}
    assert source.splits["train"].boxes_xywh.tolist() == [[1, 2, 10, 20]]


@pytest.mark.parametrize("encoding", ["utf-16", "gb18030", "shift_jis"])
def test_voc_is_read_as_it_declares(tmp_path, encoding):
    write_image(tmp_path / "images/0.png", (40, 30))
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + voc_xml("0.png", (40, 30), ((0, 1, 2, 3, 4),))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/0.xml").write_text(text.replace("cat", "犬"), encoding=encoding)
    source = read(tmp_path)
    assert (source.format, source.classes) == ("voc", {0: "犬"})
    assert source.splits["train"].boxes_xywh.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_coco_json_in_another_encoding_is_refused_by_name(tmp_path, encoding):
    root = write_coco(tmp_path / "set")
    file = root / "annotations/instances_train.json"
    file.write_text(file.read_text(), encoding=encoding)
    with pytest.raises(ValueError, match=r"instances_train\.json .*UTF-(16|32).*save it as UTF-8"):
        read(root)


def test_coco_json_of_a_code_page_is_refused_by_name(tmp_path):
    root = write_coco(tmp_path / "set")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "Hündin"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="latin-1")
    with pytest.raises(ValueError, match=r"instances_train\.json .*no UTF-8.*save it as UTF-8"):
        read(root)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_yolo_labels_and_names_are_read(tmp_path, encoding):
    root = write_yolo(tmp_path / "set", splits=("train",))
    expected = read(root).splits["train"].boxes_xywh.tolist()
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("кошка\nсобака\n", encoding=encoding)
    for file in (root / "labels/train").glob("*.txt"):
        file.write_text(file.read_text(), encoding=encoding)
    source = read(root)
    assert source.classes == {0: "кошка", 1: "собака"}
    assert source.splits["train"].boxes_xywh.tolist() == expected
    kinds = {f.kind for f in source.faults if f.file.startswith("labels")}
    assert kinds == {"byte_order_mark" if encoding == "utf-8-sig" else "other_encoding"}


@pytest.mark.parametrize(("name", "text"), [
    ("environment.yml", "name: x\nchannels: !!python/tuple\n- defaults\n"),
    ("deploy.yaml", "a: 1\n---\nb: 2\n"),
    ("chart.yaml", "name: {{ .Values.name }}\n"),
    ("names.yaml", "- just\n- a list\n"),
    ("package.json", '{"name": "x", "images": 3}'),
    ("broken.json", "{'images': [}"),
    ("pom.xml", "<project><modelVersion>4</modelVersion>"),
    ("prices.csv", "date,price\n1,2\n"),
    ("bytes.csv", b"\xff\xff\x00\x01\x02"),
    ("words.txt", "naïve °".encode("latin-1")),
    ("x.data", b"\xff\x00names=\xff"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["voc", "yolo", "coco"])
def test_a_file_that_is_not_ours_stops_nothing(tmp_path, name, text, kind):
    from tiny_sets import write_voc

    root = {"voc": write_voc, "yolo": write_yolo, "coco": write_coco}[kind](tmp_path / "set")
    before = read(root)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    after = read(root)
    assert (after.format, list(after.splits)) == (kind, list(before.splits))
    assert [str(f) for f in after.faults] == [str(f) for f in before.faults]


def test_a_data_yaml_that_is_ours_and_broken_is_told(tmp_path):
    root = write_yolo(tmp_path / "set")
    Path(root / "data.yaml").rename(root / "mine.yaml")
    with (root / "mine.yaml").open("a") as stream:
        stream.write("\n\t- tab")
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        read(root)
