"""Images that are not 8-bit RGB: 16 bits, floats, bands, arrays; from the file to prediction and ONNX."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.custom import CustomDataModule
from datamodules.images.files import header_size, list_images
from datamodules.images.probe import probe
from zoo.contract.bands import read_bands, to_levels
from zoo.contract.preprocess import InputContract
from zoo.layers.backbone import BackboneConfig, build_backbone, of_channels
from zoo.prediction.image_input import read_input

rasterio = pytest.importorskip("rasterio")
BANDS = InputContract(resize="stretch", size=(64, 64), channels=5, scale=((0.0, 4000.0),))
GREY = InputContract(resize="stretch", size=(64, 64), channels=1)
RGB = InputContract(resize="stretch", size=(64, 64))


def values(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, (40, 48, channels), dtype=np.uint16)


def tiff(array: np.ndarray, driver: str = "GTiff") -> bytes:
    with rasterio.MemoryFile() as memory:
        profile = {
            "height": len(array),
            "width": array.shape[1],
            "count": array.shape[2],
            "dtype": array.dtype,
        }
        with memory.open(driver=driver, **profile) as out:
            out.write(np.moveaxis(array, 2, 0))
        return bytes(memory.read())


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def encoded(array: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("write", [tiff, npy])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
def test_values_of_bands_and_arrays_come_as_they_are(write, channels):
    array = values(channels)
    np.testing.assert_array_equal(read_bands(write(array), alpha=channels == 4), array)


def test_values_of_grey_and_colours_come_as_they_are():
    floats = values(1)[..., 0].astype(np.float32) / 7
    np.testing.assert_array_equal(read_bands(encoded(floats, "TIFF"))[..., 0], floats)
    for kind in ("TIFF", "PNG"):
        np.testing.assert_array_equal(read_bands(encoded(values(1)[..., 0], kind)), values(1))
    levels = (values(4) % 256).astype(np.uint8)
    np.testing.assert_array_equal(read_bands(encoded(levels, "PNG"), alpha=True), levels)
    np.testing.assert_array_equal(read_bands(encoded(levels, "PNG")), levels[..., :3])
    # colours of 16 bits, of which PIL gives the upper byte alone
    np.testing.assert_array_equal(read_bands(tiff(values(3), "PNG")), values(3))


def test_levels_are_shares_of_the_scale_in_256_steps():
    array = np.array([[[-5.0, 0.0], [50.0, 10.0], [np.nan, np.inf], [100.0, 15.0]]], dtype=np.float32)
    found = to_levels(array, 2, ((0, 100), (0, 20)), "x")
    np.testing.assert_array_equal(found[0], [[0, 0], [128, 128], [0, 255], [255, 191]])
    np.testing.assert_array_equal(to_levels(array, 2, ((0, 100),), "x")[0, 1], [128, 26])


def test_one_channel_is_repeated_for_three_and_three_become_one_by_luma():
    grey = (values(1) % 256).astype(np.uint8)
    np.testing.assert_array_equal(to_levels(grey, 3, (), "x"), np.repeat(grey, 3, axis=2))
    rgb = (values(3) % 256).astype(np.uint8)
    luma = np.asarray(Image.fromarray(rgb).convert("L")).astype(int)
    assert abs(to_levels(rgb, 1, (), "x")[..., 0].astype(int) - luma).max() <= 1


@pytest.mark.parametrize(
    ("array", "channels", "scale", "told"),
    [
        (values(3), 5, ((0, 1),), "has 3 channels, and the network takes 5"),
        (values(1), 5, ((0, 1),), "has 1 channel, and the network takes 5"),
        (values(5), 5, (), "--data.input.scale '[["),
        (values(1), 3, ((0, 1), (0, 2), (0, 3)), "3 pairs"),
    ],
)
def test_what_does_not_fit_is_one_line(array, channels, scale, told):
    with pytest.raises(ValueError) as error:
        to_levels(array, channels, scale, "a.tif")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [npy(np.zeros((2, 2, 100), np.uint8)), npy(np.zeros(3)), npy(np.array([[object()]])), b"\x93NUMPY", b"II*\0junk",
     npy(values(3))[:200], b'<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>', tiff(values(5))[:900]],
)  # fmt: skip
def test_damaged_and_foreign_files_raise_what_the_readers_expect(data):
    with pytest.raises((ValueError, OSError, SyntaxError)):
        read_bands(data)
    assert probe(data).error


def test_a_contract_says_it_in_its_dictionary_only_where_it_is_used():
    assert not {"channels", "scale"} & RGB.to_dict().keys()
    contract = replace(BANDS, mean=(0.5,) * 5, std=(0.2,) * 5)
    assert InputContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


@pytest.mark.parametrize(
    "wrong",
    [{"channels": 0}, {"channels": True}, {"channels": 5, "mean": (0.5,) * 3, "std": (0.5,) * 3}, {"scale": ((1, 0),)},
     {"scale": ((0, 1), (0, 1))}, {"scale": ((0, float("nan")),)}, {"scale": (3,)}, {"channels": 1, "backend": "pil"}],
)  # fmt: skip
def test_a_contract_refuses_what_it_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"channels|scale|mean"):
        replace(RGB, **wrong)


NETWORKS = [
    BackboneConfig(name="residual", weights="random", freeze_stem=False, frozen_norm=False, widths=[8] * 5),
    BackboneConfig(name="resnet18", weights="random", freeze_stem=True, frozen_norm=True),
    BackboneConfig(name="resnet18d", weights="random", freeze_stem=False, frozen_norm=False),
    BackboneConfig(
        name="hgnetv2_atto", weights="random", freeze_stem=False, frozen_norm=False, affine=True, maps=2
    ),
]


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.name)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_equal_channels_give_what_grey_as_rgb_gives(config, channels):
    torch.manual_seed(0)
    rgb = build_backbone(config).eval()
    torch.manual_seed(0)
    other = build_backbone(replace(config, channels=channels)).eval()
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        wanted, found = rgb(grey.repeat(1, 3, 1, 1)), other(grey.repeat(1, channels, 1, 1))
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in rgb.parameters()]


def test_kernels_of_rgb_are_shared_out():
    weight = torch.rand(4, 3, 3, 3)
    for channels in (1, 5):
        torch.testing.assert_close(of_channels(weight, channels).sum(1), weight.sum(1))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Images of five bands as TIFF and as array, with boxes."""
    folder = tmp_path_factory.mktemp("bands") / "train"
    folder.mkdir()
    images, annotations = [], []
    for number in range(6):
        name = f"{number}.{'tif' if number % 2 else 'npy'}"
        (folder / name).write_bytes((tiff if number % 2 else npy)(values(5, number)))
        images.append({"id": number, "file_name": name, "width": 48, "height": 40})
        annotations.append({"id": number + 1, "image_id": number, "category_id": 1, "bbox": [5, 5, 20, 20],
                            "area": 400, "iscrowd": 0})  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "field"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder.parent


