"""The mask branch gives a query what it would give it among all; equality with the official code is in tests/golden."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.layers.mask_head import AttentionMap, MaskHead, QueryMasks

DIM, HEADS, QUERIES = 128, 8, 9
STAGES = (24, 16, 12)
SIZES = ((4, 5), (7, 9), (13, 18))  # each about twice the one before, as odd images give them


class Branch(nn.Module):
    """Both parts and the features they read, all of them leaves with a gradient."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.attention, self.head = AttentionMap(DIM, HEADS), MaskHead(DIM, HEADS, STAGES)
        generator = torch.Generator().manual_seed(1)
        # a sum of masks must not be blind to what normalisation does to them
        for name, parameter in self.head.named_parameters():
            if "gn" in name or name.endswith("bias"):
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)

        def leaf(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.queries, self.memory = leaf(2, QUERIES, DIM), leaf(2, 6, DIM)
        self.projected = leaf(2, DIM, 2, 3)
        self.stages = nn.ParameterList(
            leaf(2, channels, *size) for channels, size in zip(STAGES, SIZES, strict=True)
        )
        self.to(dtype)
        self.padding = torch.zeros(2, 2, 3, dtype=torch.bool)
        self.padding[1, :, 2] = True

    def forward(self, image: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        masks = QueryMasks(
            self.attention,
            self.head,
            self.queries,
            self.memory,
            self.padding,
            self.projected,
            tuple(self.stages),
        )
        return masks(image, query)

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        self.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in self.named_parameters()}


def everyone() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(2).repeat_interleave(QUERIES), torch.arange(QUERIES).repeat(2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize(
    ("image", "query"), [([1, 0, 1, 0], [3, 8, 0, 2]), ([0], [5]), ([1, 1], [7, 2])], ids=str
)
def test_chosen_queries_equal_all_queries_in_value_and_gradient(image, query, dtype, tolerance):
    image, query = torch.tensor(image), torch.tensor(query)
    branch = Branch(dtype)
    weights = torch.randn(len(query), *SIZES[-1], dtype=dtype)
    chosen = branch(image, query)
    mine = branch.gradients((chosen.sigmoid() * weights).sum())
    among_all = branch(*everyone()).unflatten(0, (2, QUERIES))[image, query]
    theirs = branch.gradients((among_all.sigmoid() * weights).sum())
    assert chosen.shape == (len(query), *SIZES[-1])
    assert (chosen - among_all).abs().max() <= tolerance * among_all.abs().max()
    largest = max(g.abs().max() for g in theirs.values())
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).abs().max() <= tolerance * largest, name


def test_features_beside_the_attention_maps_are_convolved_as_if_concatenated():
    branch = Branch()
    image = torch.tensor([0, 1, 1])
    maps = torch.rand(3, HEADS, 2, 3, dtype=torch.float64)
    together = branch.head.lay1(torch.cat([branch.projected[image], maps], dim=1))
    torch.testing.assert_close(
        branch.head.first(branch.projected, maps, image), together, rtol=1e-12, atol=1e-12
    )


def test_attention_is_one_softmax_over_heads_and_places_and_zero_on_padding():
    branch = Branch()
    padding = branch.padding.flatten(1)
    maps = branch.attention(branch.queries, branch.memory, padding)
    assert maps.shape == (2, QUERIES, HEADS, 6)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, QUERIES, dtype=torch.float64))
    assert (maps[1, :, :, padding[1]] == 0).all()
    assert (maps[1, :, :, ~padding[1]] > 0).all()


def test_no_query_at_all_gives_every_parameter_a_gradient_of_zero():
    """A batch without objects must leave the graph as it is on other ranks."""
    branch = Branch()
    nothing = torch.empty(0, dtype=torch.int64)
    masks = branch(nothing, nothing)
    assert masks.shape == (0, *SIZES[-1])
    assert all((g == 0).all() for g in branch.gradients(masks.sum()).values())


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    head, attention = MaskHead(256, 8, (1024, 512, 256)), AttentionMap(256, 8)
    assert head.lay1.weight.shape == (264, 264, 3, 3)
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = (3 / module.weight[0].numel()) ** 0.5  # kaiming uniform of a = 1
            assert module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
            assert (module.bias == 0).all(), name
    assert attention.k_linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert (attention.q_linear.bias == 0).all()
    assert sum(p.numel() for p in [*head.parameters(), *attention.parameters()]) == 1_333_657


def test_nearest_is_what_enlarges_between_stages():
    branch = Branch()
    seen = {}
    branch.head.lay3.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    branch.head.gn2.register_forward_hook(lambda module, inputs, output: seen.update(before=output.clone()))
    image = torch.tensor([1, 0])
    branch(image, torch.tensor([0, 1]))
    adapted = branch.head.adapter1(branch.stages[0])[image]
    nearest = F.interpolate(seen["before"].relu(), SIZES[0], mode="nearest")
    torch.testing.assert_close(seen["x"], nearest + adapted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "heads", "stages", "message"),
    [
        (96, 8, STAGES, "dim is 96 with 8 heads.*divisible by 128"),
        (128, 4, STAGES, r"dim \+ num_heads by 8"),
        (128, 8, STAGES[:2], "3 backbone stages besides the last, this backbone has 2; use a plain ResNet"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(dim, heads, stages, message):
    with pytest.raises(ValueError, match=message):
        MaskHead(dim, heads, stages)
