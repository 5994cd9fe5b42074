"""Keys of published checkpoints: what every family's conversion relies on."""

from __future__ import annotations

import pytest
import torch

from zoo.layers.published_keys import from_hugging_face, renamed

NAMES = ((r"^model\.", "transformer."), (r"\.fc([12])\.", r".linear\1."))


def test_names_are_replaced_in_turn() -> None:
    assert renamed("model.layers.0.fc2.bias", NAMES) == "transformer.layers.0.linear2.bias"


@pytest.mark.parametrize("attention", ["self_attn", "multihead_attn"])
def test_query_key_and_value_are_packed_in_this_order(attention: str) -> None:
    state = {f"model.{attention}.{part}_proj.bias": torch.full((1,), n) for n, part in enumerate("vqk")}
    [(key, packed)] = from_hugging_face(state, NAMES).items()
    assert key == f"transformer.{attention}.in_proj_bias"
    assert packed.tolist() == [1, 2, 0]


def test_a_part_of_an_attention_is_named() -> None:
    with pytest.raises(KeyError, match=r"transformer\.self_attn\.v_proj\.weight is missing"):
        from_hugging_face({f"model.self_attn.{part}_proj.weight": torch.ones(1) for part in "qk"}, NAMES)


def test_two_names_of_one_tensor_must_agree() -> None:
    state = {"model.0.bias": torch.ones(1), "transformer.0.bias": torch.ones(1)}
    assert from_hugging_face(state, NAMES).keys() == {"transformer.0.bias"}
    with pytest.raises(ValueError, match=r"two copies of transformer\.0\.bias differ"):
        from_hugging_face(state | {"model.0.bias": torch.zeros(1)}, NAMES)
