"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
DataFormat = Annotated[
    str, typer.Option("--format", help="Of the data set: auto, coco, yolo, voc, csv, labelme, cvat, ...")
]
DataSet = Annotated[str, typer.Argument(help="Data set, in any format that is understood.")]
NewFolder = Annotated[Path, typer.Option("--output", help="New or empty folder.")]
Augmentations = Annotated[
    Path | None,
    typer.Option(
        "--augmentations",
        help="YAML file: a list of operations of torchvision, albumentations and ours, by class path.",
    ),
]
