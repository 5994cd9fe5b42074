"""Small models of transformers, as `save_pretrained` leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

LABELS = {0: "disc", 1: "square", 2: "no"}
_SMALL_TRANSFORMER = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 7,
}  # fmt: skip
_SMALL_REFINING = {
    "encoder_hidden_dim": 32, "d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_layers": 2, "num_queries": 7, "num_denoising": 4,
    "encoder_in_channels": [128, 256, 512], "decoder_in_channels": [32, 32, 32], "hidden_expansion": 0.5,
}  # fmt: skip
_DEFORMABLE = {**_SMALL_TRANSFORMER, "d_model": 64, "two_stage_num_proposals": 7, "backbone": "resnet18"}
_B0 = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 64, 256, 512], "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024], "hidden_sizes": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1], "stage_numb_of_layers": [3, 3, 3, 3], "use_learnable_affine_block": True,
}  # fmt: skip


def _resnet18(kind: str, **more: Any) -> Any:
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic", **more}
    return getattr(transformers, kind)(**sizes)


def _dfine(levels: int = 3, **more: Any) -> dict[str, Any]:
    backbone = transformers.HGNetV2Config(out_indices=[*range(5 - levels, 5)], **_B0)
    return {
        **_SMALL_REFINING, "backbone_config": backbone, "encoder_in_channels": [256, 512, 1024][-levels:],
        "decoder_in_channels": [32] * levels, "feat_strides": [8, 16, 32][-levels:], "num_feature_levels": levels,
        "encode_proj_layers": [levels - 1], "decoder_n_points": [3, 6, 3][-levels:], "depth_mult": 0.34, **more,
    }  # fmt: skip


def variants() -> dict[str, tuple[str, Any]]:
    """Name -> (class, config): one of each network that both have."""
    deep = _resnet18("RTDetrResNetConfig", out_indices=[2, 3, 4])
    own = {"use_timm_backbone": False, "backbone_config": _resnet18("ResNetConfig", out_indices=[1, 2, 3, 4])}
    levels = {"use_timm_backbone": False, "backbone_config": _resnet18("ResNetConfig", out_indices=[2, 3, 4])}
    r18 = {**_SMALL_REFINING, "backbone_config": deep}
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "detr": ("Detr", {**_SMALL_TRANSFORMER, "backbone": "resnet18"}),
        "detr dc5": ("Detr", {**_SMALL_TRANSFORMER, "backbone": "resnet18", "dilation": True}),
        "detr own resnet": ("Detr", {**_SMALL_TRANSFORMER, **own}),
        "deformable": ("DeformableDetr", _DEFORMABLE),
        "deformable single": ("DeformableDetr", {**_DEFORMABLE, "num_feature_levels": 1}),
        "deformable dc5": ("DeformableDetr", {**_DEFORMABLE, "num_feature_levels": 1, "dilation": True}),
        "deformable refine": (
            "DeformableDetr", {**_DEFORMABLE, "with_box_refine": True, "tie_word_embeddings": False}),
        "deformable tied": ("DeformableDetr", {**_DEFORMABLE, "with_box_refine": True}),
        "deformable two-stage": ("DeformableDetr", {**_DEFORMABLE, "with_box_refine": True, "two_stage": True}),
        "deformable own resnet": ("DeformableDetr", {**_DEFORMABLE, "backbone": None, **levels}),
        "rt_detr": ("RTDetr", r18),
        "rt_detr unfrozen": (
            "RTDetr", {**r18, "freeze_backbone_batch_norms": False, "hidden_expansion": 1.0}),
        "rt_detr_v2": ("RTDetrV2", r18),
        "rt_detr_v2 discrete": ("RTDetrV2", {**r18, "decoder_method": "discrete"}),
        "d_fine": ("DFine", _dfine()),
        "d_fine n": ("DFine", _dfine(2, reg_scale=8.0)),
    }  # fmt: skip
    names = {
        f"{key}ForObjectDetection": key for key in ("Detr", "DeformableDetr", "RTDetr", "RTDetrV2", "DFine")
    }
    of_kind = {kind: name for name, kind in names.items()}
    all_variants = {name: (of_kind[kind], kind, keys) for name, (kind, keys) in made.items()}
    masks = {**_SMALL_TRANSFORMER, "d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    all_variants["detr masks"] = ("DetrForSegmentation", "Detr", {**masks, "backbone": "resnet18"})
    return {
        name: (architecture, getattr(transformers, f"{kind}Config")(**keys))
        for name, (architecture, kind, keys) in all_variants.items()
    }


def made(name: str) -> Any:
    """A model of `variants` whose weights all differ from what they start with; constants stay."""
    architecture, config = variants()[name]
    config.id2label, config.label2id = dict(LABELS), {label: index for index, label in LABELS.items()}
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not key.endswith(
                ("up", "reg_scale", "n_points_scale", "num_points_scale")
            ):
                value.add_(torch.empty_like(value).uniform_(-0.05, 0.05))
                if key.endswith("running_var"):
                    value.abs_()
        if config.model_type == "d_fine":
            # its processor gives as many detections as queries, and our rule 300: one class is likely, the others not
            for head in model.model.decoder.class_embed:
                head.bias.copy_(torch.tensor([0.0, -6.0, -6.0]))
        if getattr(config, "with_box_refine", False) and config.model_type == "deformable_detr":
            # two copies where they are not tied, which a trained model has equal
            model.model.decoder.bbox_embed.load_state_dict(model.bbox_embed.state_dict())
    return model


def saved(name: str, folder: Path, processor: dict[str, Any] | None = None) -> Any:
    """`made`, saved with its processor at a size of 64 pixels; returns the model."""
    model = made(name)
    model.save_pretrained(folder)
    kind = type(model).__name__
    family = (
        "RTDetr"
        if kind.startswith(("RTDetr", "DFine"))
        else "DeformableDetr"
        if "Deformable" in kind
        else "Detr"
    )
    stretch = family == "RTDetr"
    size = {"height": 64, "width": 64} if stretch else {"shortest_edge": 64, "longest_edge": 100}
    getattr(transformers, f"{family}ImageProcessor")(size=size, **(processor or {})).save_pretrained(folder)
    return model


def changed(path: Path, **keys: Any) -> None:
    """Writes other values into a JSON file; None takes a key away."""
    document = json.loads(path.read_text())
    document.update(keys)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
