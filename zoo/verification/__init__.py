"""Official numbers and the code that compares ours with them; one file a family that has some."""

from pathlib import Path

from zoo.storage.places import modules_beside

__path__ += modules_beside(Path(__file__).parent, "zoo/verification")
