"""Keys of published checkpoints: Hugging Face names to those of the official code, attention packed as there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Names = Iterable[tuple[str, str]]  # (pattern, replacement), applied in turn

# RTDetrForObjectDetection's encoder and decoder in transformers 4 (the files on the hub) and 5, to the official
# names; those of the families after it are the same
HUGGING_FACE_RT_DETR: Names = (
    (r"^model\.encoder_input_proj\.", "encoder.input_proj."),
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^model\.encoder\.aifi\.", "encoder.encoder."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
    (r"^model\.decoder\.query_pos_head\.", "decoder.query_pos_head."),
    (r"^(model\.decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(model\.decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.weight_embedding\.", "decoder.tgt_embed."),
    (r"^model\.(denoising_class_embed|enc_output|enc_score_head|enc_bbox_head)\.", r"decoder.\1."),
    (r"(layers\.\d)\.(?:mlp\.)?fc([12])\.", r"\1.linear\2."),
    (r"(layers\.\d)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(layers\.\d)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(layers\.\d)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"^(encoder\..*layers\.\d)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*layers\.\d)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
)

_QUERY_KEY_VALUE = re.compile(r"(.+\.(?:self|multihead)_attn)\.([qkv])_proj\.(weight|bias)")
# parts of a projection by name, as RT-DETRv2 and the families after it have them
_PROJECTION = re.compile(r"(encoder\.input_proj\.\d|decoder\.enc_output)\.(conv|proj|norm)\.")


def numbered(key: str) -> str:
    """`key` with the parts of a projection by number, as RT-DETR and our networks have them."""
    return _PROJECTION.sub(lambda match: f"{match[1]}.{int(match[2] == 'norm')}.", key)


def renamed(key: str, names: Names) -> str:
    """`key` with every pattern replaced."""
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def put(converted: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Adds a tensor that a file may have under several names.

    Raises:
        ValueError: its copies differ.
    """
    if name in converted and not torch.equal(converted[name], value):
        raise ValueError(f"two copies of {name} differ; they are one tensor, so the file is damaged")
    converted[name] = value


def from_hugging_face(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """A state dict under the official names; q, k and v of an attention become its `in_proj`.

    Raises:
        KeyError: an attention lacks one of the three.
        ValueError: tensors that get the same name differ.
    """
    converted: dict[str, Tensor] = {}
    attentions: dict[tuple[str, str], dict[str, Tensor]] = {}
    for theirs, value in state.items():
        key = renamed(theirs, names)
        match = _QUERY_KEY_VALUE.fullmatch(key)
        if match:
            attentions.setdefault((match[1], match[3]), {})[match[2]] = value
        else:
            put(converted, key, value)
    for (attention, leaf), parts in attentions.items():
        absent = [f"{attention}.{part}_proj.{leaf}" for part in "qkv" if part not in parts]
        if absent:
            raise KeyError(f"{absent[0]} is missing: the file has a part of this attention only")
        converted[f"{attention}.in_proj_{leaf}"] = torch.cat([parts[part] for part in "qkv"])
    return converted
