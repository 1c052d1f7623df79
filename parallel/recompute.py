"""Activation recomputation: what a block keeps for its backward pass, and what it computes again."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
"""none: keep everything. selective: keep what matrix products, attention and communication made, compute the cheap rest again.
full: keep a block's input alone."""

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
    """Make each block forget its activations as `choice` says, in place. Names and parameters stay as they are."""
    if choice == "none":
        return
    selective: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
    options = selective if choice == "selective" else {}
    for block in blocks:
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    def recomputed(*inputs: Tensor) -> Tensor:
        # No random numbers are drawn in a block, so there is no generator state to restore.
        output: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        return output

    return recomputed


def _policy(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
