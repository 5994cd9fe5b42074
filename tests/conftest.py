"""Every test has its own working directory, a fixed seed, one torch thread, and no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ctrl_c import pytest_runtest_teardown, pytest_sessionstart  # noqa: F401  hooks
from empty_store import copied
from nursery import Nursery

import zoo
from zoo.tracking import backend

ROOT = Path(__file__).resolve().parents[1]
# what a developer's shell may hold and no test may see
FOREIGN = ("MLFLOW_TRACKING_URI", "ZOO_REGISTRY", "ZOO_RUN_FOLDER", "ZOO_DEBUG")
LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname()}


def pytest_configure() -> None:
    here = Path(zoo.__file__).resolve()
    assert here.is_relative_to(ROOT), (
        f"the tests would test {here}, not this checkout; install it with pip install -e ."
    )
    torch.set_num_threads(1)
    backend._touch = copied


NURSERY = pytest.StashKey[Nursery]()


def pytest_collection_finish(session: pytest.Session) -> None:
    if any("nursery" in getattr(item, "fixturenames", ()) for item in session.items):
        session.stash[NURSERY] = Nursery()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if NURSERY in session.stash:
        session.stash[NURSERY].close()


@pytest.fixture(scope="session")
def nursery(request: pytest.FixtureRequest) -> Nursery:
    """Forks processes that have imported what the tests have, and computed nothing."""
    return request.session.stash[NURSERY]


@pytest.fixture(scope="session")
def answers_of_two_ranks(nursery: Nursery) -> Callable[..., dict[int, Any]]:
    """`Nursery.answers_of_two_ranks`."""
    return nursery.answers_of_two_ranks


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo_cache"))
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out of this machine fails at once, with the address it wanted."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOOPBACK and not str(name).startswith("127."):
            raise OSError(f"tests have no network; something wants to reach {host!r}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            refuse(address[0])
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != getattr(socket, "AF_UNIX", None):
            refuse(address[0])
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        refuse(host)
        return getaddrinfo(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    folder = Path(os.environ.get("ZOO_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ZOO_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of official numbers; named by GOLDEN_DIR it must exist, otherwise the test is skipped."""
    named = os.environ.get("GOLDEN_DIR")
    folder = Path(named or ROOT.parent / "shared" / "golden")
    if not folder.is_dir():
        assert not named, f"GOLDEN_DIR is {folder}, which does not exist"
        pytest.skip(f"no golden data at {folder}; set GOLDEN_DIR")
    return folder
