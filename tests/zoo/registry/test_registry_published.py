"""Published checkpoints at full size, in the key layouts of the authors and of Hugging Face, over a real socket.

The values are random; names, shapes and file formats are those of the published files. Official names come from
the committed structures, Hugging Face's from the table below (transformers 4, which saved the files on the hub).
"""

import functools
import io
import json
import os
import re

import msgspec
import pytest
import torch
from file_server import FileServer
from safetensors.torch import load_file, save

import zoo.registry.weights  # now, for it keeps the `build_module` that it finds
import zoo.training.module
from zoo.cli.main import run_command
from zoo.registry import store as store_module
from zoo.registry.manifest import Manifest, read_manifest
from zoo.registry.pull import addresses_of, published_hash, pull
from zoo.registry.store import builtin_manifests
from zoo.storage.checkpoint_io import UnsafeCheckpointError
from zoo.storage.fetch import DownloadError, WrongFileError
from zoo.verification.cases import COMMITTED

DETR = "detr_r50.coco_500e"
TWO_STAGE = "deformable_detr_r50_two_stage.coco_50e"
RT_DETR = "rt_detr_r18.coco_72e"
STRUCTURES = {
    DETR: "detr_resnet50",
    TWO_STAGE: "deformable_r50_two_stage",
    RT_DETR: "rtdetr_r18vd_6x_coco",
}

