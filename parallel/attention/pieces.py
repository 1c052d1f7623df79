"""Which queries see which keys. It follows from the documents alone, so it is worked out on the host, once per micro-batch.

Documents are consecutive tokens of a row. A query sees the keys of its own document up to its own position. So what a stretch
of queries sees of itself is a triangle (causal attention), and what it sees of an earlier stretch is a rectangle.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Span = tuple[int, int]
"""Positions from the first up to, but not including, the last."""


class Piece(NamedTuple):
    """Some consecutive queries of a row, and consecutive keys that all of them see, or see up to their own position."""

    row: int
    queries: Span
    """within the tensor of queries"""
    keys: Span
    """within the tensor of keys"""
    causal: bool
    """equally many queries and keys; the n-th query sees the first n keys"""


Pieces = tuple[Piece, ...]


def document_spans(document_BS: Tensor) -> list[list[Span]]:
    """The documents of every row, in order. `document_BS` numbers the document of every token; it must be on the CPU."""
    borders_BS = torch.ones_like(document_BS, dtype=torch.bool)
    borders_BS[:, 1:] = document_BS[:, 1:] != document_BS[:, :-1]
    spans: list[list[Span]] = [[] for _ in range(document_BS.shape[0])]
    sequence = document_BS.shape[1]
    starts = borders_BS.nonzero().tolist()
    for (row, start), (next_row, next_start) in zip(starts, [*starts[1:], [-1, 0]], strict=True):
        spans[row].append((start, next_start if next_row == row else sequence))
    return spans


def within_documents(document_BS: Tensor) -> Pieces:
    """What every token of whole rows sees: a triangle for each document."""
    return tuple(Piece(row, span, span, True) for row, spans in enumerate(document_spans(document_BS)) for span in spans)


def between_stretches(
    documents: Sequence[Sequence[Span]], queries: Sequence[Span], keys: Sequence[Span], *, causal: bool
) -> Pieces:
    """What the queries of some stretches of a sequence see of the keys of others.

    `documents` are those of every row (see `document_spans`); `queries` and `keys` are the stretches, in positions of the
    sequence, in the order in which the tensors hold them. Without `causal` a query sees all keys of its document.
    """
    query_places, key_places = list(_places(queries)), list(_places(keys))
    return tuple(
        Piece(row, (query[0] - query_shift, query[1] - query_shift), (key[0] - key_shift, key[1] - key_shift), is_triangle)
        for row, spans in enumerate(documents)
        for document in spans
        for its_queries, query_shift in _parts(query_places, document)
        for its_keys, key_shift in _parts(key_places, document)
        for query, key, is_triangle in _seen(its_queries, its_keys, causal)
    )


def _places(stretches: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    """(stretch, its position in the sequence minus that in the tensor); stretches that follow each other are one."""
    merged: list[tuple[Span, int]] = []
    offset = 0
    for start, stop in stretches:
        shift = start - offset
        if merged and merged[-1][0][1] == start and merged[-1][1] == shift:
            merged[-1] = ((merged[-1][0][0], stop), shift)
        else:
            merged.append(((start, stop), shift))
        offset += stop - start
    yield from merged


def _parts(places: Sequence[tuple[Span, int]], document: Span) -> Iterator[tuple[Span, int]]:
    """The parts of stretches that lie in a document."""
    for stretch, shift in places:
        if part := _overlap(stretch, document):
            yield part, shift


def _overlap(one: Span, other: Span) -> Span | None:
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop) if start < stop else None


def _seen(queries: Span, keys: Span, causal: bool) -> Iterator[tuple[Span, Span, bool]]:
    """(queries, keys, whether they are a triangle) of two stretches of one document, in positions of the sequence."""
    if not causal:
        yield queries, keys, False
        return
    if before := _overlap(keys, (0, queries[0])):
        yield queries, before, False
    if own := _overlap(keys, queries):
        yield own, own, True
        if own[1] < queries[1]:
            yield (own[1], queries[1]), own, False
