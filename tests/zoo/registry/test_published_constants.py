"""What published files hold beside weights is compared: files of another function are refused, whoever reads them."""

import re

import pytest
import torch
from tiny_families import small_arguments
from torch import Tensor

from zoo.cli.main import run_command
from zoo.layers.query_selection import anchor_logits
from zoo.registry.weights import load_strictly
from zoo.runs import recipes
from zoo.runs.init_from import read_weights
from zoo.training.module import DetectionModule, build_module
from zoo.training.transfer import load_weights
from zoo.verification.proof import build_recipe

SIDES = {2: (16, 32), 3: (8, 16, 32)}  # strides by number of levels
OFFICIAL = "decoder.decoder.layers.{}.cross_attn.num_points_scale"
OF_TRANSFORMERS = ("num_points_scale", "n_points_scale")
RECIPES = ["rt_detrv2/r18_coco_120e", "dfine/s_coco_132e", "dfine/n_coco_160e", "deimv2/atto_coco_500e"]


def small(recipe: str) -> DetectionModule:
    model = recipes.load(recipes.resolve(recipe))["model"]
    return build_module({**model, "init_args": small_arguments(recipe)}, backbone_weights="random")


def scales(points: list[int]) -> Tensor:
    return torch.cat([torch.full((n,), 1 / n) for n in points])


def constants(module: DetectionModule, height: int = 640, width: int = 640) -> dict[str, Tensor]:
    """As official files have them, of an input of this size."""
    layers = module.network.decoder.decoder.layers
    points = layers[0].cross_attn.points
    maps = [(height // stride, width // stride) for stride in SIDES[len(points)]]
    anchors, valid = anchor_logits(maps, torch.device("cpu"))
    state = {OFFICIAL.format(i): scales(points) for i in range(len(layers))}
    return state | {"decoder.anchors": anchors[None], "decoder.valid_mask": valid[None, :, None]}


@pytest.fixture(scope="module", params=RECIPES)
def module(request) -> DetectionModule:
    return small(request.param)


@pytest.mark.parametrize("size", [(640, 640), (320, 320), (352, 1184)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_anchors_of_every_input_size_and_files_without_any_are_taken(module, size, dtype):
    state = constants(module, *size)
    module.check_published({key: value.to(dtype) for key, value in state.items()})
    module.check_published({key: value for key, value in state.items() if "anchors" in key})
    module.check_published({})


@pytest.mark.parametrize(
    "named", [OFFICIAL, *(f"model.decoder.layers.{{}}.encoder_attn.{n}" for n in OF_TRANSFORMERS)]
)
def test_points_that_are_spread_otherwise_are_refused_by_name(module, named):
    points = module.network.decoder.decoder.layers[0].cross_attn.points
    last = len(module.network.decoder.decoder.layers) - 1
    key = named.format(last)
    module.check_published({key: scales(points)})
    others = [
        [sum(points) - len(points) + 1, *[1] * (len(points) - 1)],
        [1] * sum(points),
        [*points, 1],
        [n + 1 for n in points],
    ]
    for other in others:
        with pytest.raises(
            ValueError, match=rf"^{re.escape(key)} is 1 over .* than \[{points[0]}, {points[1]}"
        ):
            module.check_published({key: scales(other)})
    module.check_published({named.format(last + 1): scales([1])})  # loading tells of a layer too many


def test_other_anchors_are_refused_by_name(module):
    state = constants(module)
    anchors, valid = state["decoder.anchors"], state["decoder.valid_mask"]
    strides = SIDES[3 if anchors.shape[1] == 2000 else 2]  # of a network with another number of levels
    of_others = anchor_logits([(640 // s, 640 // s) for s in strides], anchors.device)[0]
    larger = torch.cat([anchors[..., :2], anchors[..., 2:] + 0.7], -1)  # sides of twice the size
    for wrong in (of_others, anchors[:, :-1], larger, anchors.flip(1)):
        with pytest.raises(ValueError, match=r"^decoder\.anchors or decoder\.valid_mask: \d+ anchors"):
            module.check_published({"decoder.anchors": wrong})
    with pytest.raises(ValueError, match=r"^decoder\.anchors or decoder\.valid_mask"):
        module.check_published({"decoder.anchors": anchors, "decoder.valid_mask": ~valid})


@pytest.fixture(scope="module")
def atto() -> DetectionModule:
    return build_recipe("deimv2/atto_coco_500e")


def test_pull_and_init_from_refuse_them(atto, tmp_path, capsys):
    state = atto.network.state_dict() | constants(atto, 320, 320)
    key = OFFICIAL.format(1)
    torch.save({"model": state}, tmp_path / "theirs.pth")
    torch.save({"model": state | {key: scales([3, 3])}}, tmp_path / "other.pth")
    wrong = f"is of another model: {key} is 1 over 3, 3, 3, 3, 3, 3: those points are spread otherwise over the levels"
    assert run_command(["pull", "deimv2_atto", "--source", str(tmp_path / "other.pth")]) == 2
    assert wrong in capsys.readouterr().err
    assert run_command(["pull", "deimv2_atto", "--source", str(tmp_path / "theirs.pth")]) == 0
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'other.pth'} {wrong}")):
        read_weights(str(tmp_path / "other.pth"), atto, None)
    converted, labels = read_weights(str(tmp_path / "theirs.pth"), atto, None)
    assert labels is None
    assert converted.keys() == atto.network.state_dict().keys()


def test_weights_with_a_tensor_for_each_layer_are_not_those_of_a_shared_one(atto):
    """DEIMv2's Atto has one box head under three names: loading would keep the last of three."""
    state = {key: value.clone() for key, value in atto.network.state_dict().items()}
    load_strictly(atto, state)
    state["decoder.dec_bbox_head.1.layers.0.bias"] += 1
    told = (
        r"^decoder\.dec_bbox_head\.0\.layers\.0\.bias and decoder\.dec_bbox_head\.1\.layers\.0\.bias differ"
    )
    with pytest.raises(ValueError, match=told):
        load_strictly(atto, state)
    with pytest.raises(ValueError, match=told):
        load_weights(atto, state, "keep")
