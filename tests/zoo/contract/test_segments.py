import io

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.contract.labels import LabelMap
from zoo.contract.segments import PanopticSegmentation, Segment, ids_of_png, mask_boxes, png_of_ids

LABELS = LabelMap(
    ("cup", "sky"), (3, 187), (3, 187), 250, is_thing=(True, False), colors=((220, 20, 60), (70, 130, 180))
)


def small():
    ids = torch.zeros(4, 6, dtype=torch.int32)
    ids[1:3, 2:5] = 70_000  # needs all three channels
    ids[3] = 300
    return PanopticSegmentation(
        ids, (Segment(70_000, 3, True, 6, score=0.5), Segment(300, 187, False, 6, crowd=True))
    )


def test_the_file_format_goes_both_ways():
    png, entry = small().to_coco(LABELS, 17, "17.png")
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert pixels[1, 2].tolist() == [70_000 % 256, 70_000 // 256 % 256, 1]
    assert entry["image_id"] == 17
    assert entry["file_name"] == "17.png"
    assert entry["segments_info"] == [
        {
            "id": 70_000,
            "category_id": 3,
            "iscrowd": 0,
            "area": 6,
            "bbox": [2, 1, 3, 2],
            "isthing": 1,
            "score": 0.5,
        },
        {"id": 300, "category_id": 187, "iscrowd": 1, "area": 6, "bbox": [0, 3, 6, 1], "isthing": 0},
    ]
    back = PanopticSegmentation.from_coco(png, entry["segments_info"], LABELS)
    assert torch.equal(back.ids, small().ids)
    assert back.segments == small().segments


def test_grey_files_hold_the_ids_themselves():
    for mode, top in (("L", 255), ("I;16", 60_000)):
        ids = np.array([[0, 1], [2, top]], dtype=np.uint8 if mode == "L" else np.uint16)
        file = io.BytesIO()
        Image.fromarray(ids).save(file, format="PNG")
        assert ids_of_png(file.getvalue()).tolist() == ids.tolist()


def test_files_without_ids_are_refused():
    file = io.BytesIO()
    Image.new("P", (2, 2)).save(file, format="PNG")
    with pytest.raises(ValueError, match="mode P, from which ids cannot be read"):
        ids_of_png(file.getvalue())
    with pytest.raises(ValueError, match="no readable PNG"):
        ids_of_png(b"nothing")
    with pytest.raises(ValueError, match=r"ids 0\.\.16777216; a colour can name 0\.\.16777215"):
        png_of_ids(np.array([[0, 256**3]]))
    with pytest.raises(ValueError, match="label 4, which is no class"):
        PanopticSegmentation(small().ids, (Segment(300, 4, True, 6),)).to_coco(LABELS, 1, "1.png")
    with pytest.raises(ValueError, match=r"must be \[h, w\] int32"):
        PanopticSegmentation(small().ids.long(), ())


def test_faults_name_the_ids_on_which_map_and_list_disagree():
    assert small().faults() == []
    wrong = PanopticSegmentation(small().ids, (Segment(300, 187, False, 6), *([Segment(9, 3, True, 1)] * 2)))
    assert wrong.faults() == [
        "id 9 is listed twice",
        "id 9 is listed and has no pixel",
        "id 9 is listed and has no pixel",
        "id 70000 has 6 pixels and is not listed",
    ]


def test_masks_are_in_the_order_of_the_segments():
    masks = small().masks()
    assert masks.shape == (2, 4, 6)
    assert masks[0].nonzero().min(0).values.tolist() == [1, 2]
    assert masks[1, 3].all()
    assert PanopticSegmentation(small().ids, ()).masks().shape == (0, 4, 6)


def test_boxes_of_masks_end_on_the_last_pixel():
    masks = torch.cat([small().masks(), torch.zeros(1, 4, 6, dtype=torch.bool)])
    assert mask_boxes(masks).tolist() == [[2, 1, 4, 2], [0, 3, 5, 3], [0, 0, 0, 0]]


def test_label_maps_know_things_and_colours_and_old_ones_stay_as_they_were():
    assert LabelMap.from_dict(LABELS.to_dict()) == LABELS
    assert LABELS.things == {3}
    assert LABELS.color_of_head[187] == (70, 130, 180)
    old = LabelMap(("cup", "sky"), (3, 187), (3, 187), 250)
    assert old.to_dict() == {
        "num_classes": 250,
        "classes": [
            {"name": "cup", "source_id": 3, "head_index": 3},
            {"name": "sky", "source_id": 187, "head_index": 187},
        ],
    }
    assert LabelMap.from_dict(old.to_dict()) == old
    assert old.things == {3, 187}
    assert old.difference(LABELS) is None
    all_things = LabelMap(old.names, old.source_ids, old.head_indices, 250, is_thing=(True, True))
    assert LABELS.difference(all_things) == "head index 187 ('sky') is a thing in one and stuff in the other"
    with pytest.raises(ValueError, match="2 names and 1 is_thing"):
        LabelMap(old.names, old.source_ids, old.head_indices, 250, is_thing=(True,))
    assert LabelMap.category_id(["cup", "sky"], [3, 187]).num_classes == 188
    assert LabelMap.category_id(["cup", "sky"], [3, 187], 250) == old
