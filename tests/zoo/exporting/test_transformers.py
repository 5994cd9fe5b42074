"""Models as folders that transformers loads strictly, with equal numbers, or refused by name."""

import json

import pytest
import torch
from hub_models import saved, variants
from tiny_families import small_arguments
from transformers import AutoImageProcessor, AutoModelForImageSegmentation, AutoModelForObjectDetection

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.transformers import certified, class_of, export_transformers
from zoo.registry.hugging_face.families import FAMILIES, OtherNetworkError
from zoo.registry.hugging_face.folder import read_folder
from zoo.runs import recipes
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
def test_transformers_loads_the_folder_strictly_and_it_comes_back_to_the_bit(name, detector_of, tmp_path):
    detector = detector_of(name)
    document = export_transformers(detector, tmp_path)
    assert document["passed"], document["failures"]
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
    document = export_transformers(detector, tmp_path)
    assert document["passed"], document["failures"]
    assert json.loads((tmp_path / "config.json").read_text())["decoder_layers"] == 2


def test_ids_of_the_source_and_the_backend_come_back(tmp_path):
    detector = small()
    detector.module.input = detector.input = InputContract(
        resize="stretch", size=(64, 64), backend="pil", padding="step"
    )
    document = export_transformers(detector, tmp_path)
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
    from safetensors.torch import load_file, save_file

    detector = detector_of("rt_detr unfrozen")
    export_transformers(detector, tmp_path)
    _, architecture = class_of(detector)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failures():
        from zoo.registry.hugging_face.comparison import drawn_image

        found = certified(detector, tmp_path, architecture, [drawn_image()])["failures"]
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        return found

    assert failures() == []
    state = load_file(tmp_path / "model.safetensors")
    key = next(key for key in state if key.endswith("decoder.layers.1.fc1.bias"))
    state[key][0] += 1.0
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "logits differ" in failures()[0]
    config = json.loads(before["config.json"])
    config["id2label"] = {"0": "square", "1": "disc", "2": "no"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert failures() == ["id2label is another label map"]
    processor = json.loads(before["preprocessor_config.json"])
    processor |= {"do_normalize": True, "image_mean": [0.0, 0.01, 0.0], "image_std": [1.0, 1.0, 1.0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert "pixels differ" in failures()[0]
    state = load_file(tmp_path / "model.safetensors")
    state.pop(key)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert f"missing keys: ['{key.replace('.fc1', '.mlp.fc1')}']" in failures()


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


def test_long_images_have_another_size_in_transformers_and_that_is_told(detector_of, tmp_path, capsys):
    """Its processor does not round the shorter side before it scales the longer one."""
    from zoo.registry.hugging_face.comparison import drawn_image
    from zoo.runs.to_transformers import to_transformers

    (tmp_path / "images").mkdir()
    drawn_image(190, 90).save(tmp_path / "images" / "long.png")
    drawn_image().save(tmp_path / "images" / "other.png")
    document = to_transformers(detector_of("detr masks"), tmp_path / "f", data=tmp_path / "images")
    assert document["passed"]
    assert document["differences"]["other_sizes"] == 1
    assert "1 of them are so long" in capsys.readouterr().out


def test_the_command_writes_a_whole_folder_or_only_its_certificate(
    detector_of, tmp_path, monkeypatch, capsys
):
    from zoo.exporting import transformers as exporting
    from zoo.registry.hugging_face.comparison import drawn_image
    from zoo.runs.export import export

    (tmp_path / "images").mkdir()
    drawn_image().save(tmp_path / "images" / "a.png")
    drawn_image(90, 140).save(tmp_path / "images" / "b.png")
    document = export(detector_of("rt_detr_v2"), "transformers", tmp_path / "f", data=tmp_path / "images")
    assert document["differences"]["images"] == 2
    assert json.loads((tmp_path / "f" / "certificate.json").read_text()) == document
    assert "exported" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not empty; give another --output"):
        export(detector_of("rt_detr_v2"), "transformers", tmp_path / "f")
    with pytest.raises(ValueError, match="--raw is not for --to transformers"):
        export(detector_of("rt_detr_v2"), "transformers", tmp_path / "g", raw=True)
    monkeypatch.setattr(exporting, "LIMIT", -1.0)
    document = export(detector_of("rt_detr_v2"), "transformers", tmp_path / "g")
    assert not document["passed"]
    assert not (tmp_path / "g" / "model.safetensors").exists()
    assert "refused" in capsys.readouterr().out


def test_a_folder_is_checked_again_against_the_model_that_its_certificate_names(
    detector_of, tmp_path, capsys
):
    from zoo.registry.pull import pull
    from zoo.runs.export import check, export

    saved("rt_detr_v2", tmp_path / "saved")
    pull(f"hf:{tmp_path / 'saved'}", registry=tmp_path / "r", name="mine")
    export("mine", "transformers", tmp_path / "f", registry=tmp_path / "r")
    assert check(tmp_path / "f", registry=tmp_path / "r")["passed"]
    capsys.readouterr()
    certificate = json.loads((tmp_path / "f" / "certificate.json").read_text())
    certificate["file"]["sha256"] = "0" * 64
    (tmp_path / "f" / "certificate.json").write_text(json.dumps(certificate))
    assert not check(tmp_path / "f", registry=tmp_path / "r")["passed"]
    assert "the weights are not those of the certificate" in capsys.readouterr().out
    for text, told in (("[]", "it holds a list"), ("{}", "has no source.name")):
        (tmp_path / "f" / "certificate.json").write_text(text)
        with pytest.raises(ValueError, match=rf"certificate\.json.* {told}"):
            check(tmp_path / "f", registry=tmp_path / "r")
    (tmp_path / "f" / "certificate.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no certificate\.json; name the model .* zoo export NAME --check"
    ):
        check(tmp_path / "f", registry=tmp_path / "r")
    assert check(tmp_path / "f", "mine", registry=tmp_path / "r")["passed"]
