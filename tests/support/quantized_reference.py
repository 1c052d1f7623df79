"""Quantization-aware training as one process in bare PyTorch does it, from the formulas in the papers.

It shares with the trainer the model without quantization, the initial values and the samples. Quantized weights are handed to
that model from outside; their gradients come from the rules, written as sums whose derivatives they are; AdamW is written out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from train.build.model import PARAMETER_DTYPES, build_model
from train.config import Config, schedule_of
from train.data.loader import TrainLoader
from train.data.shards import Shards
from train.model.initialize import fill, init_std

LARGEST = {1: 1, 1.58: 1, 2: 1, 3: 3, 4: 7, 6: 31, 8: 127}


def level(ratio: Tensor, bits: float) -> Tensor:
    """A weight's value in units of its scale (ParetoQ, arXiv 2502.02631, and its code)."""
    if bits == 1:
        return torch.where(ratio >= 0, 1.0, -1.0).to(ratio.dtype)
    if bits == 1.58:
        return torch.round(1.5 * ratio.clip(-0.99, 0.99)) / 1.5
    if bits == 2:
        return (torch.round(2 * ratio.clip(-0.99, 0.99) - 0.5) + 0.5) / 2
    return torch.round(ratio).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def inside(ratio: Tensor, bits: float) -> Tensor:
    """Where a weight has a gradient. The border belongs to it, up to rounding."""
    low, high = {1: (-1, 1), 1.58: (-0.99, 0.99), 2: (-0.99, 0.99)}.get(bits, (-LARGEST[bits] - 1, LARGEST[bits]))
    return (ratio >= low * (1 + 1e-6)) & (ratio <= high * (1 + 1e-6))


def first_scale(weight: Tensor, bits: float, group: int) -> Tensor:
    size = weight.abs().reshape(len(weight), -1, group)
    return size.mean(-1) if bits == 1 else size.max(-1).values / LARGEST[bits]


def quantized(weight: Tensor, scale: Tensor, bits: float) -> Tensor:
    """Weight (rows, columns), scale (rows, groups). Its derivatives are the straight-through rule's and LSQ's."""
    spread = scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    fixed = spread.detach()
    ratio = weight.detach() / fixed
    value, mask = level(ratio, bits), inside(ratio, bits)
    slope = value if bits == 1 else torch.where(mask, value - ratio, value)
    factor = 1 / math.sqrt(weight.numel() * LARGEST[bits])
    return fixed * value + (weight - weight.detach()) * mask + (spread - fixed) * slope * factor


class _RoundedInputs:
    """Inputs of the blocks' linears rounded to 8 bits per token, straight through."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.on = False
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "head":
                module.register_forward_pre_hook(self._round)

    def _round(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        step = x.detach().abs().amax(-1, keepdim=True) / 127
        return (x + (torch.round(x / step) * step - x).detach(),) if self.on else inputs


def losses_and_norms(config: Config, shards: Shards, start: int) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of every step; those after the first `start` are quantized."""
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("cpu"))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, weight in weights.items():
        fill(
            weight,
            (0,) * weight.dim(),
            weight.shape,
            name=name,
            seed=config.run.seed,
            std=init_std(name, config.model.num_layers, config.model.init_std, None),
        )
    rounded = _RoundedInputs(model)
    quant, scales = config.quant, {}
    widths = {
        n: max(quant.bits, quant.embedding_bits) if n.split(".")[0] in ("embedding", "head") else quant.bits for n in weights
    }
    moments: dict[str, tuple[Tensor, Tensor, int]] = {}
    loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
    rows = config.train.batch_tokens // config.train.sequence
    results = []
    for step in range(1, config.steps + 1):
        if step == start + 1:
            rounded.on = quant.activation_bits == 8
            for name, weight in weights.items():
                if weight.dim() == 2:
                    group = weight.shape[1] if quant.group == "row" else quant.group
                    scales[name] = first_scale(weight, widths[name], group)
        batch = loader.batch(range((step - 1) * rows, step * rows))
        leaves = {n: t.detach().requires_grad_() for n, t in weights.items()}
        leaves |= {f"{n} scale": t.detach().requires_grad_() for n, t in scales.items()}
        used = {n: quantized(leaves[n], leaves[f"{n} scale"], widths[n]) if n in scales else leaves[n] for n in weights}
        logits = functional_call(model, used, (batch.tokens_BS, batch.document_BS)).flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets_BS.flatten())
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        results.append((loss.item(), norm))
        rate = schedule_of(config).learning_rate(step * config.train.batch_tokens)
        for name, gradient in gradients.items():
            of, _, is_scale = name.partition(" ")
            tensor = scales[of] if is_scale else weights[of]
            own_rate = rate / LARGEST[widths[of]] if is_scale else rate
            decay = 0.0 if is_scale or tensor.dim() < 2 or of.startswith("embedding") else config.optimizer.weight_decay
            eps = 1e-15 if is_scale else config.optimizer.eps
            clipped = gradient * min(1.0, config.optimizer.clip_norm / (norm + 1e-6))
            moments[name] = adamw(config, tensor, clipped, moments.get(name), own_rate, decay, eps)
    return results


def adamw(config, tensor: Tensor, gradient: Tensor, moments, rate: float, decay: float, eps: float):
    """Loshchilov & Hutter (arXiv 1711.05101), algorithm 2. Moments begin with the first gradient."""
    first, second, step = moments or (torch.zeros_like(tensor), torch.zeros_like(tensor), 0)
    first = config.optimizer.beta1 * first + (1 - config.optimizer.beta1) * gradient
    second = config.optimizer.beta2 * second + (1 - config.optimizer.beta2) * gradient * gradient
    mean = first / (1 - config.optimizer.beta1 ** (step + 1))
    root = (second / (1 - config.optimizer.beta2 ** (step + 1))).sqrt() + eps
    tensor.copy_(tensor * (1 - rate * decay) - rate * mean / root)
    return first, second, step + 1
