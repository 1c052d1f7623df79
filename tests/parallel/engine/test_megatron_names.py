"""The map between Megatron-Core's fused parameters and ours, against its own way to take them apart."""

import pytest
import torch

from parallel.engine.megatron_names import parts, rows_of
from tests.support.megatron_shape import SHAPE

LOCAL = {
    "embedding.word_embeddings.weight": (12, 6, 0),
    "decoder.layers.1.input_layernorm.weight": (6,),
    "decoder.layers.1.self_attention.linear_qkv.weight": (48, 6, 0),
    "decoder.layers.1.self_attention.q_layernorm.weight": (3,),
    "decoder.layers.1.self_attention.k_layernorm.weight": (3,),
    "decoder.layers.1.self_attention.linear_proj.weight": (6, 24, 1),
    "decoder.layers.1.pre_mlp_layernorm.weight": (6,),
    "decoder.layers.1.mlp.linear_fc1.weight": (20, 6, 0),
    "decoder.layers.1.mlp.linear_fc2.weight": (6, 10, 1),
    "decoder.final_layernorm.weight": (6,),
    "output_layer.weight": (12, 6, 0),
}
"""Names -> sizes of the whole parameter, and the dimension that tensor ranks divide."""


def _local(name: str, ranks: int) -> torch.Size:
    sizes = list(LOCAL[name])
    if len(sizes) == 3:
        dim = sizes.pop()
        sizes[dim] //= ranks
    return torch.Size(sizes)


def _gathered(ranks: int, pieces: int) -> dict[str, torch.Tensor]:
    """Our parameters, from what all ranks hold; every parameter of theirs counts its own elements."""
    whole: dict[str, torch.Tensor] = {}
    for number, name in enumerate(LOCAL):
        for rank in range(ranks):
            shape = _local(name, ranks)
            numbers = torch.arange(shape.numel()) + 1000 * (10 * number + (rank if len(LOCAL[name]) == 3 else 0))
            rows = rows_of(name, SHAPE, ranks, rank)
            for start in range(0, shape.numel(), -(-shape.numel() // pieces)):
                part = numbers[start : start + -(-shape.numel() // pieces)]
                for ours, rectangles in parts(part, shape, start, rows).items():
                    into = whole.setdefault(ours, torch.full(rectangles.shape, -1))
                    for offset, view in rectangles.parts:
                        at = tuple(slice(o, o + n) for o, n in zip(offset, view.shape, strict=True))
                        assert (into[at] == -1).all() or torch.equal(into[at], view)
                        into[at] = view
    return whole


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_element_of_ours_is_held_once(ranks):
    whole = _gathered(ranks, 1)
    assert all((value >= 0).all() for value in whole.values())
    block = {name for name in whole if name.startswith("blocks.1.")}
    assert len(block) == 11
    assert set(whole) - block == {"embedding.weight", "norm.weight", "head.weight"}
    split = [value.unique().numel() == value.numel() for value in whole.values()]
    assert all(split)


@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_of_parameters_are_the_same_as_the_parameters(ranks):
    """As data ranks of the distributed optimizer have them."""
    whole = _gathered(ranks, 1)
    assert all(torch.equal(value, whole[name]) for name, value in _gathered(ranks, 3).items())


def test_fused_rows_are_taken_apart_as_megatron_core_does():
    """Its attention views the rows as (group, its queries then key then value, head_dim); its MLP chunks gate and up."""
    for ranks, rank in ((1, 0), (2, 1)):
        name = "decoder.layers.1.self_attention.linear_qkv.weight"
        shape = _local(name, ranks)
        fused = torch.arange(shape.numel())
        ours = parts(fused, shape, 0, rows_of(name, SHAPE, ranks, rank))
        by_group = fused.view(4 // ranks, 8 // 4 + 2, 3, 6)
        theirs = {"query": by_group[:, :2], "key": by_group[:, 2:3], "value": by_group[:, 3:]}
        for part, expected in theirs.items():
            rectangles = ours[f"blocks.1.attention.{part}.weight"]
            views = [view for _, view in sorted(rectangles.parts, key=lambda pair: pair[0])]
            assert torch.equal(torch.cat(views), expected.flatten(0, 2))
            size = (8 if part == "query" else 4) * 3
            assert rectangles.shape == (size, 6)
            assert min(offset for offset, _ in rectangles.parts) == (rank * size // ranks, 0)
        name = "decoder.layers.1.mlp.linear_fc1.weight"
        shape = _local(name, ranks)
        fused = torch.arange(shape.numel())
        ours = parts(fused, shape, 0, rows_of(name, SHAPE, ranks, rank))
        for part, expected in zip(("gate", "up"), fused.view(shape).chunk(2), strict=True):
            ((offset, view),) = ours[f"blocks.1.ffn.{part}.weight"].parts
            assert torch.equal(view, expected)
            assert offset == (rank * 10 // ranks, 0)
