"""Two dirty sets of our own, which break data in ways that the first does not: what is said, fault by fault."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from dirty_more import write_adversarial_coco, write_adversarial_voc, write_adversarial_yolo
from test_dirty_manifest import SAID

from datamodules.doctor import examine
from datamodules.doctor.fix import mend
from datamodules.index import Fault
from zoo.cli.main import run_command

# (file, id or None for any) -> what must be said of it; files and ids without an entry must be without a fault
COCO: dict[tuple[str, int | str | None], tuple[str, str]] = {
    (unicodedata.normalize("NFC", "train/café.jpg"), None): ("warning", "file_name"),
    ("../stranger.jpg", None): ("warning", "outside_folder"),
    ("hostname", None): ("error", "unreadable_image"),
    ("train/listed_twice.jpg", None): ("warning", "duplicate_image"),
    ("train/dangling.jpg", None): ("error", "unreadable_image"),
    ("train/folder.jpg", None): ("error", "unreadable_image"),
    ("train/no_suffix", None): ("note", "wrong_suffix"),
    ("train/unlisted_no_suffix", None): ("warning", "unlisted_image"),
    ("train", None): ("error", "missing_image"),
    ("train/nul\0byte.jpg", None): ("error", "missing_image"),
    ("train/huge_id.jpg", None): ("note", "odd_image_id"),
    ("train/negative_id.jpg", None): ("note", "odd_image_id"),
    ("train/over_64_bits.jpg", None): ("error", "invalid_image"),
    ("train/text_id.jpg", None): ("error", "invalid_image"),
    ("train/bool_id.jpg", None): ("error", "invalid_image"),
    ("train/float_id.jpg", None): ("error", "invalid_image"),
    ("train/objects.jpg", 1020): ("error", "invalid_box"),  # a mapping
    ("train/objects.jpg", 1021): ("error", "invalid_box"),  # text
    ("train/objects.jpg", 1022): ("error", "invalid_box"),  # true for 1
    ("train/objects.jpg", 1023): ("warning", "outside"),  # 1e308, which overflows when added up
    ("train/objects.jpg", 1024): ("error", "unknown_category"),  # negative
    ("train/objects.jpg", 1025): ("error", "unknown_category"),  # 1.0
    ("train/objects.jpg", 1026): ("error", "unknown_category"),  # true
    ("train/objects.jpg", 1027): ("error", "unknown_category"),  # a list
    ("train/objects.jpg", 1028): ("note", "crowd_without_mask"),
    ("train/objects.jpg", 1029): ("warning", "invalid_area"),
    ("train/objects.jpg", 1030): ("warning", "invalid_segmentation"),  # text
    ("train/objects.jpg", 1033): ("warning", "invalid_segmentation"),  # infinite
    ("annotations/instances_TRAIN.json", str(2**70)): ("warning", "invalid_annotation_id"),
    ("annotations/instances_TRAIN.json", "-3.5"): ("error", "invalid_category"),
    ("annotations/instances_TRAIN.json", "True"): ("error", "invalid_category"),
    ("annotations/instances_TRAIN.json", "4"): ("error", "invalid_category"),
    ("annotations/instances_TRAIN.json", 2): ("warning", "similar_classes"),
    ("train/grey_alpha.png", None): ("note", "transparent"),
    ("train/animated.webp", None): ("warning", "animated"),
    ("train/damaged_progressive.jpg", None): ("warning", "damaged_image"),
    ("train/damaged.jpg", None): ("warning", "damaged_image"),
    ("train/no_end_marker.jpg", None): ("error", "corrupt_image"),
    ("train/bad_checksum.png", None): ("error", "unreadable_image"),
    ("train/cut.png", None): ("error", "unreadable_image"),
    ("train/text.jpg", None): ("error", "unreadable_image"),
    ("val/reencoded.jpg", None): ("warning", "near_leak"),
    ("val/mirrored.jpg", None): ("warning", "near_leak"),
    ("val/cropped.jpg", None): ("warning", "near_leak"),
    ("val/brighter.jpg", None): ("warning", "near_leak"),
    ("val/halved.jpg", None): ("warning", "near_leak"),
}
YOLO = {
    ("labels/train/latin_1.txt", None): ("error", "unreadable_labels"),
    ("labels/train/utf_16.txt", None): ("note", "other_encoding"),
    ("labels/train/binary.txt", None): ("error", "unreadable_labels"),
    ("labels/train/folder_label.txt", None): ("error", "unreadable_labels"),
    ("labels/train/nan.txt", 1): ("error", "invalid_row"),
    ("labels/train/infinite.txt", 1): ("error", "invalid_row"),
    ("labels/train/huge_number.txt", 1): ("error", "invalid_row"),
    ("labels/train/polygon_of_nan.txt", 1): ("error", "invalid_row"),
    ("labels/train/class_name.txt", 1): ("error", "invalid_row"),
    ("labels/train/four_columns.txt", 1): ("error", "invalid_row"),
    ("labels/train/comment.txt", 1): ("error", "invalid_row"),
    ("labels/train/json.txt", 1): ("error", "invalid_row"),
    ("labels/train/underscores.txt", 1): ("error", "invalid_row"),
    ("labels/train/negative_class.txt", 1): ("error", "unknown_category"),
    ("labels/train/huge_class.txt", 1): ("error", "unknown_category"),
    ("labels/train/negative_size.txt", 1): ("error", "invalid_box"),
    ("labels/train/semicolons.txt", 1): ("warning", "comma_separated"),
    ("labels/train/no_suffix.txt", None): ("warning", "orphan_label"),
    ("images/train/no_suffix", None): ("warning", "unlisted_image"),
    ("data.yaml", 2): ("warning", "similar_classes"),
}
VOC = {
    ("bomb.xml", None): ("error", "unsafe_xml"),
    ("bomb_utf_16.xml", None): ("error", "unsafe_xml"),
    ("external.xml", None): ("error", "unsafe_xml"),
    ("html.xml", None): ("error", "foreign_xml"),
    ("empty.xml", None): ("error", "malformed_xml"),
    ("latin_1.xml", None): ("error", "malformed_xml"),
    ("unknown_encoding.xml", None): ("error", "malformed_xml"),
    ("two_boxes.xml", None): ("error", "several_boxes"),
    ("same_box_twice.xml", None): ("warning", "several_boxes"),
    ("no_box.jpg", None): ("error", "invalid_box"),
    ("words.jpg", None): ("error", "invalid_box"),
    ("nan.jpg", None): ("error", "invalid_box"),
    ("no_name.jpg", None): ("error", "unknown_category"),
    ("capital.xml", None): ("warning", "similar_classes"),
    ("zero_width.jpg", None): ("warning", "zero_area"),
    ("far.jpg", None): ("warning", "outside"),
}
SETS = {
    "coco": (write_adversarial_coco, COCO), "yolo": (write_adversarial_yolo, YOLO), "voc": (write_adversarial_voc, VOC)
}  # fmt: skip
# what follows from a fault in the table, or from a small set
CONSEQUENCES = {
    "unknown_image", "duplicate_object", "uncommon_format", "grayscale", "swapped_corners", "unused_class",
    "rare_class", "empty_images", "class_not_evaluated", "id_holes", "mixed_sizes", "below_stride",
}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list[Fault]]:
    folder = tmp_path_factory.mktemp("dirty")
    return {name: examine(write(folder / name), workers=0).faults for name, (write, _) in SETS.items()}


@pytest.mark.parametrize(("name", "where"), [(n, w) for n, (_, table) in SETS.items() for w in table])
def test_fault_is_named(name, where, said):
    file, id = where
    found = {
        (f.severity, f.kind)
        for f in said[name]
        if (f.file == file or PurePosixPath(f.file).name == file) and id in (None, f.id)
    }
    assert SETS[name][1][where] in found, found


@pytest.mark.parametrize("name", SETS)
def test_nothing_else_is_said(name, said):
    table = SETS[name][1]
    told = {file for file, _ in table} | {PurePosixPath(f).stem for f, _ in table}
    other = "annotations/instances_Val.json"  # has the same categories as the other split
    left = [
        str(f) for f in said[name]
        if not {f.file, PurePosixPath(f.file).name, PurePosixPath(f.file).stem} & told
        and f.kind not in CONSEQUENCES and f.file != other
    ]  # fmt: skip
    assert left == []


@pytest.mark.parametrize("name", SETS)
def test_command_names_faults_without_a_traceback(name, tmp_path, capsys):
    root = SETS[name][0](tmp_path / "deep" / "set")
    assert run_command(["data", "check", str(root), "--workers", "0"]) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "--fix OUT" in printed.out.splitlines()[-1]


@pytest.mark.parametrize("name", SETS)
def test_cleaned_copy_has_no_error(name, tmp_path):
    mend(examine(SETS[name][0](tmp_path / "deep" / "set"), workers=0), tmp_path / "out")
    assert [str(f) for f in examine(tmp_path / "out", workers=0).faults if f.severity == "error"] == []


def test_table_for_readers_is_what_is_tested():
    """benchmarks/DIRTY.md has a row for every entry of both tables, and says the same."""
    text = (Path(__file__).resolve().parents[3] / "benchmarks" / "DIRTY.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| `" in line]
    printed = [(row[-3 if len(row) == 3 else 1].strip("`"), row[-1]) for row in rows]
    tested = [(key, " ".join(word).strip() or "nothing") for key, word in SAID.items()]
    tested += [
        (file.replace("\0", "\\0"), " ".join(word)) for _, t in SETS.values() for (file, _), word in t.items()
    ]
    assert printed == tested
