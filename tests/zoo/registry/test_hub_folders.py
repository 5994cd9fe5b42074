"""Folders that transformers has saved become models of this package: equal numbers, or an error that names the key."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch
import yaml
from hub_models import LABELS, changed, made, saved, variants
from safetensors.torch import load_file, save_file

from zoo.detector import Detector
from zoo.registry.hugging_face.comparison import LIMIT, compare, drawn_image
from zoo.registry.hugging_face.folder import read_folder
from zoo.registry.pull import pull
from zoo.registry.weights import ready_module

FAST = (
    "detr",
    "detr own resnet",
    "detr masks",
    "deformable tied",
    "deformable two-stage",
    "rt_detr",
    "rt_detr_v2",
    "d_fine n",
)
NETWORKS = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in variants()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(variant, folder) -> the folder with it as transformers saved it, the weights as a hard link."""
    made_before = {}

    def copy(name, target):
        if name not in made_before:
            made_before[name] = tmp_path_factory.mktemp("saved")
            saved(name, made_before[name])
        target.mkdir()
        for file in made_before[name].iterdir():
            link = file.suffix == ".safetensors"
            os.link(file, target / file.name) if link else shutil.copy(file, target / file.name)
        return target

    return copy


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_of_transformers_predicts_the_same(name, folders, tmp_path):
    import transformers

    folder, theirs = folders(name, tmp_path / "f"), made(name)
    imported = read_folder(folder, "it")
    ours = ready_module(imported.released)
    kind = json.loads((folder / "preprocessor_config.json").read_text())
    processor = getattr(transformers, kind["image_processor_type"])(size=kind["size"])
    difference = compare(ours, theirs, processor, [drawn_image(90, 140)])
    assert difference.pixels < 1e-3
    assert max(difference.logits, difference.boxes, difference.masks or 0) < LIMIT
    assert (difference.masks is None) == (name != "detr masks")
    assert imported.released.label_map.names == ("disc", "square", "no")
    assert ours.num_classes == 3


def test_the_names_of_a_running_model_and_those_of_2022_are_read(folders, tmp_path):
    """`save_pretrained` renames; somebody who saves a state dict himself does not."""
    folder = folders("detr", tmp_path / "f")
    expected = read_folder(folder, "it").released.state
    assert any(".conv_encoder." in key for key in load_file(folder / "model.safetensors"))
    running = {key: value.clone() for key, value in made("detr").state_dict().items()}
    assert not any(".conv_encoder." in key for key in running)
    (folder / "model.safetensors").unlink()
    save_file(running, folder / "model.safetensors")
    again = read_folder(folder, "it").released.state
    assert all(torch.equal(again[key], value) for key, value in expected.items())


