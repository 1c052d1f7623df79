"""Megatron-Core's fused parameters and ours: which rows and columns of which of our parameters a rank has in each of its own.

Query, key and value are one matrix, its rows grouped by key/value head: the group's queries, its key, its value. Gate and up
are one matrix on every rank, its part of the gate first.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from parallel.rectangles import Offset, Rectangles, consecutive
from parallel.shape import ModelShape


@dataclass(frozen=True)
class Rows:
    """Rows of a parameter of Megatron-Core, and where they lie in one of ours."""

    name: str
    shape: tuple[int, ...]
    """of our whole parameter"""
    start: int
    """the first row in Megatron-Core's parameter"""
    count: int
    row: int
    """the first row in ours"""
    column: int = 0
    split_dim: int | None = None
    """the dimension over which tensor ranks divide the parameter"""


_WHOLE = {
    "input_layernorm.weight": "attention_norm",
    "pre_mlp_layernorm.weight": "ffn_norm",
    "self_attention.q_layernorm.weight": "attention.query_norm",
    "self_attention.k_layernorm.weight": "attention.key_norm",
}


def rows_of(name: str, shape: ModelShape, ranks: int, rank: int, first_layer: int = 0) -> list[Rows]:
    """What a parameter of Megatron-Core holds on tensor rank `rank` of `ranks`. The stage's layers count from `first_layer`."""
    hidden, vocabulary = shape.hidden_size, shape.vocab_size // ranks
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)", name)
    if layer is not None:
        return list(_of_layer(layer[2], f"blocks.{first_layer + int(layer[1])}", shape, ranks, rank))
    if name == "decoder.final_layernorm.weight":
        return [Rows("norm.weight", (hidden,), 0, hidden, 0)]
    table = name == "embedding.word_embeddings.weight" or shape.tie_embeddings
    assert table or name == "output_layer.weight", name
    ours = "embedding.weight" if table else "head.weight"
    return [Rows(ours, (shape.vocab_size, hidden), 0, vocabulary, rank * vocabulary, split_dim=0)]


def _of_layer(name: str, block: str, shape: ModelShape, ranks: int, rank: int) -> Iterator[Rows]:
    hidden, ffn, head = shape.hidden_size, shape.ffn_size // ranks, shape.head_dim
    queries = shape.num_heads * head // ranks
    if name in _WHOLE:
        size = head if "q_layernorm" in name or "k_layernorm" in name else hidden
        yield Rows(f"{block}.{_WHOLE[name]}.weight", (size,), 0, size, 0)
    elif name == "self_attention.linear_qkv.weight":
        yield from _of_groups(block, shape, ranks, rank)
    elif name == "self_attention.linear_proj.weight":
        whole = (hidden, shape.num_heads * head)
        yield Rows(f"{block}.attention.output.weight", whole, 0, hidden, 0, rank * queries, split_dim=1)
    elif name == "mlp.linear_fc1.weight":
        for number, part in enumerate(("gate", "up") if shape.ffn == "swiglu" else ("up",)):
            whole = (shape.ffn_size, hidden)
            yield Rows(f"{block}.ffn.{part}.weight", whole, number * ffn, ffn, rank * ffn, split_dim=0)
    else:
        assert name == "mlp.linear_fc2.weight", name
        yield Rows(f"{block}.ffn.down.weight", (hidden, shape.ffn_size), 0, hidden, 0, rank * ffn, split_dim=1)


def _of_groups(block: str, shape: ModelShape, ranks: int, rank: int) -> Iterator[Rows]:
    head, per_group = shape.head_dim, shape.num_heads // shape.num_kv_heads * shape.head_dim
    groups = shape.num_kv_heads // ranks
    for group in range(groups):
        start, whole_group = group * (per_group + 2 * head), rank * groups + group
        sizes = {"query": per_group, "key": head, "value": head}
        for part, size in sizes.items():
            whole = ((shape.num_heads if part == "query" else shape.num_kv_heads) * head, shape.hidden_size)
            yield Rows(f"{block}.attention.{part}.weight", whole, start, size, whole_group * size, split_dim=0)
            start += size


def parts(flat: Tensor, local_shape: Sequence[int], start: int, rows: Sequence[Rows]) -> dict[str, Rectangles]:
    """The elements `flat` of a parameter of Megatron-Core, from number `start` on, as parts of ours, by name."""
    found: dict[str, tuple[tuple[int, ...], list[tuple[Offset, Tensor]]]] = {}
    for offset, view in consecutive(flat, local_shape, start):
        for of in rows:
            begin, end = max(offset[0], of.start), min(offset[0] + view.shape[0], of.start + of.count)
            if begin >= end:
                continue
            inside = view[begin - offset[0] : end - offset[0]]
            row = of.row + begin - of.start
            place = (row,) if len(offset) == 1 else (row, of.column + offset[1])
            found.setdefault(of.name, (of.shape, []))[1].append((place, inside))
    return {name: Rectangles(shape, rectangles) for name, (shape, rectangles) in found.items()}