ATTENTION = [(r"(self_attn|encoder_attn)\.in_proj_(weight|bias)", r"\1.{}_proj.\2")]
LAYER = [
    (r"linear([12])\.", r"fc\1."),
    (r"(encoder\.(?:(?:encoder\.)?0\.)?layers\.\d)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.(?:(?:encoder\.)?0\.)?layers\.\d)\.norm2\.", r"\1.final_layer_norm."),
]  # fmt: skip
HUGGING_FACE = {
    DETR: [
        (r"^backbone\.0\.body\.", "model.backbone.conv_encoder.model."),
        (r"^input_proj\.", "model.input_projection."),
        (r"^query_embed\.", "model.query_position_embeddings."),
        (r"^class_embed\.", "class_labels_classifier."),
        (r"^bbox_embed\.", "bbox_predictor."),
        (r"^transformer\.decoder\.norm\.", "model.decoder.layernorm."),
        (r"^transformer\.", "model."),
        (r"multihead_attn", "encoder_attn"),
        *LAYER,
        (r"(decoder\.layers\.\d)\.norm1\.", r"\1.self_attn_layer_norm."),
        (r"(decoder\.layers\.\d)\.norm2\.", r"\1.encoder_attn_layer_norm."),
        (r"(decoder\.layers\.\d)\.norm3\.", r"\1.final_layer_norm."),
    ],
    TWO_STAGE: [
        (r"^backbone\.0\.body\.", "model.backbone.conv_encoder.model."),
        (r"^input_proj\.", "model.input_proj."),
        (r"^transformer\.", "model."),
        *LAYER,
        (r"cross_attn", "encoder_attn"),
        (r"(decoder\.layers\.\d)\.norm1\.", r"\1.encoder_attn_layer_norm."),
        (r"(decoder\.layers\.\d)\.norm2\.", r"\1.self_attn_layer_norm."),
        (r"(decoder\.layers\.\d)\.norm3\.", r"\1.final_layer_norm."),
    ],
    RT_DETR: [
        (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
        (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
        (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
        (r"^backbone\.res_layers\.(\d)\.blocks\.(\d)\.", r"model.backbone.model.encoder.stages.\1.layers.\2."),
        (r"\.branch2a\.", ".layer.0."),
        (r"\.branch2b\.", ".layer.1."),
        (r"\.short\.conv\.(conv|norm)\.", r".shortcut.1.\1."),
        (r"\.short\.", ".shortcut."),
        (r"^(model\.backbone.*)\.conv\.", r"\1.convolution."),
        (r"^(model\.backbone.*)\.norm\.", r"\1.normalization."),
        (r"^encoder\.input_proj\.", "model.encoder_input_proj."),
        (r"^decoder\.input_proj\.(\d)\.conv\.", r"model.decoder_input_proj.\1.0."),
        (r"^decoder\.input_proj\.(\d)\.norm\.", r"model.decoder_input_proj.\1.1."),
        (r"^encoder\.", "model.encoder."),
        (r"^decoder\.decoder\.", "model.decoder."),
        (r"^decoder\.query_pos_head\.", "model.decoder.query_pos_head."),
        (r"^decoder\.dec_score_head\.", "class_embed."),
        (r"^decoder\.dec_bbox_head\.", "bbox_embed."),
        (r"^decoder\.", "model."),
        *LAYER,
        (r"cross_attn", "encoder_attn"),
        (r"(decoder\.layers\.\d)\.norm1\.", r"\1.self_attn_layer_norm."),
        (r"(decoder\.layers\.\d)\.norm2\.", r"\1.encoder_attn_layer_norm."),
        (r"(decoder\.layers\.\d)\.norm3\.", r"\1.final_layer_norm."),
    ],
}  # fmt: skip
# names that the files on the hub are known to have
KNOWN = {
    DETR: ["model.backbone.conv_encoder.model.conv1.weight", "model.encoder.layers.0.self_attn.k_proj.weight",
           "model.decoder.layers.5.encoder_attn_layer_norm.bias", "bbox_predictor.layers.2.weight"],
    TWO_STAGE: ["model.backbone.conv_encoder.model.layer4.2.conv3.weight", "model.decoder.class_embed.6.bias",
                "model.encoder.layers.0.self_attn.sampling_offsets.bias", "model.pos_trans_norm.weight"],
    RT_DETR: ["model.backbone.model.encoder.stages.1.layers.0.shortcut.1.convolution.weight",
              "model.encoder.encoder.0.layers.0.self_attn_layer_norm.weight", "model.denoising_class_embed.weight",
              "model.decoder_input_proj.2.1.running_var", "class_embed.2.bias"],
}  # fmt: skip


@functools.cache
def official(name: str) -> dict[str, torch.Tensor]:
    """Random values under the official names."""
    facts = json.loads((COMMITTED / "structure" / f"{STRUCTURES[name]}.json").read_text())
    generator = torch.Generator().manual_seed(1)
    state = {}
    for key, shape, dtype, _ in facts["state_dict"]:
        whole = "int" in dtype
        state[key] = (
            torch.zeros(shape, dtype=torch.int64) if whole else torch.rand(shape, generator=generator)
        )
    for key, same in facts.get("tied_keys", []):
        state[key] = state[same]
    return state


def hugging_face(name: str) -> dict[str, torch.Tensor]:
    """The same values under Hugging Face's names."""
    state = {}
    for key, value in official(name).items():
        theirs = key
        for pattern, replacement in HUGGING_FACE[name]:
            theirs = re.sub(pattern, replacement, theirs)
        if "in_proj_" in theirs:
            pattern, replacement = ATTENTION[0]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                state[re.sub(pattern, replacement, theirs).format(letter)] = part
        else:
            state[theirs] = value
    return state


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@functools.cache
def authors_file(name: str) -> bytes:
    state = official(name)
    return pickled({"ema": {"module": state}} if name == RT_DETR else {"model": state, "epoch": 499})


@functools.cache
def safetensors_file(name: str) -> bytes:
    return save({k: v.clone().contiguous() for k, v in hugging_face(name).items()}, {"format": "pt"})


@functools.cache
def built(name: str):
    """The network is built once; every pull loads it anew, strictly."""
    block = read_manifest(builtin_manifests()[name]).to_dict()["model"]
    return original_build_module(block, backbone_weights="random")


original_build_module = zoo.training.module.build_module


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


@pytest.fixture
def publish(tmp_path, monkeypatch, server):
    """Makes a package whose manifest of `name` has its real sources, each on the local server."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(store_module, "BUILTIN_FOLDER", folder)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry"))

    def run(name: str, **origin) -> Manifest:
        manifest = read_manifest(BUILTIN[name])
        here = [
            re.sub(r"https://(dl\.fbaipublicfiles\.com|github\.com)", server.url, s) for s in manifest.sources
        ]
        manifest = msgspec.structs.replace(
            manifest, sources=here, origin=msgspec.structs.replace(manifest.origin, **origin)
        )
        (folder / f"{name}.yaml").write_text(manifest.to_yaml())
        monkeypatch.setattr(zoo.training.module, "build_module", lambda *a, **k: built(name))
        return manifest

    return run


BUILTIN = builtin_manifests()


def path_of(manifest: Manifest, server: FileServer) -> str:
    return (
        next(s for s in manifest.sources if s.startswith(server.url))
        .removeprefix(server.url)
        .partition("#")[0]
    )


def hugging_face_path(manifest: Manifest, file: str) -> str:
    source = next(s for s in manifest.sources if "huggingface.co" in s)
    repository = "/".join(source.removeprefix("https://huggingface.co/").split("/")[:2])
    return f"/{repository}/resolve/main/{file}"


def with_hash_of(content: bytes) -> str:
    """A published file's name as torch.hub wants it."""
    import hashlib

    return f"detr-r50-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def publish_with_hash(publish, server, name: str, content: bytes) -> tuple[Manifest, str]:
    """A model with the hash of its authors' file in the file's name, as those of DETR have it."""
    file = with_hash_of(authors_file(name))
    manifest = publish(name, file=file)
    path = f"/detr/{file}"
    sources = [f"{server.url}{path}", *manifest.sources[1:]]
    manifest = msgspec.structs.replace(manifest, sources=sources)
    (store_module.BUILTIN_FOLDER / f"{name}.yaml").write_text(manifest.to_yaml())
    server.files[path] = content
    return manifest, path


def check(pulled, name: str) -> None:
    """Every value arrived, in the network's own types."""
    state = load_file(pulled.folder / "model.safetensors")
    own = built(name).network.state_dict()
    assert {k: (v.dtype, v.shape) for k, v in state.items()} == {
        k: (v.dtype, v.shape) for k, v in own.items()
    }
    floats = [v for v in official(name).values() if v.is_floating_point()]
    # tied tensors count once here, and packed ones as one; sums tell whether each value came over
    distinct = {v.data_ptr(): v for v in floats}.values()
    theirs, ours = (
        sum(float(v.double().sum()) for v in vs if v.is_floating_point()) for vs in (distinct, state.values())
    )
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert pulled.manifest.files[0].path == "model.safetensors"
    assert len(pulled.manifest.origin.sha256) == 64


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_the_names_of_the_hub_are_in_the_synthetic_file(name):
    assert set(KNOWN[name]) <= set(hugging_face(name))


@pytest.mark.parametrize("name", [DETR, RT_DETR])
def test_the_authors_file_is_fetched_converted_and_kept_as_safetensors(publish, server, name):
    if name == DETR:
        publish_with_hash(publish, server, DETR, authors_file(DETR))
    else:
        manifest = publish(name)
        server.files[path_of(manifest, server)] = authors_file(name)
    pulled = pull(name)
    check(pulled, name)
    assert not pull(name).downloaded
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_hugging_face_is_the_second_source(publish, server, name):
    manifest = publish(name)
    path = hugging_face_path(manifest, "model.safetensors")
    server.files[path] = safetensors_file(name)
    pulled = pull(name)
    check(pulled, name)
    assert pulled.manifest.origin.file == "model.safetensors"
    assert server.requests[-1][0] == path


def test_an_older_repository_has_pytorch_model_bin(publish, server):
    manifest = publish(RT_DETR)
    server.files[hugging_face_path(manifest, "pytorch_model.bin")] = pickled(hugging_face(RT_DETR))
    check(pull(RT_DETR), RT_DETR)


def test_half_precision_files_become_the_networks_own_type(publish, server):
    manifest = publish(RT_DETR)
    half = {k: v.half() if v.is_floating_point() else v for k, v in hugging_face(RT_DETR).items()}
    server.files[hugging_face_path(manifest, "pytorch_model.bin")] = pickled(half)
    state = load_file(pull(RT_DETR).folder / "model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}


def test_google_drive_says_what_to_download_and_a_path_goes_on(publish, server, tmp_path, capsys):
    manifest = publish(TWO_STAGE)
    assert run_command(["pull", TWO_STAGE]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    for part in (
        manifest.origin.file,
        "https://drive.google.com/file/d/15I03A7",
        f"`zoo pull {manifest.name} --source FILE`",
    ):
        assert part in error
    assert [p for p, _ in server.requests] == [
        hugging_face_path(manifest, f) for f in ("model.safetensors", "pytorch_model.bin")
    ]
    by_hand = tmp_path / manifest.origin.file
    by_hand.write_bytes(authors_file(TWO_STAGE))
    check(pull(TWO_STAGE, source=str(by_hand)), TWO_STAGE)
    assert by_hand.is_file()


def test_a_model_that_google_drive_alone_has_is_fetched_by_hand(capsys):
    assert run_command(["pull", "rt_detrv2_r18.deim_coco_120e"]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error == (
        "error: Google Drive gives no file to a program: fetch deim_r18vd_120e_coco.pth from "
        "https://drive.google.com/file/d/153_JKff6EpFgiLKaqkJsoDcLal_0ux_F/view in a browser and give its path: "
        "`zoo pull rt_detrv2_r18.deim_coco_120e --source FILE`"
    )


def test_a_file_with_another_hash_than_published_is_thrown_away(publish, server, tmp_path):
    content = bytearray(authors_file(RT_DETR))
    content[len(content) // 2] ^= 1
    manifest, path = publish_with_hash(publish, server, RT_DETR, bytes(content))
    with pytest.raises(WrongFileError, match=f"expected {published_hash(manifest.origin)}"):
        pull(RT_DETR)
    left = [p for p in (tmp_path / "zoo_cache").rglob("*") if p.is_file()]
    assert [p.name for p in left] == [".lock"]
    (tmp_path / "by_hand.pth").write_bytes(bytes(content))
    with pytest.raises(WrongFileError, match="sha256"):
        pull(RT_DETR, source=str(tmp_path / "by_hand.pth"))
    server.files[path] = authors_file(RT_DETR)
    check(pull(RT_DETR), RT_DETR)


def test_a_cut_connection_goes_on_where_it_ended(publish, server):
    content = authors_file(RT_DETR)
    _, path = publish_with_hash(publish, server, RT_DETR, content)
    server.cuts = [len(content) // 3]
    check(pull(RT_DETR), RT_DETR)
    assert [p for p, _ in server.requests] == [path, path]
    assert server.requests[1][1] == f"bytes={len(content) // 3}-"


def test_a_cut_of_all_attempts_goes_on_with_the_next_pull(publish, server):
    content = authors_file(RT_DETR)
    publish_with_hash(publish, server, RT_DETR, content)
    server.cuts = [1000]
    with pytest.raises(DownloadError, match="goes on where it ended"):
        pull(RT_DETR, attempts=1)
    check(pull(RT_DETR, attempts=1), RT_DETR)
    assert server.requests[-1][1] == "bytes=1000-"


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_the_file_of_another_model_is_refused_and_not_kept(publish, server, tmp_path, name):
    other = next(n for n in STRUCTURES if n != name)
    (tmp_path / "other.bin").write_bytes(safetensors_file(other) if name == RT_DETR else authors_file(other))
    publish(name)
    with pytest.raises(ValueError, match=rf"the file fetched for {re.escape(name)} is"):
        pull(name, source=str(tmp_path / "other.bin"))
    assert [p.name for p in (tmp_path / "zoo_cache").rglob("*") if p.is_file()] == [".lock"]


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_a_hostile_pickle_is_refused_not_executed_and_not_kept(publish, server, tmp_path, name, caplog):
    manifest = publish(name)
    hostile = {**hugging_face(name), "model.extra": Bomb(tmp_path / "executed")}
    server.files[hugging_face_path(manifest, "pytorch_model.bin")] = pickled(hostile)
    with pytest.raises(UnsafeCheckpointError, match="Nothing in it was executed") as told:
        pull(name)
    assert "pytorch_model.bin was not loaded" in str(told.value)
    assert "zoo_cache" not in str(told.value)
    assert "later pulls on this machine are held to it" not in caplog.text
    assert not (tmp_path / "executed").exists()
    assert [p.name for p in (tmp_path / "zoo_cache").rglob("*") if p.is_file()] == [".lock"]


@pytest.mark.parametrize("name", list(STRUCTURES))
def test_no_network_names_the_file_and_the_way_without(publish, server, name):
    manifest = publish(name)
    server.__exit__()
    with pytest.raises(DownloadError, match="no network, or the server is down") as caught:
        pull(name, attempts=1)
    server.__init__()
    server.__enter__()
    assert manifest.origin.file in str(caught.value)
    assert f"give its path: `zoo pull {name} --source FILE`" in str(caught.value)


def test_a_damaged_cache_is_mended_from_the_source_of_the_first_pull(publish, server):
    manifest = publish(RT_DETR)
    path = hugging_face_path(manifest, "model.safetensors")
    server.files[path] = safetensors_file(RT_DETR)
    folder = pull(RT_DETR).folder
    (folder / "model.safetensors").write_bytes(b"damaged")
    server.files[path_of(manifest, server)] = authors_file(RT_DETR)  # now there too, with another hash
    server.requests.clear()
    check(pull(RT_DETR), RT_DETR)
    assert [p for p, _ in server.requests] == [path]


@pytest.mark.parametrize(
    ("source", "addresses"),
    [
        ("https://a.b/c.pth#sha256=00", ["https://a.b/c.pth#sha256=00"]),
        ("/data/c.pth", ["/data/c.pth"]),
        ("https://drive.google.com/file/d/1/view", []),
        (
            "https://huggingface.co/o/r",
            ["https://hf.co/o/r/resolve/main/model.safetensors", "https://hf.co/o/r/resolve/main/pytorch_model.bin"],
        ),
        (
            "https://huggingface.co/o/r/resolve/v1/model.safetensors",
            ["https://hf.co/o/r/resolve/v1/model.safetensors", "https://hf.co/o/r/resolve/v1/pytorch_model.bin"],
        ),
        ("https://huggingface.co/o/r/resolve/v1/x.pth#sha256=00", ["https://hf.co/o/r/resolve/v1/x.pth#sha256=00"]),
    ],
)  # fmt: skip
def test_addresses_of_a_source(monkeypatch, source, addresses):
    monkeypatch.setenv("HF_ENDPOINT", "https://hf.co/")
    assert addresses_of(source) == addresses


def test_the_published_hashes_are_those_in_the_names_of_the_files():
    found = {name: published_hash(read_manifest(path).origin) for name, path in BUILTIN.items()}
    assert {n.partition(".")[0]: h for n, h in found.items() if h} == {
        "detr_r50": "e632da11", "detr_r50_dc5": "f0fb7ef5", "detr_r101": "2c7b67e5", "detr_r101_dc5": "a2e86def",
        "detr_r50_panoptic": "00ce5173",
        "detr_r50_dc5_panoptic": "da08f1b1",
        "detr_r101_panoptic": "40021d53",
    }  # fmt: skip
