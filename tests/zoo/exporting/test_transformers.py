"""Models as folders that transformers loads strictly, with equal numbers, or refused by name."""

import json

import pytest
import torch
from exported_case import certified, data
from hub_models import saved, variants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_families import small_arguments
from transformers import AutoImageProcessor, AutoModelForImageSegmentation, AutoModelForObjectDetection

import zoo
from zoo.cli.main import run_command
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.differences import masks_lost
from zoo.exporting.transformers import export_transformers
from zoo.registry.hugging_face.families import FAMILIES, OtherNetworkError
from zoo.registry.hugging_face.folder import read_folder
from zoo.registry.weights import Released
from zoo.runs import recipes
from zoo.runs.export import check, export
from zoo.training.module import build_module

FAST = (
    "detr masks",
    "deformable refine",
    "deformable two-stage",
    "rt_detr unfrozen",
    "rt_detr_v2",
    "d_fine n",
)
NETWORKS = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in variants()]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr("zoo.runs.export_images.COMPARED", 2)
    monkeypatch.setattr("zoo.exporting.compare.TIMED_RUNS", 1)


def exported(detector, folder):
    """The certificate of a folder, which is checked as a stranger's would be."""
    export_transformers(detector, folder)
    return certificate_of(detector, folder)


def certificate_of(detector, folder):
    return certified(detector, folder, detector.input, None, zoo.Silent())


@pytest.fixture(scope="module")
def detector_of(tmp_path_factory):
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("saved")
            saved(name, folder)
            made[name] = read_folder(folder, name).released
        return Detector.from_released(made[name], name)

    return of


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_loads_the_folder_strictly_and_it_comes_back_to_the_bit(
    name, detector_of, tmp_path, monkeypatch
):
    graded = []
    monkeypatch.setattr(
        "zoo.exporting.compare.masks_lost",
        lambda *both: graded.append(torch.is_grad_enabled()) or masks_lost(*both),
    )
    detector = detector_of(name)
    document = exported(detector, tmp_path)
    assert document["passed"], document["failures"]
    assert (document["masks_lost"] is None) == (name != "detr masks")
    assert set(graded) == ({False} if name == "detr masks" else set())
    auto = AutoModelForImageSegmentation if name == "detr masks" else AutoModelForObjectDetection
    model, told = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "disc", 1: "square", 2: "no"}
    assert model.config.label2id == {"disc": 0, "square": 1, "no": 2}
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    back = read_folder(tmp_path, "back").released
    state = detector.module.evaluation_network.state_dict()
    assert all(torch.equal(back.state[key], value) for key, value in state.items())
    assert back.state.keys() == state.keys()
    assert (back.label_map, back.input) == (detector.label_map, detector.input)


def small(**changes):
    """A detector of the smallest RT-DETR of a recipe, with other arguments."""
    block = {
        "class_path": "zoo.architectures.rt_detr.RtDetrModule",
        "init_args": small_arguments("rt_detr/r18_coco_72e"),
    }
    block["init_args"]["backbone"] |= {"name": "resnet18d"}
    block["init_args"]["encoder"]["num_blocks"] = 3
    for key, value in changes.items():
        part, _, rest = key.partition("__")
        block["init_args"][part][rest] = value
    block["init_args"]["num_classes"] = 3
    return detector_in(block)


def detector_in(block):
    torch.manual_seed(0)
    module = build_module(block, backbone_weights="random").eval()
    labels = LabelMap.contiguous(["a", "b", "c"][: module.num_classes], [7, 3, 12][: module.num_classes])
    module.adopt(labels, InputContract(resize="stretch", size=(64, 64)))
    return Detector(module, "it")


def test_layers_behind_the_evaluated_ones_stay_out(tmp_path):
    detector = small(decoder__num_layers=3, decoder__eval_layers=2)
    document = exported(detector, tmp_path)
    assert document["passed"], document["failures"]
    assert json.loads((tmp_path / "config.json").read_text())["decoder_layers"] == 2


def test_as_many_detections_as_the_model_gives(detector_of, tmp_path):
    """The processor of Deformable DETR gives 100 unless it is told, and no config holds the number."""
    released = released_of(detector_of("deformable two-stage"), top_k=7)
    detector = Detector.from_released(released, "seven")
    document = exported(detector, tmp_path)
    assert document["passed"], document["failures"]
    assert document["detections"]["of_file"] == 2 * 7
    assert "top_k=7" in (tmp_path / "README.md").read_text()


def released_of(detector, **changes):
    """The same weights with other arguments."""
    module = detector.module
    block = module.model_block()
    block["init_args"] |= changes
    return Released(module.evaluation_network.state_dict(), block, detector.label_map, detector.input, {})


