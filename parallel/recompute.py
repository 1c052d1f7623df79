"""Activation recomputation: what a block saves for its backward pass, and what it computes again."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from parallel.names import Recompute

_aten, _collectives = torch.ops.aten, torch.ops._c10d_functional
_EXPENSIVE = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _collectives.all_gather_into_tensor.default,
    _collectives.reduce_scatter_tensor.default,
    _collectives.all_reduce.default,
}


def recompute_blocks(blocks: Iterable[nn.Module], choice: Recompute) -> None:
    """Make each block drop and recompute its activations as `choice` says, in place. Names of parameters do not change."""
    if choice == "none":
        return
    options: dict[str, Any] = {"context_fn": _selective} if choice == "selective" else {}
    for block in blocks:
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    def recomputed(*inputs: Tensor) -> Tensor:
        # A block draws no random numbers, so there is no generator state to restore.
        output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        return output

    return recomputed


def _policy(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE


def _selective() -> tuple[Any, Any]:
    """The dispatch modes of a block's forward pass and of its recomputation. The compiler accepts no other contexts."""
    saving, reusing = create_selective_checkpoint_contexts(_policy)
    results: list[tuple[Tensor, ...]] = []
    saving.saved_results, reusing.results_to_reuse = results, results
    return saving, reusing


def compute_or_reuse(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The result of `compute`; under selective recomputation it is saved in the forward pass and reused in the recomputation.

    For a computation of many operators with communication between them, which counts as a single expensive operator: otherwise
    each of its operators would be saved or recomputed by itself.
    """
    mode = _get_current_dispatch_mode()
    if (results_to_reuse := getattr(mode, "results_to_reuse", None)) is not None:
        reused: tuple[Tensor, ...] = results_to_reuse.pop(0)
        return reused
    if (saved_results := getattr(mode, "saved_results", None)) is None:
        return compute()
    with _pop_mode_temporarily():  # torch would expect the operators it sees here in the recomputation too
        result = compute()
    saved_results.append(tuple(tensor.detach() for tensor in result))
    return result