def test_configs_of_2022_are_read(folders, tmp_path):
    """The keys of facebook/detr-resnet-50's files, whose processor was a feature extractor."""
    folder = folders("detr", tmp_path / "f")
    config = json.loads((folder / "config.json").read_text())
    for key in ("backbone_config", "auxiliary_loss", "dtype"):
        config.pop(key)
    config |= {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": True,
               "max_position_embeddings": 1024,
               "scale_embedding": False,
               "classifier_dropout": 0.0, "num_hidden_layers": 1}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    old = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "DetrFeatureExtractor",
           "format": "coco_detection",
           "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
           "max_size": 100, "size": 64}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    found = read_folder(folder, "it").released
    assert found.input.size == (64, 100)
    assert found.input.resize == "shortest"
    assert found.model["init_args"]["backbone"]["name"] == "resnet18"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4]}}, None),
        ({"backbone": "resnet18.a1_in1k"}, None),
        ({"backbone_kwargs": {"output_stride": 16}, "dilation": True}, None),
        ({"backbone_kwargs": {"drop_path_rate": 0.1}}, "backbone_kwargs has drop_path_rate"),
        ({"backbone": "resnet50"}, "Missing key"),
        (
            {"use_timm_backbone": False, "backbone": "someone/repo"},
            "backbone is 'someone/repo', a repository",
        ),
    ],
)
def test_a_backbone_that_is_named_is_read_and_the_hub_is_not_asked_for_it(
    keys, told, folders, tmp_path, monkeypatch
):
    """As transformers 4.40 wrote facebook/detr-resnet-50; its successor looks for a repository of that name."""
    import huggingface_hub

    def asked(*_, **__):
        pytest.fail("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_exists", asked)
    folder = folders("detr", tmp_path / "f")
    named = {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": True} | keys
    document = json.loads((folder / "config.json").read_text()) | {"backbone_config": None} | named
    (folder / "config.json").write_text(json.dumps(document))
    if told is not None:
        with pytest.raises(ValueError, match=told):
            read_folder(folder, "it")
        return
    block = read_folder(folder, "it").released.model["init_args"]["backbone"]
    assert (block["name"], block["dilate_last"]) == ("resnet18", "dilation" in keys)


def test_half_precision_parts_and_pickles_are_read(folders, tmp_path):
    folder = folders("rt_detr", tmp_path / "f")
    whole = load_file(folder / "model.safetensors")
    expected = read_folder(folder, "it").released.state
    (folder / "model.safetensors").unlink()
    torch.save({key: value.bfloat16() if value.is_floating_point() else value for key, value in whole.items()},
               folder / "pytorch_model.bin")  # fmt: skip
    halved = read_folder(folder, "it")
    assert halved.weights[0].name == "pytorch_model.bin"
    assert {value.dtype for value in halved.released.state.values()} <= {torch.float32, torch.int64}
    keys = sorted(whole)
    for number, part in enumerate((keys[:100], keys[100:])):
        save_file({key: whole[key] for key in part}, folder / f"model-{number}.safetensors")
    index = {"weight_map": {key: f"model-{int(key in keys[100:])}.safetensors" for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    parts = read_folder(folder, "it")
    assert [file.name for file in parts.weights] == ["model-0.safetensors", "model-1.safetensors"]
    assert all(torch.equal(parts.released.state[key], value) for key, value in expected.items())
    index["weight_map"][keys[0]] = "../../model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: weight_map lists"):
        read_folder(folder, "it")


def test_a_pickle_that_runs_code_is_not_run(folders, tmp_path):
    folder = folders("rt_detr", tmp_path / "f")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.x": Evil()}))
    with pytest.raises(ValueError, match=r"it, pytorch_model\.bin was not loaded"):
        read_folder(folder, "it")
    assert not (tmp_path / "ran").exists()


CONFIG_FAULTS = [
    ("detr", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
    ("detr", {"auxiliary_loss": True}, "auxiliary_loss is True"),
    ("detr", {"decoder_attention_heads": 4}, "encoder_attention_heads is 2"),
    ("detr", {"decoder_ffn_dim": 8}, "ffn_dim is"),
    ("detr", {"model_type": "yolos"}, "model_type is 'yolos'; known are detr"),
    ("detr", {"model_type": "deimv2"}, "another network than DEIMv2"),
    ("detr", {"model_type": ["detr"]}, "model_type is"),
    ("detr", {"auto_map": {"AutoModel": "modeling.Evil"}}, "auto_map names code"),
    ("detr", {"architectures": ["DetrModel"]}, "architectures is"),
    ("detr", {"d_model": 64}, "the weights are of another network than the model block: size mismatch"),
    ("detr", {"num_queries": 9}, "size mismatch for query_embed"),
    ("detr", {"encoder_layers": "many"}, "transformers does not take it"),
    ("detr", {"position_embedding_type": "learned"}, "Missing key"),
    ("detr", {"num_labels": 4}, "num_labels is 4, and id2label names 3 classes"),
    ("detr", {"id2label": {"0": "a", "1": "b"}}, "size mismatch for class_embed.weight"),
    ("detr", {"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label has the indices"),
    ("detr", {"id2label": {"0": "a", "1": "b", "2": ""}}, "id2label names index 2 ''"),
    ("deformable", {"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
    ("deformable", {"decoder_n_points": 2}, "size mismatch"),
    ("rt_detr", {"activation_function": "relu"}, "activation_function is 'relu'"),
    ("rt_detr", {"eval_size": 640}, "eval_size is 640"),
    ("rt_detr", {"anchor_image_size": [640, 640]}, "anchor_image_size is"),
    ("rt_detr", {"normalize_before": True}, "normalize_before is True"),
    ("rt_detr", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
    ("rt_detr", {"encode_proj_layers": [1, 2]}, "encode_proj_layers is"),
    ("rt_detr_v2", {"decoder_offset_scale": 1.0}, "decoder_offset_scale is 1.0"),
    ("d_fine", {"reg_scale": 8.0}, "reg_scale is 4 in the weights and 8 here"),
    ("d_fine", {"eval_idx": 0}, "eval_idx is 0"),
    ("d_fine", {"up": 0.25}, "up is 0.25"),
    ("d_fine", {"decoder_n_points": [4, 4, 4]}, "num_points_scale is 1 over"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "told"), CONFIG_FAULTS)
def test_another_network_is_refused_by_its_key(name, keys, told, folders, tmp_path):
    folder = folders(name, tmp_path / "f")
    changed(folder / "config.json", **keys)
    with pytest.raises(ValueError, match=told) as error:
        read_folder(folder, "it")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("it")


def test_weights_whose_points_are_weighed_otherwise_are_refused(folders, tmp_path):
    folder = folders("rt_detr_v2", tmp_path / "f")
    state = load_file(folder / "model.safetensors")
    key = "model.decoder.layers.0.encoder_attn.n_points_scale"
    state[key] *= 1.1  # which moves the outputs of a small network by less than the limit
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"it: {re.escape(key)} is 1 over 3.64"):
        read_folder(folder, "it")


def test_keys_that_only_this_package_knows_are_named(folders, tmp_path):
    folder = folders("detr", tmp_path / "f")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({f"detr.{key}": value for key, value in state.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"for which the weights lack bbox_predictor\.layers\.0\.bias"):
        read_folder(folder, "it")


def test_another_backbone_is_refused_by_its_key(folders, tmp_path):
    folder = folders("rt_detr", tmp_path / "f")
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    changed(folder / "config.json", backbone_config=backbone | {"depths": [2, 2, 2, 3]})
    with pytest.raises(
        ValueError, match=r"backbone_config fits none of this package: depths is \[2, 2, 2, 3\]"
    ):
        read_folder(folder, "it")


def test_keys_of_the_files_on_the_hub_that_no_network_uses_are_read(folders, tmp_path):
    """transformers 4 wrote these; the files of D-FINE have the channels of another size for maps that are not used."""
    folder = folders("d_fine n", tmp_path / "f")
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    backbone |= {"hidden_sizes": [256, 512, 512, 1024], "torch_dtype": "float32", "use_bfloat16": False}
    old = {
        "backbone": None,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone_kwargs": None,
    }
    changed(folder / "config.json", backbone_config=backbone, torch_dtype="float32")
    document = json.loads((folder / "config.json").read_text()) | old
    (folder / "config.json").write_text(json.dumps(document))
    assert read_folder(folder, "it").released.model["init_args"]["backbone"]["maps"] == 2


def test_anchors_made_for_the_size_of_the_input_are_the_same_network(folders, tmp_path):
    folder = folders("rt_detr", tmp_path / "f")
    changed(folder / "config.json", anchor_image_size=[64, 64])
    assert read_folder(folder, "it").family == "rt_detr"


PROCESSOR_FAULTS = [
    ("detr", {"do_resize": False}, "do_resize is False"),
    ("detr", {"do_rescale": False}, "do_rescale is False"),
    ("detr", {"do_pad": False}, "do_pad is false"),
    ("detr", {"resample": 3}, "resample is 3"),
    ("detr", {"rescale_factor": 0.5}, "rescale_factor is 0.5"),
    ("detr", {"do_center_crop": True}, "do_center_crop is True"),
    ("detr", {"pad_size": {"height": 100, "width": 100}}, "pad_size is"),
    ("detr", {"blur": 3}, "blur is 3"),
    ("detr", {"size": {"shortest_edge": 64}}, "size is"),
    ("detr", {"size": {"max_height": 64, "max_width": 64}}, "size is"),
    ("detr", {"size": {"shortest_edge": 64, "longest_edge": "x"}}, "size must be two positive integers"),
    ("detr", {"image_std": [0.0, 1.0, 1.0]}, "std .* must be above 0"),
    ("detr", {"image_mean": [0.5, 0.5]}, "three values"),
    (
        "detr",
        {"image_processor_type": "ViTImageProcessor"},
        "image_processor_type ViTImageProcessor is none of",
    ),
    ("detr", {"image_processor_type": None}, "image_processor_type missing"),
    ("rt_detr", {"size": {"shortest_edge": 64, "longest_edge": 64}}, "this network takes height and width"),
]


@pytest.mark.parametrize(("name", "keys", "told"), PROCESSOR_FAULTS)
def test_other_pixels_are_refused_by_their_key(name, keys, told, folders, tmp_path):
    folder = folders(name, tmp_path / "f")
    changed(folder / "preprocessor_config.json", **keys)
    with pytest.raises(ValueError, match=rf"it, preprocessor_config\.json: .*{told}"):
        read_folder(folder, "it")


@pytest.mark.parametrize(
    ("name", "keys", "size", "mean"),
    [
        ("detr", {"size": {"height": 64, "width": 96}}, (64, 96), True),
        ("detr", {"do_normalize": False}, (64, 100), False),
        ("rt_detr", {"do_normalize": True, "image_mean": 0.5, "image_std": 0.5}, (64, 64), True),
        (
            "rt_detr",
            {"image_processor_type": "RTDetrImageProcessorFast", "do_center_crop": False},
            (64, 64),
            False,
        ),
    ],
)
def test_settings_that_the_contract_knows_are_read(name, keys, size, mean, folders, tmp_path):
    folder = folders(name, tmp_path / "f")
    changed(folder / "preprocessor_config.json", **keys)
    contract = read_folder(folder, "it").released.input
    assert contract.size == size
    assert len(contract.mean) == (3 if mean else 0)


def test_missing_files_are_named(folders, tmp_path):
    folder = folders("detr", tmp_path / "f")
    for name in ("model.safetensors", "preprocessor_config.json", "config.json"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"it has .*{re.escape(name)}"):
            read_folder(folder, "it")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: it holds a list"):
        read_folder(folder, "it")


def test_holes_have_no_class(folders, tmp_path):
    folder = folders("detr", tmp_path / "f")
    changed(folder / "config.json", id2label={"0": "N/A", "1": "disc", "2": "square"})
    labels = read_folder(folder, "it").released.label_map
    assert (labels.names, labels.head_indices, labels.num_classes) == (("disc", "square"), (1, 2), 3)


def test_a_pulled_folder_is_a_model_like_any_other(folders, tmp_path):
    folder = folders("rt_detr", tmp_path / "My Fine_Tune")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ndatasets:\n- cppe-5\n---\n# it\n")
    pulled = pull(f"hf:{folder}", registry=tmp_path / "r")
    manifest = pulled.manifest
    assert (manifest.name, manifest.version, pulled.downloaded) == ("rt_detr.my-fine-tune", 1, True)
    assert manifest.license == "Apache-2.0"
    assert manifest.terms.weights.commercial == "unclear"
    assert manifest.terms.weights.note == "told by the card of the folder"
    assert manifest.terms.weights.source is None
    assert list(manifest.terms.data) == ["cppe-5"]
    assert manifest.origin.file == "model.safetensors"
    assert len(manifest.origin.sha256) == 64
    assert manifest.lineage.parent is None
    assert str(tmp_path) not in manifest.to_yaml()
    detector = Detector.from_pulled(pull("rt_detr.my-fine-tune", registry=tmp_path / "r"))
    assert set(detector.predict(drawn_image(), 0.0).labels) <= set(LABELS.values())
    again = pull(f"hf:{folder}", registry=tmp_path / "r")
    assert (again.manifest.version, again.downloaded) == (1, False)
    assert pull(f"hf:{folder}", registry=tmp_path / "r", name="own.name").manifest.name == "own.name"


def test_a_pulled_model_brings_a_recipe_to_finetune_it(folders, tmp_path):
    from zoo.runs.finetune import starting_point
    from zoo.training.module import build_module

    pull(f"hf:{folders('detr', tmp_path / 'f')}", registry=tmp_path / "r", name="mine")
    start = starting_point("mine", tmp_path / "r")
    arguments = start.recipe["model"]["init_args"]
    assert arguments["transformer"]["dim"] == 32
    assert start.recipe["data"]["init_args"]["input"]["size"] == [64, 100]
    assert build_module(start.recipe["model"]).num_classes == 3


def test_damage_is_told_with_the_way_out_that_mends_it(folders, tmp_path):
    folder = folders("rt_detr", tmp_path / "f")
    pulled = pull(f"hf:{folder}", registry=tmp_path / "r", name="mine")
    (pulled.folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="has 1 bytes"):
        pull("mine", registry=tmp_path / "r")
    pull(f"hf:{folder}", registry=tmp_path / "r", name="mine")
    assert pull("mine", registry=tmp_path / "r").manifest.version == 1


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: cc-by-nc-4.0\n---", "CC-BY-NC-4.0"),
        ("---\nlicense: other\nlicense_name: my own\n---", "my own"),
        ("---\nlicense: openrail\n---", "stated as openrail"),
        ("---\nlicense: [a, b]\n---", "not stated"),
        ("---\nlicense: &a [*a]\n---", "not stated"),
        ("no metadata", "not stated"),
    ],
)
def test_the_licence_is_what_the_card_tells(card, licence, tmp_path):
    from zoo.registry.hugging_face.importing import _terms, card_metadata

    (tmp_path / "README.md").write_text(card)
    terms = _terms(card_metadata(tmp_path / "README.md"), "not known", None)
    assert terms.weights.licence == licence
    assert terms.weights.commercial == "unclear"


def test_families_and_recipes_agree():
    """A recipe of each family is what the table says it is."""
    from zoo.registry.hugging_face.families import FAMILIES
    from zoo.storage.places import recipe_files

    for family in FAMILIES.values():
        for class_path, recipe in family.modules.values():
            assert yaml.safe_load(recipe_files()[recipe].read_text())["model"]["class_path"] == class_path
