"""What `zoo serve` says before it serves, and what it refuses in one line."""

import socket

import pytest

from zoo.cli.main import run_command


@pytest.fixture
def refused(capsys):
    def run(*arguments):
        code = run_command(["serve", "tiny", *arguments])
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (2, 1), said
        return said

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "--device tpu: "),
        (["--device", "cpu,cuda:77"], "--device cuda:77: "),
        (["--cors", "example.org"], "an origin is a scheme and host"),
        (["--cors", "https://example.org/page"], "an origin is a scheme and host"),
        (["--host", "0.0.0.0"], "give --keys FILE or set ZOO_API_KEYS"),
        (["--host", "nohost.invalid"], "--host nohost.invalid: cannot listen there: no machine of"),
        (["--host", "a" * 70 + ".example"], "cannot listen there: no machine of this name is known"),
        (["--keys", "/nowhere/keys"], "/nowhere/keys: No such file"),
        (["--port", "0"], "no model is called 'tiny'"),
        (["a=./nothing.onnx", "--port", "0"], "no model is called 'tiny'"),
        (["tiny"], "two models are called 'tiny'; tell them apart: zoo serve a=tiny b=tiny"),
        (["a=X", "a=Y Z"], "two models are called 'a'; tell them apart: zoo serve a=X b='Y Z'"),
        (["./x/tiny.ckpt"], "tell them apart: zoo serve a=tiny b=./x/tiny.ckpt"),
    ],
)
def test_it_is_refused_in_one_line(refused, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path))
    monkeypatch.delenv("ZOO_API_KEYS", raising=False)
    assert said in refused(*arguments)


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = refused("--port", str(other.getsockname()[1]))
    assert "Address already in use; --port 0 takes a free one" in said
