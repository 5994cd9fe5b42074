"""What names an exported model: a file by its ending, a folder by what it holds. Imports nothing that computes."""

from __future__ import annotations

from pathlib import Path

ONNX_SUFFIX, OPENVINO_SUFFIX = ".onnx", ".xml"
ONNX_GRAPH, OPENVINO_GRAPH = f"model{ONNX_SUFFIX}", f"model{OPENVINO_SUFFIX}"
CONFIG_FILE = "config.json"  # of transformers
_IN_FOLDERS = (ONNX_GRAPH, OPENVINO_GRAPH, CONFIG_FILE)


def is_exported(path: Path) -> bool:
    """Whether a path names an exported file by its ending, or is a folder that holds one."""
    return path.suffix in (ONNX_SUFFIX, OPENVINO_SUFFIX) or bool(exports_in(path))


def exports_in(folder: Path) -> list[str]:
    """The names of what can be opened of a folder; more than one where exports were mixed."""
    return [name for name in _IN_FOLDERS if (folder / name).is_file()]
