"""What an engine is built from: the model, its numerics and its optimizer, in no engine's own terms."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.compose import BuildStage, Composition, Convert, Fill
from parallel.context.protocol import ContextParallel
from parallel.engine.protocol import Optimizer
from parallel.shape import ModelShape

LossSums = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(logits, targets) -> (objective, cross entropy, number of targets), scalars summed over the batch.

Only the objective has a gradient."""

BuildOptimizer = Callable[[Sequence[tuple[str, nn.Parameter]]], Optimizer]
"""(name, parameter) pairs of this rank -> the optimizer that updates them."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A run's model and how it is trained."""

    shape: ModelShape
    sequence: int
    """tokens of a whole sequence"""
    microbatch: int
    """sequences of a micro-batch on a rank"""
    composition: Composition
    compute_dtype: torch.dtype
    """of activations and logits"""
    build_stage: BuildStage
    convert: Convert
    fill: Fill
    context: ContextParallel | None
    """how ranks share sequences; None where they do not"""
    loss_sums: LossSums
    build_optimizer: BuildOptimizer
    clip_norm: float
    """gradients are scaled down to this l2 norm"""
    tied: Collection[str]
    """the parameters that the first and the last stage of a pipeline both have"""
