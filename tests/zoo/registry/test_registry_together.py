"""Many processes, and machines, at one registry; some are killed. Nothing half is seen, and nothing is left over."""

import contextlib
import functools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from registry_case import safetensors_bytes, tiny_manifest

from zoo.registry import pull as pulling
from zoo.registry.pull import pull
from zoo.registry.store import LocalRegistry, verify_folder, with_files
from zoo.storage import staging
from zoo.storage.staging import put_in_place, resumable, staged

NAME = "rt_detr_tiny.shapes"
PULLERS = 4


def add(root, value, slowly=0.0):
    def make(folder):
        content = safetensors_bytes(value)
        with open(folder / "model.safetensors", "wb") as file:
            file.write(content[:20])
            file.flush()
            time.sleep(slowly)
            file.write(content[20:])
        return with_files(tiny_manifest(name=NAME), folder)

    return LocalRegistry(root).add(make, NAME)


def publish(root, first, number, machine=None):
    """Numbers of the versions that were added; as another machine, if one is named."""
    if machine is not None:
        staging._machine = lambda: machine
        staging.one_at_a_time = None
    store, added = LocalRegistry(root), []
    for value in range(first, first + number):
        added.append(add(root, value, slowly=0.001).version)
        store.set_alias(NAME, "champion", added[-1])
    return added


def killed(root, times):
    """Publishes in processes that are killed; (how many, those that were in the middle of it)."""
    random.seed(0)
    for _ in range(times):
        child = os.fork()
        if not child:
            while True:
                add(root, 0.5, slowly=0.004)
        time.sleep(random.uniform(0.005, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return times


def read(root, stop):
    """Reads until `stop` versions are there; every version that is seen is whole."""
    store, seen = LocalRegistry(root), 0
    until = time.monotonic() + 60
    while seen < stop and time.monotonic() < until:
        for name in store.names():
            versions = store.versions(name)
            seen = len(versions)
            for version in versions[-2:]:
                found = store.manifest(pulling_reference(f"{name}:{version}"))
                verify_folder(store.folder(name, version), found)
            for version in store.aliases(name).values():
                assert version in store.versions(name)
    return seen


def pulling_reference(text):
    from zoo.registry.names import parse_reference

    return parse_reference(text)


def left_over(root):
    names = [p.name for p in Path(root).rglob("*")]
    return [
        n for n in names if n.startswith((".staging", ".model")) or n.endswith((".tmp", ".part")) or "@" in n
    ]


def test_publishers_readers_and_kills_at_one_name(tmp_path, nursery):
    works = [functools.partial(publish, tmp_path, 100 * n, 8) for n in range(3)]
    works += [functools.partial(killed, tmp_path, 15), functools.partial(read, tmp_path, 24)]
    *added, kills, seen = nursery.answers(works)
    numbers = [n for some in added for n in some]
    assert len(set(numbers)) == 24
    assert all(some == sorted(some) for some in added)
    assert (kills, seen >= 24) == (15, True)
    store = LocalRegistry(tmp_path)
    assert store.versions(NAME) == list(range(1, max(store.versions(NAME)) + 1))
    add(tmp_path, 7.0)
    assert left_over(tmp_path) == []


def test_machines_whose_locks_do_not_reach_each_other(tmp_path, nursery):
    works = [functools.partial(publish, tmp_path, 100 * n, 8, f"machine{n}") for n in range(3)]
    numbers = [n for some in nursery.answers(works) for n in some]
    assert sorted(numbers) == list(range(1, 25))
    assert left_over(tmp_path) == []


def test_a_number_that_half_a_version_has_is_not_given_again(tmp_path):
    """As an older version, or a copy that was cut, left it."""
    (tmp_path / NAME / "3").mkdir(parents=True)
    assert add(tmp_path, 1.0).version == 4
    (tmp_path / NAME / "7").mkdir()
    (tmp_path / NAME / "7" / "model.safetensors").touch()
    assert add(tmp_path, 1.0).version == 8
    assert LocalRegistry(tmp_path).versions(NAME) == [4, 8]


def pull_it(address, root, locks):
    if not locks:
        pulling.one_at_a_time = _no_lock
        pulling.resumable = _when_all_have_looked
    return pull(address, registry=root).manifest.version


class _no_lock:
    def __init__(self, path):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass


@contextlib.contextmanager
def _when_all_have_looked(parent, name):
    """None of them has seen the version of another."""
    (parent / f"{os.getpid()}.lock").touch()
    until = time.monotonic() + 60
    while len(list(parent.glob("*.lock"))) < PULLERS and time.monotonic() < until:
        time.sleep(0.01)
    with resumable(parent, name) as place:
        yield place


@pytest.mark.parametrize("locks", [True, False])
def test_a_model_that_many_pull_at_once_is_one_version(tmp_path, nursery, locks):
    add(tmp_path / "theirs", 3.0)
    address = (tmp_path / "theirs" / NAME / "1" / "manifest.yaml").as_uri()
    works = [functools.partial(pull_it, address, tmp_path / "mine", locks) for _ in range(PULLERS)]
    assert nursery.answers(works) == [1] * PULLERS
    assert LocalRegistry(tmp_path / "mine").versions(NAME) == [1]
    assert left_over(tmp_path / "mine") == []


def test_what_ended_processes_left_is_removed_and_that_of_others_stays(tmp_path, monkeypatch):
    living, old, foreign = os.getppid(), "dead", "elsewhere-7-7-1"
    mine = staging._machine()
    start = staging._start_of(living)
    for owner in (f"{mine}-999999999-5", f"{mine}-{living}-{start}", f"{mine}-{living}-1", old, foreign):
        (tmp_path / f".staging-{owner}.{'0' * 8}").mkdir()
    long_ago = time.time() - 2 * 3600
    os.utime(tmp_path / f".staging-{old}.{'0' * 8}", (long_ago, long_ago))
    with staged(tmp_path) as folder:
        assert folder.is_dir()
        there = {p.name for p in tmp_path.iterdir()} - {folder.name}
    assert there == {f".staging-{mine}-{living}-{start}.{'0' * 8}", f".staging-{foreign}.{'0' * 8}"}
    assert not folder.exists()


def test_parts_of_a_failed_attempt_are_found_again_and_those_of_a_living_one_are_not(tmp_path):
    def fail():
        with resumable(tmp_path, "a.b") as place:
            (place / "x.part").write_bytes(b"1")
            raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        fail()
    with resumable(tmp_path, "a.b") as place:
        assert [p.name for p in place.iterdir()] == ["x.part"]
        with resumable(tmp_path, "a.b") as other, resumable(tmp_path, "a.bc") as another:
            assert not list(other.iterdir()) + list(another.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_that_is_whole_stays(tmp_path, whole):
    for name, text in (("new", "1"), ("there", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    put_in_place(tmp_path / "new", tmp_path / "there", lambda folder: whole)
    assert (tmp_path / "there" / "file").read_text() == ("0" if whole else "1")
    assert not list(tmp_path.glob("*.old"))
