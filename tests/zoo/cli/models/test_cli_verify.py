"""`zoo verify` is green on what is equal, red on what is not, and its page shows its table."""

import inspect
import json
import textwrap
from pathlib import Path

import msgspec
import pytest
import torch

import zoo.architectures.deformable_detr as deformable_detr
import zoo.architectures.detr as detr
import zoo.contract.preprocess
import zoo.layers.distribution as distribution
import zoo.layers.distribution_decoder as distribution_decoder
import zoo.layers.gated_decoder as gated_decoder
import zoo.layers.hybrid_encoder as hybrid_encoder
import zoo.layers.mask_head as mask_head
import zoo.layers.position as position
import zoo.layers.sum_encoder as sum_encoder
import zoo.prediction.masks
import zoo.training.criterion
import zoo.training.distribution_losses as distribution_losses
import zoo.training.losses
import zoo.training.overlap_matching as overlap_matching
from zoo.cli.main import run_command
from zoo.cli.models.verifying import readme_table
from zoo.contract.labels import LabelMap
from zoo.registry import store
from zoo.registry.manifest import Manifest, parse_manifest
from zoo.registry.store import LocalRegistry, with_files
from zoo.registry.weights import save_weights
from zoo.runs import recipes
from zoo.training.module import build_module
from zoo.verification.cases import COMMITTED, find_cases
from zoo.verification.proof import cases_of, copied_cases, families, prove, structure_files

ROOT = Path(__file__).resolve().parents[4]
FAMILIES = ("deformable_detr", "deimv2", "detr", "dfine", "rt_detr", "rt_detrv2")
TABLE_HEADER = "| family | official code | compared | cases | numbers | result |"


def only(folder: Path, *cases: str) -> Path:
    """A directory of official numbers with these cases alone."""
    for case in cases:
        target = folder / case
        target.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".npz", ".json"):
            target.with_name(target.name + suffix).symlink_to(COMMITTED / f"{case}{suffix}")
    for family in {case.partition("/")[0] for case in cases}:  # weights of a backbone lie beside its cases
        for path in (COMMITTED / family).glob("weights_*.npz"):
            (folder / family / path.name).symlink_to(path)
    if not (folder / "shared").exists():
        (folder / "shared").symlink_to(COMMITTED / "shared")
    return folder


def tiny_model() -> dict:
    return recipes.load(recipes.resolve("rt_detr/tiny"))["model"]


def tiny_manifest(**changes) -> Manifest:
    plain = {
        "name": "rt_detr_tiny.shapes",
        "version": 1,
        "family": "rt_detr",
        "license": "Apache-2.0",
        "model": tiny_model(),
        "label_map": LabelMap.contiguous(["a", "b", "c", "d"], [1, 2, 3, 4]).to_dict(),
        "input": {"resize": "stretch", "size": [64, 64]},
        "files": [{"path": "model.safetensors", "size": 10, "sha256": "a" * 64}],
        "origin": {"kind": "trained"},
        "trained_by": {"code": "detr-zoo"},
        "data": {"name": "shapes", "split": "train"},
        "created": "2026-01-01",
    }
    return parse_manifest(msgspec.json.encode({**plain, **changes}))


def page_rows() -> list[str]:
    text = (ROOT / "zoo" / "verification" / "README.md").read_text()
    rows = text[text.index(TABLE_HEADER) :].split("\n\n")[0].splitlines()
    return rows[2:]


def test_every_family_of_the_zoo_has_a_proof():
    modules = (p.stem for p in (ROOT / "zoo" / "architectures").glob("[a-z]*.py"))
    assert tuple(families()) == tuple(sorted(modules)) == FAMILIES


