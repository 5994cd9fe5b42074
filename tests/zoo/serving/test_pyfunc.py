"""MLflow's own tools load and serve what was published, and give the detections of `zoo predict`."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import numpy as np
import pandas as pd
import pytest
from empty_store import put_empty_store
from PIL import Image
from registry_case import tiny_checkpoint

import zoo
from zoo.registry.publish import publish
from zoo.serving import pyfunc
from zoo.tracking.backend import resolve_store

NAME = "rt_detr_tiny.shapes"
CHAMPION = f"models:/{NAME}@champion"


def png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
TEXT = base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """MLflow's database, which knows a published champion; the registry lies beside it."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "ZOO_REGISTRY"):
            patched.delenv(name, raising=False)
        put_empty_store(folder / "mlruns")
        tiny_checkpoint(folder / "best.ckpt")
        published = publish(folder / "best.ckpt", NAME, aliases=["champion"])
        assert published.mlflow_version == 1, published.note
        uri = resolve_store().uri
    mlflow.set_tracking_uri(uri)
    yield folder / "mlruns" / "mlflow.db"
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def loaded(store):
    return mlflow.pyfunc.load_model(CHAMPION)


@pytest.fixture(scope="module")
def of_zoo(store):
    """What `zoo predict` finds in the image."""
    detector = zoo.load(NAME, registry=store.parent / "registry")
    return lambda threshold=None: detector.predict(PNG, threshold).to_dict()


def test_it_gives_the_detections_of_zoo_predict(loaded, of_zoo):
    images = pd.DataFrame({"image": [TEXT, f"data:image/png;base64,{TEXT}"]})
    expected = of_zoo(0.0)
    assert len(expected["detections"]) > 3
    assert loaded.predict(images, params={"threshold": 0.0}) == [expected, expected]
    assert loaded.predict(images) == [of_zoo(), of_zoo()]
    [best] = loaded.predict(images[:1], params={"threshold": 0.0, "max_detections": 2})
    assert best["detections"] == expected["detections"][:2]
    [text] = loaded.predict(images[:1], params={"threshold": 0.0, "as_text": True})
    assert json.loads(text) == expected


def test_addresses_go_through_the_guarded_fetcher_and_paths_are_not_read(
    loaded, of_zoo, monkeypatch, tmp_path
):
    (tmp_path / "a.png").write_bytes(PNG)
    images = ["http://127.0.0.1/a.png", str(tmp_path / "a.png"), f"file://{tmp_path}/a.png", "AAAA", TEXT]
    *refused, found = loaded.predict(pd.DataFrame({"image": images}), params={"threshold": 0.0})
    assert [list(one) for one in refused] == [["error"]] * 4
    assert "127.0.0.1" in refused[0]["error"]
    assert "base64" in refused[1]["error"]
    assert found == of_zoo(0.0)  # one that cannot be read costs the others nothing
    monkeypatch.setattr(pyfunc, "fetch", lambda address: {"https://example.org/a.png": PNG}[address])
    [fetched] = loaded.predict(
        pd.DataFrame({"image": ["https://example.org/a.png"]}), params={"threshold": 0.0}
    )
    assert fetched == found


@pytest.mark.parametrize(
    ("data", "params", "says"),
    [({"picture": [TEXT]}, {}, "image"), ({"image": [TEXT]}, {"threshold": 2.0}, "between 0 and 1"),
     ({"image": [TEXT]}, {"max_detections": 0}, "at least 1")],
)  # fmt: skip
def test_what_is_no_input_is_refused(loaded, data, params, says):
    with pytest.raises(Exception, match=says):
        loaded.predict(pd.DataFrame(data), params=params)


def test_it_has_a_signature_and_an_example_that_works(loaded):
    assert [column.name for column in loaded.metadata.signature.inputs] == ["image"]
    assert [p.name for p in loaded.metadata.signature.params] == ["threshold", "max_detections", "as_text"]
    [found] = loaded.predict(loaded.input_example)
    assert (found["height"], found["width"]) == (48, 64)
    assert loaded.metadata.flavors["python_function"]["loader_module"] == "zoo.serving.pyfunc"


def test_files_that_were_changed_are_not_loaded(store, tmp_path):
    folder = mlflow.artifacts.download_artifacts(CHAMPION, dst_path=str(tmp_path))
    weights = next(tmp_path.rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        mlflow.pyfunc.load_model(folder)


@pytest.mark.slow
def test_mlflow_serves_it(store, of_zoo):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local"]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
    }
    server = subprocess.Popen([*command, "--port", str(port)], env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                    break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.5)
        body = {"dataframe_split": {"columns": ["image"], "data": [[TEXT]]}, "params": {"threshold": 0.0}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer) == {"predictions": [of_zoo(0.0)]}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
