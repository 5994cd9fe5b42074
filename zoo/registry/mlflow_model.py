"""What makes a version's files a model that MLflow itself can load and serve: an MLmodel, whose code is this package.

No code and no pickle lies beside it: `zoo.serving.pyfunc` of the installed package loads the files.
"""

from __future__ import annotations

import base64
import io
import json
import platform
from importlib import metadata
from pathlib import Path

import msgspec
from PIL import Image

from zoo.registry.manifest import Manifest
from zoo.storage.durable import written
from zoo.tracking.lineage import DISTRIBUTION

LOADER = "zoo.serving.pyfunc"
COLUMN = "image"  # of the input
EXAMPLE_FILE, SERVING_EXAMPLE_FILE = "input_example.json", "serving_input_example.json"
REQUIREMENTS_FILE, ENVIRONMENT_FILE = "requirements.txt", "python_env.yaml"


def write_mlflow_model(folder: Path, manifest: Manifest, model_id: str, run_id: str | None) -> None:
    """Writes MLmodel, the input example and the requirements into a folder.

    Args:
        folder: exists.
        manifest: of the version.
        model_id: of the LoggedModel.
        run_id: of the run that trained it.

    Raises:
        OSError: the disk is full or read-only.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import add_to_model
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", COLUMN)]),  # http(s) address, data URI or base64
        params=ParamSchema([
            ParamSpec("threshold", "double", None),  # None: the model's own
            ParamSpec("max_detections", "long", None),
            ParamSpec("as_text", "boolean", False),  # each answer as JSON text, as Spark takes it
        ]),
    )  # fmt: skip
    image = _example(manifest)
    model = Model(
        model_id=model_id,
        run_id=run_id,
        signature=signature,
        saved_input_example_info=None if image is None else {
            "artifact_path": EXAMPLE_FILE, "serving_input_path": SERVING_EXAMPLE_FILE, "type": "dataframe",
            "pandas_orient": "split",
        },
        metadata={"zoo": f"{manifest.name}:{manifest.version}", "license": manifest.license},
    )  # fmt: skip
    add_to_model(model, loader_module=LOADER, python_env=ENVIRONMENT_FILE)
    texts = {
        REQUIREMENTS_FILE: "".join(
            f"{name}=={metadata.version(name)}\n" for name in ("mlflow", DISTRIBUTION)
        ),
        ENVIRONMENT_FILE: f"python: {platform.python_version()}\ndependencies: [-r {REQUIREMENTS_FILE}]\n",
    }
    if image is not None:
        example = {"columns": [COLUMN], "data": [[image]]}
        texts[EXAMPLE_FILE] = json.dumps(example)
        texts[SERVING_EXAMPLE_FILE] = json.dumps({"dataframe_split": example})
    for name, text in texts.items():
        with written(folder / name):
            (folder / name).write_text(text, encoding="utf-8")
    with written(folder / "MLmodel"):
        model.save(str(folder / "MLmodel"))


def _example(manifest: Manifest) -> str | None:
    """A small image as base64; None where no PNG has as many channels as the model takes."""
    channels = 3 if isinstance(manifest.input.channels, msgspec.UnsetType) else manifest.input.channels
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        return None
    buffer = io.BytesIO()
    Image.new(mode, (64, 48)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
