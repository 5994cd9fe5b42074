"""`--batch-size auto`: the largest micro-batch that fits, out of memory only before the first step."""

from types import SimpleNamespace

import pytest
import torch
from tiny_training import COMMAND, assert_equal, folder_of, said, start, torchrun, weights

from zoo.runs import recipes, step_cost
from zoo.runs.console import Console
from zoo.runs.options import batch_size
from zoo.runs.options.batch_size import BatchSearch, fits, largest, parse
from zoo.training.module import DetectionModule


@pytest.mark.parametrize("sizes", [[1], [1, 2], [1, 2, 4, 8, 16], [1, 3, 5, 15], [1, 2, 3, 4, 6, 12]])
def test_the_largest_is_found_by_few_trials(sizes):
    for limit in range(18):
        tried = []
        found = largest(sizes, lambda n, limit=limit: tried.append(n) or n <= limit)  # noqa: B023
        assert found == max([n for n in sizes if n <= limit], default=0)
        assert len(tried) == len(set(tried)) <= len(sizes).bit_length()


@pytest.mark.parametrize(("given", "meant"), [(None, None), ("auto", "auto"), ("8", 8), (4, 4)])
def test_what_may_be_said(given, meant):
    assert parse(given) == meant


@pytest.mark.parametrize("given", ["0", 0, "-1", "all", "2.5", ""])
def test_what_may_not(given):
    with pytest.raises(
        ValueError, match=r"--batch-size is .*; it must be auto, or a whole number of at least 1"
    ):
        parse(given)


def recipe():
    found = recipes.load(recipes.resolve("rt_detr/tiny"))
    found["data"]["init_args"]["input"]["size"] = [64, 64]
    found["computing"] = {"search_batch": True}
    return found


@pytest.fixture
def limited(monkeypatch):
    """A module that has room for three images, and what was tried: (images, size, objects)."""
    tried, losses = [], DetectionModule.losses

    def limit(self, batch):
        tried.append((len(batch), tuple(batch.images.shape[-2:]), max(batch.targets.counts)))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, batch)

    monkeypatch.setattr(DetectionModule, "losses", limit)
    return tried


def test_a_trial_is_a_training_step_of_the_worst_case_and_changes_nothing(limited):
    values = recipe()
    values["model"]["init_args"]["multi_scale"] = [64, 96]
    module = step_cost.trial_module(values)
    module.network.multi_scale = [64, 96]
    before = {n: v.clone() for n, v in module.state_dict().items()}
    state = torch.random.get_rng_state()
    size = step_cost.training_sizes(values)[1]
    device = torch.device("cpu")
    found = largest(
        [1, 2, 4, 8], lambda n: fits(module, n, size, 20, device, torch.no_grad if n < 0 else _nothing)
    )
    assert found == 2
    assert {images for images, *_ in limited} == {2, 4}
    assert {rest for _, *rest in map(list, limited) for rest in [tuple(rest)]} == {((96, 96), 20)}
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert module.network.multi_scale == [64, 96]


def _nothing():
    return torch.autocast("cpu", enabled=False)


class Told(Console):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text="", *, red=False):
        self.lines.append(text)


def searched(monkeypatch, device, memory=None, world=1):
    module = step_cost.trial_module(values := recipe())
    data = SimpleNamespace(batch_size=8, most_objects=lambda: 5)
    trainer = SimpleNamespace(
        world_size=world, strategy=SimpleNamespace(root_device=torch.device(device)),
        precision_plugin=SimpleNamespace(forward_context=_nothing),
    )  # fmt: skip
    monkeypatch.setattr(step_cost, "free_memory", lambda: memory)
    console, done = Told(), []
    search = BatchSearch(values, data, console, lambda: done.append(dict(values["computing"])))
    search.search(trainer, module)
    trainer.world_size = 1
    search.setup(trainer, module, "fit")
    assert done == [{}]
    assert values["data"]["init_args"]["batch_size"] == data.batch_size
    return data.batch_size, console.lines


def test_a_cpu_says_what_it_chose_and_why(monkeypatch):
    number, (line, *norms) = searched(monkeypatch, "cpu", 20_000_000)
    assert number in (1, 2, 4)
    assert line.startswith(f"batch       {number} image")
    assert "estimated on a CPU" in line
    assert "images of 64x64 and 8 objects" in line
    assert norms == ["  batch norms take their statistics over so many images; the recipe has 8 at a time"]
    assert searched(monkeypatch, "cpu", 10**12)[0] == 8
    number, (line,) = searched(monkeypatch, "cpu", None)
    assert (number, "does not tell" in line) == (8, True)
    with pytest.raises(ValueError, match="not one image of 64x64 with 8 objects can be trained on"):
        searched(monkeypatch, "cpu", 1000)


def test_a_gpu_tries(monkeypatch, limited):
    """The device is a CPU that claims to be a card."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * 10**9)
    )
    cpu = torch.device("cpu")
    monkeypatch.setattr(batch_size, "fits", lambda m, n, s, o, device, p: fits(m, n, s, o, cpu, p))
    number, lines = searched(monkeypatch, "cuda")
    assert number == 2
    assert lines[0] == (
        "batch       2 images at a time on a device, 4 times for each step: the most of 1, 2, 4, 8 that fit into nine "
        "tenths of 8.0 GB, tried with images of 64x64 and 8 objects each"
    )


@pytest.mark.slow
def test_two_ranks_agree_and_a_recipe_of_the_run_trains_the_same(tmp_path):
    """Rank 1 has room for less; the recipe that is written has the number, and repeats the run."""
    folder = folder_of(tmp_path)
    patch = (
        "import os, zoo.runs.step_cost as s\n"
        "s.free_memory = lambda: 10**12 if os.environ.get('RANK') == '0' else 1.8e6\n"
        "from zoo.cli.main import main; main()"
    )
    (folder / "limited.py").write_text(patch)
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "limited.py")
    text = said(
        start(folder, *COMMAND, "--computing.search_batch", "true", "--output", "two", launcher=launcher)
    )
    (line,) = [line for line in text.splitlines() if line.startswith("batch  ")]
    written = recipes.load(folder / "two" / "recipe.yaml")
    assert "search_batch" not in written["computing"]
    number = written["data"]["init_args"]["batch_size"]
    assert number == 2
    assert f"{number} image" in line
    two = torchrun("--nproc-per-node", "2")
    said(start(folder, "fit", "-c", "two/recipe.yaml", "--output", "again", launcher=two))
    assert_equal(weights(folder / "two"), weights(folder / "again"))
