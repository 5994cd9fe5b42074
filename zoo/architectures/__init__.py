"""One file a family; those of a user lie in `zoo/architectures` of a folder that ZOO_PATH names."""

from pathlib import Path

from zoo.storage.places import modules_beside

__path__ += modules_beside(Path(__file__).parent, "zoo/architectures")
