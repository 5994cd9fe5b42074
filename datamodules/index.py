"""The annotation index of a data set: what readers of formats build and everything else reads."""

from datamodules.annotation_index import AnnotationIndex, Objects, concatenate
from datamodules.faults import Fault, Severity, by_kind, by_severity, relative, shown_path, visible
from datamodules.index_builder import IndexBuilder

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
