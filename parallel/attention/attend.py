"""Attention over pieces, in eager and in compiled code: forward, backward, and both as one differentiable function.

Shape suffixes: B batch, H query heads, K key/value heads, S tokens, D head_dim.
"""

from typing import Any

import torch
from torch import Tensor

from parallel.attention import kernels
from parallel.attention.plan import Plan, plan_of
from parallel.recompute import compute_or_reuse


def attend(query_BHSD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, encoded: Tensor, scale: float) -> Tensor:
    """Attention (B, H, S, D) of whole rows within their documents; differentiable.

    `encoded` are the pieces that say which query sees which keys (`plan.encode`), on the host.
    """
    if torch.compiler.is_compiling():
        output, _ = torch.ops.foretrain.attend(query_BHSD, key_BKSD, value_BKSD, encoded, scale)
        compiled: Tensor = output
        return compiled
    eager: Tensor = _Attend.apply(query_BHSD, key_BKSD, value_BKSD, encoded, scale)
    return eager


def forward(query: Tensor, key: Tensor, value: Tensor, encoded: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(output (B, H, S, D) in the dtype of the queries, log-sum-exp (B, H, S) in at least fp32).

    A query that sees no key has output 0 and log-sum-exp -inf.
    """
    plan = _plan(query, key, encoded)
    if plan.whole:
        return kernels.forward(query, key, value, True, scale)
    batch, heads, tokens, head_dim = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    kind = query.dtype if plan.disjoint else wide
    output = query.new_empty((batch, tokens, heads, head_dim), dtype=kind).transpose(1, 2)
    lse = query.new_empty((batch, heads, tokens), dtype=wide)
    if not plan.disjoint:
        output.zero_()
        lse.fill_(float("-inf"))
    for call in plan.calls:
        part, part_lse = kernels.forward(
            call.queries.take(query), call.keys.take(key), call.keys.take(value), call.causal, scale
        )
        if not plan.disjoint:
            before = call.queries.take(output), call.queries.take(lse)
            merge_into(*before, part, part_lse)
            part, part_lse = before
        call.queries.put(output, part)
        call.queries.put(lse, part_lse)
    return output.to(query.dtype), lse


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    encoded: Tensor,
    scale: float,
    totals: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values between these pieces; added to `totals`, where they are given.

    `output` and `lse` are those of the attention over all that the queries see, which may be more than these pieces.
    """
    plan = _plan(query, key, encoded)
    if plan.whole and totals is None:
        return kernels.backward(gradient, query, key, value, output, lse, True, scale)
    write_alone = totals is None and plan.disjoint
    if totals is None:
        wide = query.dtype if plan.disjoint else torch.promote_types(query.dtype, torch.float32)
        make = torch.empty_like if plan.disjoint else torch.zeros_like
        totals = (make(query, dtype=wide), make(key, dtype=wide), make(value, dtype=wide))
    for call in plan.calls:
        queries, keys = call.queries, call.keys
        parts = kernels.backward(
            queries.take(gradient, padding=0.0),
            queries.take(query),
            keys.take(key),
            keys.take(value),
            queries.take(output),
            queries.take(lse, padding=float("inf")),  # so that what is padded has no probabilities, and no gradient
            call.causal,
            scale,
        )
        for side, total, part in zip((queries, keys, keys), totals, parts, strict=True):
            (side.put if write_alone else side.add)(total, part)
    return totals


def merge_into(output: Tensor, lse: Tensor, other_output: Tensor, other_lse: Tensor) -> None:
    """Make output and log-sum-exp those over two sets of keys, in place: O <- O - sigmoid(m - l) (O - o), l <- logaddexp(l, m).

    If neither has seen a key, both stay as they are.
    """
    share = torch.where(other_lse == float("-inf"), 0.0, torch.sigmoid(other_lse - lse))
    output.add_(share[..., None] * (other_output - output))
    lse.copy_(torch.logaddexp(lse, other_lse))


def _plan(query: Tensor, key: Tensor, encoded: Tensor) -> Plan:
    return plan_of(encoded, query.shape[0], query.shape[2], key.shape[2], query.device)


class _Attend(torch.autograd.Function):
    """For eager code, in which a custom operator would cost more than a small layer's attention."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, encoded: Tensor, scale: float) -> Tensor:
        output, lse = compute_or_reuse(lambda: forward(query, key, value, encoded, scale))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.encoded, ctx.scale = encoded, scale
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        return *backward(gradient, query, key, value, output, lse, ctx.encoded, ctx.scale), None, None


@torch.library.custom_op("foretrain::attend", mutates_args=())
def _operator(query: Tensor, key: Tensor, value: Tensor, encoded: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    output, lse = forward(query, key, value, encoded, scale)
    return output.contiguous(), lse.contiguous()


@torch.library.custom_op("foretrain::attend_backward", mutates_args=())
def _operator_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, encoded: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = backward(gradient, query, key, value, output, lse, encoded, scale)
    query_gradient, key_gradient, value_gradient = (each.to(query.dtype).contiguous() for each in gradients)
    return query_gradient, key_gradient, value_gradient


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, encoded: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), lse


@_operator_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, encoded: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, encoded, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, encoded)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, output, lse, encoded = ctx.saved_tensors
    return *torch.ops.foretrain.attend_backward(gradient, query, key, value, output, lse, encoded, ctx.scale), None, None


_operator.register_autograd(_differentiate, setup_context=_save)
