"""The average of the weights."""

from torch import nn

from zoo.training.ema import EmaConfig, ModelEma


def test_a_tensor_of_several_names_is_averaged_once_for_each():
    shared = nn.Linear(1, 1, bias=False)
    network = nn.ModuleDict(
        {"one": shared, "two": shared, "three": shared, "own": nn.Linear(1, 1, bias=False)}
    )
    nn.init.zeros_(shared.weight)
    nn.init.zeros_(network["own"].weight)
    ema = ModelEma(network, EmaConfig(decay=0.5, warmup_steps=0))
    nn.init.ones_(shared.weight)
    nn.init.ones_(network["own"].weight)
    ema.update(network)
    averaged = ema.network.state_dict()
    assert averaged["own.weight"].item() == 0.5
    assert averaged["one.weight"].item() == 1 - 0.5**3
    assert averaged["one.weight"].data_ptr() == averaged["three.weight"].data_ptr()
