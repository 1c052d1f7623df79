"""What is computed together: pieces become calls of a kernel, few and large where documents are many and short."""

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from parallel.attention.pieces import Piece, Pieces, Span

SHORT = 256
"""Triangles of at most so many tokens are computed together, padded to a common length."""
_STEP = 32  # lengths are padded to multiples of this


@dataclass(frozen=True)
class Part:
    """Tokens of one side of a call, in a tensor (B, heads, tokens, ...): a slice of some rows, or stretches of equal length.

    Stretches are rows of a new batch. Those that are shorter than the others are padded; what is computed of the padding is
    thrown away.
    """

    rows: slice | Tensor
    tokens: slice | Tensor
    valid: Tensor | None = None
    """(stretches, length): False for padding; None: there is none"""

    def take(self, tensor: Tensor, padding: float | None = None) -> Tensor:
        """These tokens. Padding repeats other tokens, or has the value `padding`."""
        taken = tensor[self.rows, :, self.tokens]
        if isinstance(self.rows, slice):
            return taken
        if padding is not None and self.valid is not None:
            taken = taken.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (taken.dim() - 2)), padding)
        return taken.transpose(1, 2)  # the index puts tokens before heads

    def put(self, total: Tensor, values: Tensor) -> None:
        """Write values of these tokens into a tensor of all."""
        if isinstance(self.rows, slice):
            total[self.rows, :, self.tokens] = values
        else:
            rows, tokens, by_token = self._valid(values)
            total.transpose(1, 2)[rows, tokens] = by_token

    def add(self, total: Tensor, values: Tensor) -> None:
        """Add values of these tokens to a tensor of all."""
        if isinstance(self.rows, slice):
            total[self.rows, :, self.tokens] += values
        else:
            rows, tokens, by_token = self._valid(values)
            total.transpose(1, 2)[rows, tokens] += by_token.to(total.dtype)

    def _valid(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, tokens, values) of what is no padding, token by token."""
        assert isinstance(self.rows, Tensor)
        assert isinstance(self.tokens, Tensor)
        by_token, rows = values.transpose(1, 2), self.rows.expand_as(self.tokens)
        if self.valid is None:
            return rows, self.tokens, by_token
        return rows[self.valid], self.tokens[self.valid], by_token[self.valid]


@dataclass(frozen=True)
class Call:
    """One call of a kernel."""

    queries: Part
    keys: Part
    causal: bool


@dataclass(frozen=True)
class Plan:
    """The calls for some pieces."""

    calls: tuple[Call, ...]
    whole: bool
    """one triangle over all tokens of all rows"""
    disjoint: bool
    """every query and every key is in exactly one call"""


def encode(pieces: Pieces) -> Tensor:
    """Pieces as a tensor on the host (pieces + 1, 6): a compiler takes a tensor of any length without compiling again.

    The last row is an empty piece: a compiler treats a length of 1 apart from all others.
    """
    rows = [(piece.row, *piece.queries, *piece.keys, int(piece.causal)) for piece in pieces]
    encoded = torch.tensor([*rows, (0, 0, 0, 0, 0, 0)], dtype=torch.int64)
    if dynamo := sys.modules.get("torch._dynamo"):  # slow to import, and of no use where nothing is compiled
        dynamo.mark_dynamic(encoded, 0)
    return encoded


def plan_of(encoded: Tensor, rows: int, queries: int, keys: int, device: torch.device) -> Plan:
    """The plan of encoded pieces, for tensors of so many rows, queries and keys. Worked out once, kept while it is in use."""
    return _plan(encoded.numpy().tobytes(), rows, queries, keys, device)


@lru_cache(maxsize=256)
def _plan(encoded: bytes, rows: int, queries: int, keys: int, device: torch.device) -> Plan:
    numbers = torch.frombuffer(bytearray(encoded), dtype=torch.int64).view(-1, 6)[:-1].tolist()
    pieces = [Piece(row, (q0, q1), (k0, k1), bool(causal)) for row, q0, q1, k0, k1, causal in numbers]
    rows_of: dict[tuple[Span, Span, bool], list[int]] = defaultdict(list)
    for piece in pieces:
        rows_of[piece[1:]].append(piece.row)
    calls: list[Call] = []
    short: dict[int, list[Piece]] = defaultdict(list)
    for (its_queries, its_keys, causal), its_rows in rows_of.items():
        length = its_queries[1] - its_queries[0]
        if causal and length <= SHORT and length < queries:
            short[-(-length // _STEP) * _STEP] += [Piece(row, its_queries, its_keys, causal) for row in its_rows]
        elif len(its_rows) == rows:
            calls.append(_slices(slice(None), its_queries, its_keys, causal))
        else:
            calls += [_slices(slice(row, row + 1), its_queries, its_keys, causal) for row in its_rows]
    for length, together in short.items():
        if len(together) == 1:
            (piece,) = together
            calls.append(_slices(slice(piece.row, piece.row + 1), piece.queries, piece.keys, causal=True))
        else:
            calls.append(_stretches(together, length, device))
    return Plan(
        tuple(calls),
        whole=set(rows_of) == {((0, queries), (0, keys), True)} and len(pieces) == rows,
        disjoint=_covers((piece.queries for piece in pieces), rows * queries)
        and _covers((piece.keys for piece in pieces), rows * keys)
        and _once(pieces),
    )


def _slices(rows: slice, queries: Span, keys: Span, causal: bool) -> Call:
    return Call(Part(rows, slice(*queries)), Part(rows, slice(*keys)), causal)


def _stretches(pieces: list[Piece], length: int, device: torch.device) -> Call:
    """Triangles as one batch. Padding stands at the end of a stretch, where no query but padding sees it."""
    rows = torch.tensor([[piece.row] for piece in pieces], device=device)
    lengths = torch.tensor([[piece.queries[1] - piece.queries[0]] for piece in pieces], device=device)
    step = torch.arange(length, device=device)
    valid = None if bool((lengths == length).all()) else step < lengths
    inside = torch.minimum(step, lengths - 1)
    queries, keys = (
        torch.tensor([[getattr(piece, side)[0]] for piece in pieces], device=device) + inside for side in ("queries", "keys")
    )
    return Call(Part(rows, queries, valid), Part(rows, keys, valid), causal=True)


def _covers(spans: Iterable[Span], tokens: int) -> bool:
    return sum(stop - start for start, stop in spans) == tokens


def _once(pieces: list[Piece]) -> bool:
    """Whether no query is in two pieces, and no key."""
    for side in ("queries", "keys"):
        ordered = sorted((piece.row, *getattr(piece, side)) for piece in pieces)
        if any(row == next_row and stop > start for (row, _, stop), (next_row, start, _) in pairwise(ordered)):
            return False
    return True
