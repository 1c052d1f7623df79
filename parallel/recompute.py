"""Activation recomputation: what a block keeps for its backward pass, and what it computes again."""

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
    """Make each block forget its activations as `choice` says, in place. Names and parameters stay as they are."""
    if choice == "none":
        return
    options: dict[str, Any] = {"context_fn": _selective} if choice == "selective" else {}
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


def _selective() -> tuple[Any, Any]:
    """The modes that a block's forward pass runs in, and its recomputation. The compiler asks for modes, and nothing else."""
    storing, finding = create_selective_checkpoint_contexts(_policy)
    results: list[tuple[Tensor, ...]] = []
    storing.made, finding.found = results, results
    return storing, finding


def kept(make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `make` makes; under selective recomputation it is made once and kept, like the result of an expensive operator.

    For what consists of many operators, and communicates between them: each of those would be kept by itself, or done again.
    """
    mode = _get_current_dispatch_mode()
    if (found := getattr(mode, "found", None)) is not None:
        kept_before: tuple[Tensor, ...] = found.pop(0)
        return kept_before
    if (results := getattr(mode, "made", None)) is None:
        return make()
    with _pop_mode_temporarily():  # what torch sees in the forward pass, it looks for in the recomputation
        made = make()
    results.append(tuple(tensor.detach() for tensor in made))
    return made