@pytest.mark.parametrize(
    ("family", "case"),
    [
        ("detr", "detr/criterion_single"),
        ("deformable_detr", "deformable/criterion_all_empty"),
        ("rt_detr", "rtdetr/criterion_no_dn"),
    ],
)
def test_a_directory_of_official_numbers_that_agree_is_green(tmp_path, capsys, family, case):
    golden = only(tmp_path / "golden", case)
    assert run_command(["verify", family, "--golden", str(golden), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    [proof] = document["proofs"]
    assert document["passed"] is proof["passed"] is True
    [subject] = proof["subjects"]
    assert subject["cases"] == [case]
    assert " @ " in subject["source"]
    assert 0 <= subject["largest_difference"] <= subject["tolerance"]


def reworded(function, line, slip):
    """`function` with one line written otherwise."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line) == 1
    found = {}
    exec(source.replace(line, slip), function.__globals__, found)
    return found[function.__name__]


# one line of the criterion, the position encoding, the resize rule, as a slip would change it
def giou_as_l1(self, matches):
    return matches.sum_per_layer(matches.overlaps[1])


def unmatched_weigh_one(self, counts, queries):
    return len(counts) * queries


def moved(encoding):
    return lambda *arguments, **options: encoding(*arguments, **options).roll(1, dims=-1)


def rounded_up(height, width, shortest, longest):
    found = position_of_rule(height, width, shortest, longest)
    return found[0] + 1, found[1]


def doubled_dice(x, masks):
    (focal, dice), gradients = losses_of_pixels(x, masks)
    return (focal, 2 * dice), gradients


def softmax_per_head(self, queries, memory, padding):
    return attention_of_queries(self, queries, memory, padding) * self.num_heads


def unmerged(candidates):
    return torch.arange(len(candidates))


# of D-FINE's criterion
def objects_instead_of_pairs(found, objects, step, device):
    return float(step.num_boxes)


def next_bin(distances, weighting):
    bins = bins_of_distances(distances, weighting)
    return bins._replace(left=(bins.left + 1).clamp(max=len(weighting) - 2))


def not_rooted(sides, step):
    return torch.as_tensor(float(sides))


def at_temperature_one(corners, temperature=5.0):
    return distillation_at(corners, 1.0)


# and of its decoder
def gate_swapped(self, content, found):
    return gate_of(self, found, content)


def quality_left_out(self, logits, corners):
    return logits


def reach_without_half(reference, distances, reg_scale):
    return boxes_of_distances(reference, distances - 0.5 * reg_scale, reg_scale)


def bins_reversed(corners, weighting):
    return mean_of_distances(corners, weighting.flip(0))


def positions_moved(self, reference, before):
    return positions_of(self, reference, before) + 1e-3


def evenly_spaced(bins, reg_scale, up=0.5):
    return torch.linspace(-2 * up * reg_scale, 2 * up * reg_scale, bins, dtype=torch.float64)


# of DEIMv2's criterion and network
def target_without_power(self, logits, matched, quality):
    return matchability_of(self, logits, matched, quality ** (1 / self.gamma))


def norm_of_mean(self, x):
    return torch.nn.functional.layer_norm(x, self.scale.shape, self.scale)


def halves_swapped(self, x):
    values, gates = self.w12(x).chunk(2, -1)
    return self.w3(torch.nn.functional.silu(gates) * values)


def position_in_every_layer(self, reference, before):
    return positions_of(self, reference, None)


def mean_left_out(self, x):
    return self.cv(x)


matchability_of = zoo.training.losses.MatchabilityAware.__call__
bins_of_distances = distribution.bins_of
distillation_at = distribution_losses.distillation
gate_of = distribution_decoder.Gate.forward
boxes_of_distances = distribution.boxes_around
mean_of_distances = distribution.expected_distances
REFINING = distribution_decoder.DistributionDecoder
positions_of = REFINING.positions
losses_of_pixels = zoo.training.losses._losses_of_pixels
attention_of_queries = mask_head.AttentionMap.forward
position_of_rule = zoo.contract.preprocess.shortest_side_size

SLIPS = [
    ("detr", "detr/criterion_single", zoo.training.criterion.GiouTerm, "__call__", giou_as_l1),
    ("detr", "detr/criterion_varied", detr.SoftmaxLabelTerm, "weight_sum", unmatched_weigh_one),
    ("detr", "detr/forward_r50_dc5", detr, "sine_2d", moved(position.sine_2d)),
    ("detr", "detr/mask_losses", zoo.training.losses, "_losses_of_pixels", doubled_dice),
    ("detr", "detr/forward_r50_panoptic", mask_head.AttentionMap, "forward", softmax_per_head),
    ("detr", "detr/postprocess_panoptic_duplicate_stuff", zoo.prediction.masks, "_first_of_stuff", unmerged),
    ("detr", "detr/preprocess_sizes", zoo.contract.preprocess, "shortest_side_size", rounded_up),
    ("deformable_detr", "deformable/criterion_varied", zoo.training.criterion.GiouTerm, "__call__", giou_as_l1),
    (
        "deformable_detr", "deformable/forward_single_scale", deformable_detr, "sine_2d",
        moved(position.sine_2d),
    ),
    ("deformable_detr", "detr/preprocess_sizes", zoo.contract.preprocess, "shortest_side_size", rounded_up),
    ("deimv2", "deimv2/criterion_atto_late_matcher", zoo.training.criterion.GiouTerm, "__call__", giou_as_l1),
    (
        "deimv2", "deimv2/criterion_atto_late_matcher", zoo.training.losses.MatchabilityAware, "__call__",
        target_without_power,
    ),
    (
        "deimv2", "deimv2/criterion_n_late_matcher", overlap_matching.OverlapMatcher, "cost",
        reworded(overlap_matching.OverlapMatcher.cost, "overlap**self.power", "overlap*self.power"),
    ),
    ("deimv2", "deimv2/train_steps_n", distribution_decoder.Gate, "forward", gate_swapped),
    ("deimv2", "deimv2/criterion_n_same_corners", zoo.training.criterion, "pairs_of_step", objects_instead_of_pairs),
    ("deimv2", "deimv2/criterion_n_same_corners", distribution_losses, "_root", not_rooted),
    ("deimv2", "deimv2/forward_atto", gated_decoder.RmsNorm, "forward", norm_of_mean),
    ("deimv2", "deimv2/forward_atto", gated_decoder.SwishFeedForward, "forward", halves_swapped),
    ("deimv2", "deimv2/forward_atto", gated_decoder.GatedDecoder, "positions", position_in_every_layer),
    ("deimv2", "deimv2/forward_atto", sum_encoder.PooledMean, "forward", mean_left_out),
    ("deimv2", "deimv2/forward_atto", distribution.LocationQuality, "forward", quality_left_out),
    ("deimv2", "deimv2/forward_atto", distribution_decoder, "boxes_around", reach_without_half),
    ("dfine", "dfine/criterion_no_dn", zoo.training.criterion.GiouTerm, "__call__", giou_as_l1),
    ("dfine", "dfine/criterion_no_dn", zoo.training.criterion, "pairs_of_step", objects_instead_of_pairs),
    ("dfine", "dfine/criterion_no_dn", distribution_losses, "bins_of", next_bin),
    ("dfine", "dfine/criterion_no_dn", distribution_losses, "weighting_function", evenly_spaced),
    ("dfine", "dfine/criterion_no_dn", distribution_losses, "_root", not_rooted),
    ("dfine", "dfine/criterion_no_dn", distribution_losses, "distillation", at_temperature_one),
    ("dfine", "dfine/forward_n", distribution_decoder.Gate, "forward", gate_swapped),
    ("dfine", "dfine/forward_n", distribution.LocationQuality, "forward", quality_left_out),
    ("dfine", "dfine/forward_n", distribution_decoder, "boxes_around", reach_without_half),
    ("dfine", "dfine/forward_n", distribution_decoder, "expected_distances", bins_reversed),
    ("dfine", "dfine/forward_n", distribution_decoder, "weighting_function", evenly_spaced),
    ("dfine", "dfine/forward_n", REFINING, "positions", positions_moved),
    *(
        (family, case, REFINING, method.__name__, reworded(method, line, slip))
        for family, forward, steps in (
            ("dfine", "dfine/forward_n", "dfine/train_steps_n"),
            ("deimv2", "deimv2/forward_atto", "deimv2/train_steps_n"),
        )
        for case, method, line, slip in (
            (steps, REFINING.refine, "initial = boxes.detach()", "initial = boxes"),
            (steps, REFINING.refine, "= content.detach(), boxes.detach()", "= content, boxes.detach()"),
            (steps, REFINING.predict, "(denoising.labels), content]", "(denoising.labels).detach(), content]"),
            (forward, REFINING.forward, "Predictions(last.logits, last.boxes)", "Predictions(*refinement.first[:2])"),
        )
    ),
    ("rt_detr", "rtdetr/criterion_no_dn", zoo.training.criterion.GiouTerm, "__call__", giou_as_l1),
    ("rt_detr", "rtdetr/forward_r18_eval_idx1", hybrid_encoder, "sincos_2d", moved(position.sincos_2d)),
    (
        "rt_detr", "rtdetr/preprocess_val", zoo.contract.preprocess.InputContract, "resized_size",
        lambda self, height, width: (self.size[0], self.size[1] + 32),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "case", "where", "name", "slip"), SLIPS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_one_changed_line_is_red(tmp_path, capsys, monkeypatch, family, case, where, name, slip):
    own = {"deformable_detr": "deformable/lr_schedule"}.get(family)
    golden = only(tmp_path / "golden", *([own] if own else []), case)
    monkeypatch.setattr(where, name, slip)
    assert run_command(["verify", family, "--golden", str(golden)]) == 1
    said = capsys.readouterr()
    failed = [line for line in said.out.splitlines() if line.endswith("FAIL") or line.startswith("  FAIL")]
    assert len(failed) >= 2
    assert all(row.endswith("pass") for row in said.out.splitlines() if row.startswith("schedule"))
    assert said.err.startswith("error: not equal")


def test_red_is_a_colour_on_a_terminal(tmp_path, capsys, monkeypatch):
    golden = only(tmp_path / "golden", "rtdetr/criterion_no_dn")
    monkeypatch.setattr(zoo.training.criterion.GiouTerm, "__call__", giou_as_l1)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert run_command(["verify", "rt_detr", "--golden", str(golden)]) == 1
    assert "\x1b[31mmatching and losses" in capsys.readouterr().out


def test_a_directory_without_numbers_is_an_error_and_no_pass(tmp_path, capsys):
    assert run_command(["verify", "detr", "--golden", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no official numbers in")


def test_no_name_and_a_wrong_name(capsys):
    assert run_command(["verify"]) == 2
    assert "--all" in capsys.readouterr().err
    assert run_command(["verify", "deformable_detr_r5"]) == 2
    assert "did you mean 'deformable_detr_r50'" in capsys.readouterr().err


@pytest.fixture
def registered(tmp_path, monkeypatch) -> Path:
    """A registered tiny RT-DETR with real weights; one quick case as the proof of its family."""
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry"))

    def make(folder):
        save_weights(build_module(tiny_model()).network.state_dict(), folder / "model.safetensors")
        return with_files(tiny_manifest(), folder)

    LocalRegistry().add(make, "rt_detr_tiny.shapes")
    only(tmp_path / "golden", "rtdetr/criterion_no_dn")
    return tmp_path / "registry" / "rt_detr_tiny.shapes" / "1"


def test_a_registered_model_is_hashed_and_a_damaged_file_fails(registered, tmp_path, capsys):
    command = ["verify", "rt_detr_tiny.shapes", "--golden", str(tmp_path / "golden"), "--json"]
    assert run_command(command) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(f["path"], f["passed"]) for f in files] == [("manifest.yaml", True), ("model.safetensors", True)]
    weights = registered / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run_command(command) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert not document["passed"]
    assert document["proofs"][0]["passed"]
    assert "sha256" in document["files"][1]["fault"]
    assert "FAIL" in said.err
    (registered / "manifest.yaml").write_text("name: [")
    assert run_command(command) == 2
    assert "not plain YAML" in capsys.readouterr().err


def test_a_pulled_model_is_hashed_and_compared_with_the_packages_manifest(tmp_path, monkeypatch, capsys):
    golden = only(tmp_path / "golden", "rtdetr/criterion_no_dn")
    command = ["verify", "rt_detr_r18", "--golden", str(golden), "--json"]
    assert run_command(command) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["files"] is None
    assert "not pulled" in said.err
    folder = Path(tmp_path / "zoo_cache" / "rt_detr_r18.coco_72e" / "1")
    folder.mkdir(parents=True)
    save_weights({"x": torch.ones(1)}, folder / "model.safetensors")
    ours = store.read_manifest(store.builtin_manifests()["rt_detr_r18.coco_72e"])
    (folder / "manifest.yaml").write_text(with_files(ours, folder).to_yaml())
    assert run_command(command) == 0
    assert all(f["passed"] for f in json.loads(capsys.readouterr().out)["files"])
    other = with_files(tiny_manifest(name="rt_detr_r18.coco_72e"), folder)
    (folder / "manifest.yaml").write_text(other.to_yaml())
    assert run_command(command) == 1
    assert "differs from this package's in model" in json.loads(capsys.readouterr().out)["files"][0]["fault"]


def test_the_table_of_the_readme_names_every_committed_case():
    """Without running them; that each is equal is what the slow test below and tests/golden show."""
    counts = {}
    for row in page_rows():
        family, _, subject, cases, _, result = (cell.strip() for cell in row.strip("|").split("|"))
        counts[family] = counts.get(family, 0) + int(cases)
        assert result == "equal"
        assert subject
    assert set(counts) == set(FAMILIES)
    for family in FAMILIES:
        cases = cases_of(family)
        own = len(find_cases(COMMITTED, cases.folder))
        structures = len(structure_files(cases, COMMITTED))
        assert counts[family] == own + structures + len(copied_cases(cases, COMMITTED))


@pytest.mark.slow
def test_every_family_passes_and_the_table_of_the_readme_is_what_the_command_prints(capsys):
    proofs = [prove(family) for family in families()]
    for proof in proofs:
        assert proof.passed, [f for s in proof.subjects for f in s.failures]
    assert readme_table(proofs).splitlines()[2:] == page_rows()
