"""The annotation index of a data set: what readers of formats build and everything else reads."""

from datamodules.annotation_index import AnnotationIndex, Objects, concatenate
from datamodules.faults import Fault, Severity, relative, shown_path
from datamodules.index_builder import IndexBuilder

__all__ = [
    "AnnotationIndex",
    "Fault",
    "IndexBuilder",
    "Objects",
    "Severity",
    "concatenate",
    "relative",
    "shown_path",
]
