"""A small panoptic folder and a small DETR with masks, for tests that train one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.contract.segments import png_of_ids

SIZE = (64, 64)
CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 3, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 187, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
]
SMALL = {
    "backbone": {
        "name": "residual", "weights": "random", "freeze_stem": False, "frozen_norm": False, "dilate_last": False,
        "widths": [4, 4, 8, 8, 8, 8],
    },
    "transformer": {
        "dim": 128, "num_heads": 8, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 6,
        "dropout": 0.1, "pre_norm": False, "position": "sine",
    },
}  # fmt: skip


def panoptic_folder(root: Path, images: int = 4) -> Path:
    """Sky above, a car of its own size in each image, a person in every other."""
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        pngs = root / "annotations" / f"panoptic_{split}"
        pngs.mkdir(parents=True)
        made: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for i in range(images):
            ids = np.zeros(SIZE, np.int32)
            ids[:24] = 5
            ids[30 : 50 + i, 8:40] = 6
            if i % 2:
                ids[26:60, 46:58] = 7
            pixels = np.stack([ids * 30, 255 - ids * 20, ids * 10], axis=-1).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{split}{i}.jpg")
            (pngs / f"{split}{i}.png").write_bytes(png_of_ids(ids))
            rows = []
            for number in sorted({int(v) for v in np.unique(ids)} - {0}):
                lines, columns = np.nonzero(ids == number)
                x, y = int(columns.min()), int(lines.min())
                box = [x, y, int(columns.max()) - x + 1, int(lines.max()) - y + 1]
                category = {5: 187, 6: 3, 7: 1}[number]
                rows.append(
                    {"id": number, "category_id": category, "iscrowd": 0, "area": len(lines), "bbox": box}
                )
            made["images"].append(
                {"id": i, "file_name": f"{split}{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
            )
            made["annotations"].append({"image_id": i, "file_name": f"{split}{i}.png", "segments_info": rows})
        pngs.with_suffix(".json").write_text(json.dumps(made))
    return root
