"""What authors print beside their scores and no recipe needs: sizes in their unit, devices, conventions, AR.

Sources: README.md and hubconf.py of facebookresearch/detr@29901c5, its issue 217, arXiv 2005.12872 table 1; README.md
of fundamentalvision/Deformable-DETR@11169a6; README.md of lyuwenyu/RT-DETR@068dfde.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Convention:
    """How a family counts and where it measures.

    Attributes:
        macs_per_flop: multiply-adds in one published FLOP.
        counting: in words.
        device: of FPS and seconds per image.
    """

    macs_per_flop: float
    counting: str
    device: str


CONVENTIONS = {
    "detr": Convention(
        1.0,
        "one FLOP a multiply-add; mean over the first 100 images of val2017",
        "device not stated; first 100 images of val2017, transformer in TorchScript",
    ),
    "deformable_detr": Convention(1.0, "one FLOP a multiply-add", "V100, batch 1, PyTorch"),
    "rt_detr": Convention(0.5, "two FLOPs a multiply-add; 640x640", "T4, batch 1, TensorRT FP16"),
}
# zoo name -> parameters as printed
PARAMS = {
    "detr_r50": "41 M", "detr_r50_dc5": "41 M", "detr_r101": "60 M", "detr_r101_dc5": "60 M",
    "deformable_detr_r50_single_scale": "34 M", "deformable_detr_r50_single_scale_dc5": "34 M",
    "deformable_detr_r50": "40 M", "deformable_detr_r50_refine": "41 M", "deformable_detr_r50_two_stage": "41 M",
    "rt_detr_r18": "20 M", "rt_detr_r34": "31 M", "rt_detr_r50m": "36 M", "rt_detr_r50": "42 M",
    "rt_detr_r101": "76 M", "rt_detr_r18.o365_coco_60e": "20 M", "rt_detr_r50.o365_coco_24e": "42 M",
    "rt_detr_r101.o365_coco_24e": "76 M",
}  # fmt: skip
# zoo name -> size of the authors' file as printed
FILE_SIZES = {
    "detr_r50": "159 MB", "detr_r50_dc5": "159 MB", "detr_r101": "232 MB", "detr_r101_dc5": "232 MB",
    "detr_r50_panoptic": "165 MB", "detr_r50_dc5_panoptic": "165 MB", "detr_r101_panoptic": "237 MB",
}  # fmt: skip
# zoo name -> average recall in percent, evaluated at batch 1 (issue 217), where the same weights give 42.1 AP
RECALLS = {
    "detr_r50": {"AR1": 33.4, "AR10": 53.3, "AR100": 57.5, "ARs": 32.1, "ARm": 62.9, "ARl": 80.5},
}
