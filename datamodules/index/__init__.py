"""The annotation index of a data set: what readers of formats build and everything else reads."""

from datamodules.index.annotation_index import AnnotationIndex, Objects, concatenate
from datamodules.index.builder import IndexBuilder
from datamodules.index.faults import Fault, Severity, by_kind, by_severity, relative, shown_path, visible

__all__ = [
    "AnnotationIndex",
    "Fault",
    "IndexBuilder",
    "Objects",
    "Severity",
    "by_kind",
    "by_severity",
    "concatenate",
    "relative",
    "shown_path",
    "visible",
]