def test_ids_of_the_source_and_the_backend_come_back(tmp_path):
    detector = small()
    detector.module.input = detector.input = InputContract(
        resize="stretch", size=(64, 64), backend="pil", padding="step"
    )
    document = exported(detector, tmp_path)
    assert document["passed"], document["failures"]
    back = read_folder(tmp_path, "it").released
    assert back.label_map.source_ids == (7, 3, 12)
    assert back.input == detector.input
    text = (tmp_path / "README.md").read_text()
    assert 'backend="pil"' in text
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"]["0"] = "another"  # trained further by somebody
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_folder(tmp_path, "it").released.label_map.source_ids == (0, 1, 2)


def test_one_changed_weight_label_or_mean_fails_the_certificate(detector_of, tmp_path):
    detector = detector_of("rt_detr unfrozen")
    assert exported(detector, tmp_path)["failures"] == []
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failed():
        found = certificate_of(detector, tmp_path)
        assert not found["passed"]
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        return found

    state = load_file(tmp_path / "model.safetensors")
    for key, block in (
        ("model.backbone.model.encoder.stages.1.layers.0.layer.0.convolution.weight", "backbone.layer2.0"),
        ("model.decoder.layers.1.fc1.bias", "decoder.decoder.layers.1"),
    ):
        save_file(state | {key: state[key] + 1.0}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        found = failed()
        assert "a logit differs" in found["failures"][0]
        assert found["first_difference"].startswith(f"{block}: differs by")
    config = json.loads(before["config.json"])
    config["id2label"] = {"0": "square", "1": "disc", "2": "no"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert failed()["failures"] == [
        "label maps differ: head index 0 is 'disc' in one and 'square' in the other"
    ]
    config["id2label"] = {"0": "disc", "1": "square", "2": "no"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_activation_function": "gelu"}))
    assert failed()["first_difference"].startswith("decoder.decoder.layers.0: differs by")
    threshold = {"chosen_for": "best F1", "split": "val", "all": 0.1, "classes": {"star": 0.2}}
    extra = config["detr_zoo"] | {"thresholds": threshold}
    (tmp_path / "config.json").write_text(json.dumps(config | {"detr_zoo": extra}))
    with pytest.raises(ValueError, match=r"config\.json: .*thresholds\.classes names 'star'"):
        failed()
    of_disc = threshold | {"classes": {"disc": 0.2}}  # which its own id2label does not have
    other = config | {"id2label": {"0": "x", "1": "square", "2": "no"}}
    other["detr_zoo"] = config["detr_zoo"] | {"thresholds": of_disc}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"thresholds\.classes names 'disc', .* or id2label"):
        failed()
    config["detr_zoo"]["source"]["weights_sha256"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "the file was made of weights 0000" in failed()["failures"][0]
    processor = json.loads(before["preprocessor_config.json"])
    processor |= {"do_normalize": True, "image_mean": [0.0, 0.01, 0.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = failed()
    assert "input.mean is [0.0, 0.01, 0.0] in the file, not []" in found["failures"]
    assert any("a pixel of a resized image differs" in failure for failure in found["failures"])
    assert found["first_difference"].startswith("normalised images")
    state.pop(key)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"model\.safetensors: missing keys: model\.decoder\.layers\.1\.mlp\.fc1"
    ):
        failed()


def test_a_folder_is_scored_beside_its_source_and_by_the_evaluator(detector_of, tmp_path, capsys):
    """AP of transformers' own processor, network and detections."""
    detector = detector_of("rt_detr_v2")
    images = data(tmp_path / "data", model=detector)
    document = export(detector, "transformers", tmp_path / "f", data=images)
    assert document["passed"]
    ap = document["scores"]["AP"]
    assert ap["source"] > 0.1
    assert abs(ap["difference"]) <= 1e-4
    assert ap["interval"][0] <= ap["difference"] <= ap["interval"][1]
    assert document["images"]["data"] is not None
    assert json.loads((tmp_path / "f" / "certificate.json").read_text()) == document
    assert "AP on 5 images" in (tmp_path / "f" / "certificate.md").read_text()
    assert "exported" in capsys.readouterr().out
    scores = [zoo.evaluate(one, images, console=zoo.Silent()) for one in (detector, tmp_path / "f")]
    assert scores[0]["AP"] == pytest.approx(scores[1]["AP"], abs=1e-4)
    picture = images / "val" / "0.png"
    mine, theirs = (one.predict(picture, 0.1) for one in (detector, zoo.load(tmp_path / "f")))
    assert len(mine) > 0
    assert theirs.labels == mine.labels
    weights = tmp_path / "f" / "model.safetensors"
    state = load_file(weights)
    key = next(key for key in state if key.endswith("class_embed.1.weight"))
    save_file(state | {key: -state[key]}, weights, metadata={"format": "pt"})
    capsys.readouterr()
    assert run_command(["export", "--check", str(tmp_path / "f")]) == 2
    assert "was made of rt_detr_v2, which is not here" in capsys.readouterr().err
    found = certified(detector, tmp_path / "f", detector.input, images, zoo.Silent())
    assert any(failure.startswith("AP is") for failure in found["failures"])


def test_a_full_disk_names_the_file(detector_of, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    detector = detector_of("rt_detr_v2")
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left on device") as told:
        export(detector, "transformers", tmp_path / "out", console=zoo.Silent())
    assert told.value.filename.endswith("model.safetensors")
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "rt_detr/tiny": "transformers has no backbone 'residual' for rt_detr",
    "rt_detr/mini": "transformers has no backbone 'residual' for rt_detr",
    "deimv2/n_coco_160e": "transformers' class called DEIMv2 is another network",
    "deimv2/atto_coco_500e": "transformers' class called DEIMv2 is another network",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_transformers_does_not_have_is_refused_by_name(key, tmp_path):
    block = recipes.load(recipes.resolve(key))["model"]
    block["init_args"] |= {"num_classes": 3}
    with pytest.raises(OtherNetworkError, match=f"it cannot be exported: .*{REFUSED[key]}"):
        export_transformers(detector_in(block), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder__num_blocks": 1}, "encoder.num_blocks"),
        ({"decoder__learned_queries": True}, "decoder.learned_queries"),
    ],
)
def test_an_argument_without_a_word_is_refused_by_name(changes, told, tmp_path):
    with pytest.raises(OtherNetworkError, match=told):
        export_transformers(small(**changes), tmp_path)


def test_every_published_model_has_a_config_but_those_with_other_activations():
    from zoo.registry.store import builtin_manifest, builtin_manifests

    known = {path: family for family in FAMILIES.values() for path, _ in family.modules.values()}
    refused = set()
    for name, path in builtin_manifests().items():
        block = builtin_manifest(path).to_dict()["model"]
        try:
            known[block["class_path"]].config_of(block["init_args"])
        except (KeyError, OtherNetworkError):
            refused.add(name)
    assert refused == {name for name in builtin_manifests() if ".deim_" in name or name.startswith("deimv2_")}


def test_the_processor_of_the_folder_makes_the_same_pixels(detector_of, tmp_path):
    from zoo.contract.batch import Sample, collate
    from zoo.registry.hugging_face.comparison import drawn_image

    detector = detector_of("detr masks")
    export_transformers(detector, tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for size in ((160, 120), (40, 200), (64, 64)):
        image = drawn_image(*size)
        resized = detector.input.resize_image(image)
        sample = Sample(resized, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 0, size[::-1])
        ours = detector.input.normalize(collate([sample])).images
        theirs = processor(images=image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_long_images_have_another_size_in_transformers_and_that_is_told(detector_of, tmp_path):
    """Its processor does not round the shorter side before it scales the longer one."""
    from zoo.registry.hugging_face.comparison import drawn_image, pixels_apart

    detector = detector_of("detr masks")
    document = exported(detector, tmp_path)
    assert (document["pixels"] < 0.01, document["images_of_another_size"]) == (True, 0)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    long = drawn_image(190, 90)
    seen = processor(images=long, return_tensors="pt")["pixel_values"][0]
    assert pixels_apart(long, detector.input, seen) is None
    assert pixels_apart(drawn_image(), detector.input, seen) == float("inf")


def test_the_command_writes_a_whole_folder_or_only_its_certificate(
    detector_of, tmp_path, capsys, monkeypatch
):
    detector = detector_of("rt_detr_v2")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ValueError, match="is not empty; give another --output"):
        export(detector, "transformers", tmp_path / "used")
    with pytest.raises(ValueError, match="--raw is not for --to transformers"):
        export(detector, "transformers", tmp_path / "g", raw=True)
    monkeypatch.setattr("zoo.exporting.certificate.LARGEST_SHADE", -1.0)
    document = export(detector, "transformers", tmp_path / "g")
    assert not document["passed"]
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"certificate.json", "certificate.md"}
    assert "refused" in capsys.readouterr().out


def test_a_folder_is_checked_again_against_the_model_that_it_names(detector_of, tmp_path, capsys):
    from zoo.registry.pull import pull

    saved("rt_detr_v2", tmp_path / "saved")
    pull(f"hf:{tmp_path / 'saved'}", registry=tmp_path / "r", name="mine")
    export("mine", "transformers", tmp_path / "f", registry=tmp_path / "r")
    assert check(tmp_path / "f", registry=tmp_path / "r", output=tmp_path / "new")["passed"]
    assert (tmp_path / "new" / "certificate.md").is_file()
    capsys.readouterr()
    certificate = json.loads((tmp_path / "f" / "certificate.json").read_text())
    certificate["files"][0]["sha256"] = "0" * 64
    (tmp_path / "f" / "certificate.json").write_text(json.dumps(certificate))
    assert not check(tmp_path / "f", registry=tmp_path / "r")["passed"]
    assert "is not the one of the certificate beside it" in capsys.readouterr().out
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    del config["detr_zoo"]["source"]
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: its facts break a rule: .*source"):
        check(tmp_path / "f", "mine", registry=tmp_path / "r")
    with pytest.raises(ValueError, match=r"was not written by zoo export as it is now; zoo pull hf:/"):
        zoo.load(tmp_path / "saved")