def data_of(root: Path, contract: InputContract, **more: object) -> CustomDataModule:
    given = {"train_transform": "rt_detr", "batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "seed": 0}
    data = CustomDataModule(root=root, input=contract, val_fraction=0.3, **(given | more))
    data.setup("fit")
    data.plan_steps(4, 1, 0)
    return data


@pytest.mark.parametrize("transform", ["rt_detr", "finetune", "shapes", "none"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_bands(root, transform, workers):
    if workers and transform != "rt_detr":
        pytest.skip("one transform is enough")
    data = data_of(root, BANDS, train_transform=transform, num_workers=workers)
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert all(batch.images.shape[1:] == (5, 64, 64) for batch in batches)
    again = [*data_of(root, BANDS, train_transform=transform).train_dataloader()]
    assert torch.equal(batches[0].images, again[0].images)


def test_colours_for_rgb_alone_say_so(root):
    jitter = [{"torchvision.transforms.v2.ColorJitter": {"hue": 0.1}}]
    with pytest.raises(
        ValueError, match=r"augmentations\[0\] torchvision.transforms.v2.ColorJitter fails"
    ) as error:
        next(iter(data_of(root, BANDS, augmentations=jitter).train_dataloader()))
    assert "\n" not in str(error.value)


def test_a_file_of_other_channels_is_named(root):
    with pytest.raises(ValueError, match=r"(npy|tif) has 5 channels, and the network takes 4"):
        next(iter(data_of(root, replace(BANDS, channels=4)).train_dataloader()))


def test_sizes_of_bands_and_the_arrays_that_ultralytics_keeps(root, tmp_path):
    for path in list_images(root / "train"):
        assert header_size(path) == ((40, 48), (40, 48))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.npy").write_bytes(npy(values(3)))
    (tmp_path / "b.npy").write_bytes(npy(values(3)))
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.npy"]


def test_a_probe_tells_bands_and_their_range(root):
    for path in list_images(root / "train"):
        seen = probe(path.read_bytes())
        assert (seen.error, seen.bands, seen.size) == ("", 5, (40, 48))
        assert 0 <= seen.lowest < seen.highest <= 4000


def test_prediction_reads_what_training_reads(root):
    data = data_of(root, BANDS)
    index = data.read().splits["val"]
    loaded = next(iter(data.val_dataloader())).images[0]
    path = Path(index.path(0))
    content = path.read_bytes()
    array = read_bands(content)
    for given in (path, str(path), content, array, torch.from_numpy(array.astype(np.int32)).permute(2, 0, 1)):
        assert torch.equal(BANDS.resize_image(read_input(given, BANDS)), loaded)
    with pytest.raises(ValueError, match="takes 5"):
        read_input(np.zeros((8, 8, 3), np.uint8), BANDS)


def test_grey_images_of_any_depth_for_grey_and_for_rgb():
    eight = (values(1)[..., 0] % 256).astype(np.uint8)
    for data in (encoded(eight, "PNG"), eight, Image.fromarray(eight)):
        np.testing.assert_array_equal(read_input(data, GREY)[0].numpy(), eight)
    scaled = replace(RGB, scale=((0.0, 4000.0),))
    found = read_input(encoded(values(1)[..., 0], "TIFF"), scaled)
    np.testing.assert_array_equal(found[2].numpy(), np.rint(values(1)[..., 0] / 4000 * 255))


def test_a_check_recommends_channels_and_scale(root):
    from datamodules.doctor import image_faults, probe_splits

    splits = data_of(root, BANDS).read().splits
    faults = image_faults(splits, probe_splits(splits, None, None))[0]
    [told] = [fault.message for fault in faults if fault.kind == "input_scale"]
    assert told.startswith("no 8-bit RGB: 6 images of 5 channels, values from ")
    assert "--data.input.channels 5 --data.input.scale '[[" in told


def test_the_command_after_a_check_has_the_options(root, capsys):
    from zoo.cli.main import run_command

    assert run_command(["data", "check", str(root)]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last.startswith("next: zoo finetune MODEL --data ")
    assert last.endswith(" --data.input.channels 5 --data.input.scale '[[0, 3999]]'")


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_set_whose_images_are_all_arrays_is_found(tmp_path, form):
    for split in ("train", "val"):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        for number in range(2):
            np.save(folder / f"{number}.npy", values(5, number))
        images = [{"id": n, "file_name": f"{n}.npy", "width": 48, "height": 40} for n in range(2)]
        boxes = [
            {"id": n + 1, "image_id": n, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
            for n in range(2)
        ]
        labels = tmp_path / ("annotations" if form == "coco" else f"labels/{split}")
        labels.mkdir(parents=True, exist_ok=True)
        if form == "coco":
            content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "field"}]}
            (labels / f"instances_{split}.json").write_text(json.dumps(content))
        for number in range(2 * (form == "yolo")):
            (labels / f"{number}.txt").write_text("0 0.3 0.3 0.4 0.4\n")
    data = CustomDataModule(
        root=tmp_path,
        input=BANDS,
        train_transform="none",
        batch_size=2,
        eval_batch_size=2,
        num_workers=0,
        seed=0,
    )
    data.setup("fit")
    assert {name: len(index) for name, index in data.read().splits.items()} == {"train": 2, "val": 2}
    assert next(iter(data.val_dataloader())).images.shape == (2, 5, 64, 64)


def test_bands_for_a_network_of_rgb_name_the_way_out(root):
    with pytest.raises(ValueError, match=r"(npy|tif) .*--data.input.channels") as told:
        next(iter(data_of(root, RGB).train_dataloader()))
    assert "remove it" not in str(told.value)


def test_weights_of_rgb_start_a_network_of_other_channels():
    import zoo
    from zoo.training.transfer import load_weights

    given = {k: v + 1 for k, v in zoo.recipe("rt_detr/tiny").module().network.state_dict().items()}
    module = zoo.recipe("rt_detr/tiny", {"model.backbone.channels": 5}).module()
    report = load_weights(module, given, "keep")
    name = "backbone.conv1.0.0.weight"
    assert report.adapted == [f"{name} from 3 to 5 channels"]
    assert f"adapted {name} from 3 to 5 channels" in report.lines()
    own = module.network.state_dict()
    torch.testing.assert_close(own[name], of_channels(given[name], 5))
    assert all(torch.equal(own[key], value) for key, value in given.items() if key != name)


def test_a_fine_tuning_suits_the_model_to_the_channels():
    from zoo.runs import recipes
    from zoo.runs.channels import suit_channels

    recipe = recipes.read("detr/finetune", {"data.input.channels": 1, "data.input.scale": [[0, 4095]]})
    notes = suit_channels(recipe)
    assert recipe["model"]["init_args"]["backbone"]["channels"] == 1
    assert recipe["data"]["init_args"]["input"]["mean"] == [0.449]
    assert len(notes) == 4
    assert suit_channels(recipes.read("detr/finetune")) == []
