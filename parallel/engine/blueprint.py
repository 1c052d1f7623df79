"""What every engine is built from: the model, its numerics and its optimizer."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from parallel.compose import BuildStage, Composition, Convert, Fill
from parallel.context.protocol import ContextParallel
from parallel.engine.names import Offload
from parallel.engine.protocol import Optimizer
from parallel.shape import ModelShape

BuildOptimizer = Callable[[Sequence[tuple[str, nn.Parameter]]], Optimizer]
"""This rank's (name, parameter) pairs -> the optimizer that updates them."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A run's model and how to train it."""

    shape: ModelShape
    sequence: int
    """tokens in a whole sequence"""
    microbatch: int
    """sequences in a rank's micro-batch"""
    composition: Composition
    norm_eps: float
    rope_theta: float
    """base of the rotary embedding"""
    compute_dtype: torch.dtype
    """dtype of activations"""
    build_stage: BuildStage
    convert: Convert
    fill: Fill
    context: ContextParallel | None
    """how ranks share sequences; None if they do not"""
    build_optimizer: BuildOptimizer
    clip_norm: float
    """larger gradients are scaled down to this l2 norm"""
    zero_stage: int | None
    """what an engine with ZeRO divides over data ranks; None: its own choice"""
    offload: Offload
    fused_optimizer: bool
    """whether the engine takes its own AdamW, with the groups of `build_optimizer`"""
    tied: Collection[str]
    """names of the parameters that the first and the last stage of a pipeline share"""
