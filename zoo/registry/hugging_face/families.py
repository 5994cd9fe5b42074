"""What transformers calls the numbers of our networks: one table for reading its config.json and for writing it.

A row of `same` is a number that both have; what `derived` gives follows from our arguments, or is the one value that
our network knows. Reading takes the first, writes a config of what it took, and compares: a key that differs belongs to
another network and is named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from zoo.registry.hugging_face.backbones import Candidate, deep_stem_resnets, hgnets, plain_resnets

Arguments = dict[str, Any]  # init_args of a module
Config = Mapping[str, Any]  # of transformers


class OtherNetworkError(ValueError):
    """A config of transformers describes a network that we do not have, or the other way round; names the key."""


@dataclass(frozen=True)
class Family:
    """A model type of transformers and the modules of ours that are the same networks.

    Attributes:
        model_type: of config.json.
        modules: class of transformers -> (our module, recipe that says how it is trained).
        processor: class of the image processor.
        same: key of config.json -> key of our arguments, or of several where all must be equal.
        read: (config, arguments): completes arguments where a number has another form.
        derived: (arguments) -> other keys that decide what the network computes.
        backbones: (arguments) -> the backbones that there may be.
        written: keys that are only written.
    """

    model_type: str
    modules: Mapping[str, tuple[str, str]]
    processor: str
    same: Mapping[str, str]
    read: Callable[[Config, Arguments], None]
    derived: Callable[[Arguments], dict[str, Any]]
    backbones: Callable[[Arguments], Iterable[Candidate]]
    written: Callable[[Arguments], dict[str, Any]] = lambda arguments: {}

    def arguments_of(self, config: Config, template: Arguments) -> Arguments:
        """Our arguments of a config with all its defaults; `template` says how the family is trained.

        Raises:
            OtherNetworkError: naming the key of the config.
        """
        arguments = copy.deepcopy(template)
        for theirs, ours in self.same.items():
            _put(arguments, ours, config[theirs])
        self.read(config, arguments)
        arguments["backbone"] |= {"weights": "random", **self._backbone_of(config, arguments)}
        for key, value in self._deciding(arguments).items():
            if _lists(config.get(key)) != _lists(value):
                raise OtherNetworkError(f"{key} is {config.get(key)!r}; this package has {value!r} there")
        return arguments

    def config_of(self, arguments: Arguments) -> dict[str, Any]:
        """Of our arguments.

        Raises:
            OtherNetworkError: naming what transformers does not have.
        """
        own = arguments["backbone"]
        fitting = (c for block, c in self.backbones(arguments) if all(own[k] == v for k, v in block.items()))
        backbone = next(fitting, None)
        if backbone is None:
            raise OtherNetworkError(f"transformers has no backbone {own['name']!r} for {self.model_type}")
        config = {**self._deciding(arguments), **self.written(arguments), "backbone_config": backbone}
        if "feat_strides" in config:
            config["encoder_in_channels"] = backbone["hidden_sizes"][-len(config["feat_strides"]) :]
        return config

    def _deciding(self, arguments: Arguments) -> dict[str, Any]:
        same = {theirs: _get(arguments, ours) for theirs, ours in self.same.items()}
        return {**same, **self.derived(arguments)}

    def _backbone_of(self, config: Config, arguments: Arguments) -> dict[str, Any]:
        """What our `backbone` block says of theirs; the error names the key that is nearest to fit."""
        given = dict(config["backbone_config"])
        given["backbone"] = str(given.get("backbone")).partition(".")[0]  # timm's tag names weights
        misfits = []
        for block, expected in self.backbones(arguments):
            if expected["model_type"] == given.get("model_type") == "hgnet_v2":
                # only those of the maps are used; the files of D-FINE on the hub have others before them
                given["hidden_sizes"] = [
                    *expected["hidden_sizes"][: -block["maps"]],
                    *list(config["backbone_config"].get("hidden_sizes") or [])[-block["maps"] :],
                ]
            wrong = [key for key, value in expected.items() if _lists(given.get(key)) != _lists(value)]
            if not wrong:
                return block
            misfits.append((len(wrong), f"{wrong[0]} is {given.get(wrong[0])!r}, not {expected[wrong[0]]!r}"))
        raise OtherNetworkError(f"backbone_config fits none of this package: {min(misfits)[1]}")


def _get(arguments: Arguments, key: str) -> Any:
    for part in key.split("."):
        arguments = arguments[part]
    return arguments


def _put(arguments: Arguments, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    _get(arguments, ".".join(parents))[last] = value


def _lists(value: Any) -> Any:
    """A value of a config: tuples are lists."""
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


# -- DETR and Deformable DETR ---------------------------------------------------------------------

_TRANSFORMER = {
    "d_model": "transformer.dim",
    "encoder_attention_heads": "transformer.num_heads",
    "decoder_attention_heads": "transformer.num_heads",
    "encoder_ffn_dim": "transformer.ffn_dim",
    "decoder_ffn_dim": "transformer.ffn_dim",
    "encoder_layers": "transformer.encoder_layers",
    "decoder_layers": "transformer.decoder_layers",
    "num_queries": "transformer.num_queries",
    "dropout": "transformer.dropout",
}


def _read_nothing(config: Config, arguments: Arguments) -> None:
    """All numbers have the same form."""


def _detr(arguments: Arguments) -> dict[str, Any]:
    if arguments["transformer"]["pre_norm"]:
        raise OtherNetworkError("transformers has no DETR with transformer.pre_norm")
    # with auxiliary losses transformers normalises between the layers, which is another network
    return {"activation_function": "relu", "num_channels": 3, "auxiliary_loss": False}


def _read_deformable(config: Config, arguments: Arguments) -> None:
    if config["two_stage"]:
        arguments["transformer"]["num_queries"] = config["two_stage_num_proposals"]


def _deformable(arguments: Arguments) -> dict[str, Any]:
    sizes = arguments["transformer"]
    proposals = {"two_stage_num_proposals": sizes["num_queries"]} if sizes["two_stage"] else {}
    return {"activation_function": "relu", "num_channels": 3, "position_embedding_type": "sine", **proposals}


_DETR = Family(
    model_type="detr",
    modules={
        "DetrForObjectDetection": ("zoo.architectures.detr.DetrModule", "detr/finetune"),
        "DetrForSegmentation": ("zoo.architectures.detr.DetrSegmentationModule", "detr/finetune_masks"),
    },
    processor="DetrImageProcessor",
    same={**_TRANSFORMER, "position_embedding_type": "transformer.position"},
    read=_read_nothing,
    derived=_detr,
    backbones=lambda arguments: chain(plain_resnets(1), plain_resnets(4)),  # boxes need the last map only
)
_DEFORMABLE = Family(
    model_type="deformable_detr",
    modules={
        "DeformableDetrForObjectDetection": (
            "zoo.architectures.deformable_detr.DeformableDetrModule",
            "deformable_detr/finetune",
        )
    },
    processor="DeformableDetrImageProcessor",
    same={
        **_TRANSFORMER,
        "num_feature_levels": "transformer.num_levels",
        "encoder_n_points": "transformer.encoder_points",
        "decoder_n_points": "transformer.decoder_points",
        "with_box_refine": "transformer.refine_boxes",
        "two_stage": "transformer.two_stage",
    },
    read=_read_deformable,
    derived=_deformable,
    backbones=lambda arguments: plain_resnets(4 if arguments["transformer"]["num_levels"] == 1 else 2),
    # by default transformers ties the class heads of all layers
    written=lambda arguments: {"tie_word_embeddings": not arguments["transformer"]["refine_boxes"]},
)

# -- RT-DETR and the families after it ------------------------------------------------------------

_REFINING = {
    "encoder_hidden_dim": "encoder.dim",
    "encoder_attention_heads": "encoder.num_heads",
    "encoder_ffn_dim": "encoder.ffn_dim",
    "hidden_expansion": "encoder.expansion",
    "d_model": "decoder.dim",
    "decoder_attention_heads": "decoder.num_heads",
    "decoder_ffn_dim": "decoder.ffn_dim",
    "num_queries": "decoder.num_queries",
    "num_denoising": "decoder.num_denoising",
    "label_noise_ratio": "decoder.label_noise",
    "box_noise_scale": "decoder.box_noise",
    "freeze_backbone_batch_norms": "backbone.frozen_norm",
}


def _refining(arguments: Arguments, levels: int) -> dict[str, Any]:
    """What our encoders and decoders have no choice of."""
    return {
        "encoder_layers": 1,
        "encode_proj_layers": [levels - 1],
        "feat_strides": [8, 16, 32][-levels:],
        "num_feature_levels": levels,
        "decoder_in_channels": [arguments["encoder"]["dim"]] * levels,
        "positional_encoding_temperature": 10000,
        "encoder_activation_function": "gelu",
        "activation_function": "silu",
        "normalize_before": False,
        "eval_size": None,
        "anchor_image_size": None,
        "with_box_refine": True,
        "layer_norm_eps": 1e-5,
        "batch_norm_eps": 1e-5,
    }


def _read_layers(config: Config, arguments: Arguments) -> None:
    layers = config["decoder_layers"]
    arguments["decoder"] |= {"num_layers": layers, "eval_layers": layers}


def _rt_detr(arguments: Arguments) -> dict[str, Any]:
    if arguments["encoder"]["num_blocks"] != 3:
        raise OtherNetworkError(
            "transformers' RT-DETR has three blocks where encoder.num_blocks says otherwise"
        )
    if arguments["decoder"].get("learned_queries"):
        raise OtherNetworkError(
            "transformers' RT-DETR fails with learn_initial_query, our decoder.learned_queries"
        )
    layers = arguments["decoder"]["eval_layers"]  # those behind are not written
    return _refining(arguments, 3) | {"decoder_layers": layers, "decoder_activation_function": "relu"}


def _read_rt_detrv2(config: Config, arguments: Arguments) -> None:
    _read_layers(config, arguments)
    arguments["encoder"]["num_blocks"] = 3
    arguments["decoder"] |= {
        "num_points": [config["decoder_n_points"]] * 3,
        "sampling": "discrete" if config["decoder_method"] == "discrete" else "bilinear",
        "selection": "best_class",
        "activation": "relu",
        "position_hidden": [],
    }


def _rt_detrv2(arguments: Arguments) -> dict[str, Any]:
    decoder = arguments["decoder"]
    expected = {
        "selection": ("best_class",),
        "activation": ("relu",),
        "position_hidden": ([], [2 * decoder["dim"]]),
        "num_points": ([decoder["num_points"][0]] * 3,),
    }
    for key, values in expected.items():
        if decoder.get(key, values[0]) not in values:
            raise OtherNetworkError(f"transformers' RT-DETRv2 has no decoder.{key} {decoder[key]!r}")
    return _rt_detr(arguments) | {
        "decoder_n_levels": 3,
        "decoder_n_points": decoder["num_points"][0],
        "decoder_method": "discrete" if decoder.get("sampling") == "discrete" else "default",
        "decoder_offset_scale": 0.5,
    }


def _read_dfine(config: Config, arguments: Arguments) -> None:
    layers, levels, points = (config[k] for k in ("decoder_layers", "num_feature_levels", "decoder_n_points"))
    if config["eval_idx"] not in (-1, layers - 1):
        raise OtherNetworkError(f"eval_idx is {config['eval_idx']!r}; this package has the last layer there")
    arguments["decoder"] |= {
        "num_layers": layers,
        "eval_layers": layers,
        "num_points": [points] * levels if isinstance(points, int) else list(points),
        "bins": config["max_num_bins"] + 1,
        "activation": "relu",
    }
    arguments["encoder"]["num_blocks"] = round(3 * config["depth_mult"])


def _dfine(arguments: Arguments) -> dict[str, Any]:
    decoder = arguments["decoder"]
    if decoder.get("activation", "relu") != "relu":
        raise OtherNetworkError(f"transformers' D-FINE has no decoder.activation {decoder['activation']!r}")
    return _refining(arguments, len(decoder["num_points"])) | {
        "decoder_activation_function": "relu",
        "learn_initial_query": False,
        "decoder_method": "default",
        "decoder_offset_scale": 0.5,
        "max_num_bins": decoder.get("bins", 33) - 1,
        "layer_scale": 1,
        "up": 0.5,
        "top_prob_values": 4,
        "lqe_hidden_dim": 64,
        "lqe_layers": 2,
    }


def _dfine_written(arguments: Arguments) -> dict[str, Any]:
    decoder = arguments["decoder"]
    return {
        "decoder_layers": decoder["eval_layers"],  # those behind are not written
        "eval_idx": -1,
        "decoder_n_points": list(decoder["num_points"]),
        "depth_mult": arguments["encoder"]["num_blocks"] / 3,
    }


_RT_DETR = Family(
    model_type="rt_detr",
    modules={"RTDetrForObjectDetection": ("zoo.architectures.rt_detr.RtDetrModule", "rt_detr/finetune")},
    processor="RTDetrImageProcessor",
    same={
        **_REFINING,
        "learn_initial_query": "decoder.learned_queries",
        "decoder_n_points": "decoder.num_points",
    },
    read=_read_layers,
    derived=_rt_detr,
    backbones=lambda arguments: deep_stem_resnets(),
)
_RT_DETRV2 = Family(
    model_type="rt_detr_v2",
    modules={
        "RTDetrV2ForObjectDetection": ("zoo.architectures.rt_detrv2.RtDetrV2Module", "rt_detrv2/finetune")
    },
    processor="RTDetrImageProcessor",
    same={**_REFINING, "learn_initial_query": "decoder.learned_queries"},
    read=_read_rt_detrv2,
    derived=_rt_detrv2,
    backbones=lambda arguments: deep_stem_resnets(),
)
_DFINE = Family(
    model_type="d_fine",
    modules={"DFineForObjectDetection": ("zoo.architectures.dfine.DFineModule", "dfine/finetune")},
    processor="RTDetrImageProcessor",
    same={**_REFINING, "reg_scale": "decoder.reg_scale"},
    read=_read_dfine,
    derived=_dfine,
    backbones=lambda arguments: hgnets(len(arguments["decoder"]["num_points"])),
    written=_dfine_written,
)

FAMILIES = {family.model_type: family for family in (_DETR, _DEFORMABLE, _RT_DETR, _RT_DETRV2, _DFINE)}
