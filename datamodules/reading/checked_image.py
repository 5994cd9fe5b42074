"""Adds an image to an index: finds it on disk and reconciles its size with what the annotations say."""

from __future__ import annotations

from datamodules.images.files import ImageFolder, frame_size
from datamodules.index import IndexBuilder


def add_checked_image(
    builder: IndexBuilder,
    folder: ImageFolder,
    name: str,
    image_id: int,
    declared: tuple[int, int] | None,
    verify_size: bool,
) -> tuple[int, int] | None:
    """Finds the image, reconciles its size and adds it, or excludes it with a fault.

    Returns the (h, w) of the frame of its boxes, None for an image that was excluded.

    Args:
        builder: the split's index under construction.
        folder: where the images are.
        name: file name as the annotations give it.
        image_id: its id.
        declared: (h, w) in the annotations, None if they have none.
        verify_size: read the file's header even if a size is declared.
    """
    verify_size = verify_size or (declared is not None and not 0 < min(declared) <= max(declared) < 1 << 31)
    if declared is not None and not verify_size and folder.holds(name):
        # as text: making a Path takes longer than everything else that is done for an image
        builder.add_image(f"{folder.folder}/{name}", image_id, declared)
        return declared
    path, remark = folder.find(name)
    if path is None:
        builder.exclude_image(image_id)
        message = (
            f"there is no such file in {folder.folder}; the image and its objects are left out; put the "
            "file there or remove it from the annotations"
        )
        builder.fault("error", "missing_image", folder.folder / name, image_id, message)
        return None
    if remark:
        message = f"{remark}; correct the name in the annotations"
        builder.fault("warning", "file_name", folder.folder / name, image_id, message)
    if verify_size or declared is None:
        frame = frame_size(path, declared)
        if frame.size is None:
            builder.exclude_image(image_id)
            builder.fault("error", frame.kind, path, image_id, frame.message)
            return None
        if frame.kind:
            builder.fault("warning", frame.kind, path, image_id, frame.message)
        declared = frame.size
    assert declared is not None
    builder.add_image(path, image_id, declared)
    return declared
