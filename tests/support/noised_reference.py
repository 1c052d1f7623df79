"""Training with weight noise as one process in bare PyTorch does it, from the formulas.

It shares with the trainer the model, the initial values, the samples and AdamW written out. Draws come from their definition in
Python's integers; gradients of bit widths from autograd through max |w| 2^(1 - b), with the largest weight held constant.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tests.support.quantized_reference import adamw
from train.build.model import PARAMETER_DTYPES, build_model
from train.config import Config, schedule_of
from train.data.loader import TrainLoader
from train.data.shards import Shards
from train.model.initialize import fill, init_std

MASK = (1 << 64) - 1


def draw(key: int, step: int, row: int, column: int) -> int:
    """A signed 16-bit draw: SplitMix64 of (step, row, a quarter of the column), 16 bits of it by the rest of the column."""
    state = (key + ((step << 40 | row << 20 | column // 4) + 1) * 0x9E3779B97F4A7C15) & MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    bits = (state ^ state >> 31) >> 16 * (column % 4) & 0xFFFF
    return bits - 65536 if bits >= 32768 else bits


def key_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1fnoise\x1f{name}".encode(), digest_size=8).digest(), "little")


def noise(seed: int, step: int, name: str, shape: tuple[int, int], uniform: bool) -> Tensor:
    key = key_of(seed, name)
    drawn = torch.tensor([[draw(key, step, row, column) for column in range(shape[1])] for row in range(shape[0])])
    if uniform:
        return (drawn.double() + 0.5) / 65536
    up, down = (drawn >= 22371).int() + (drawn >= 32680).int(), (drawn < -22371).int() + (drawn < -32680).int()
    return (up - down).double()


def noised(weight: Tensor, widths: Tensor, drawn: Tensor, quant) -> Tensor:
    """Weight (rows, columns) and bit widths (rows / n, columns / n)."""
    blocks = weight.detach().unflatten(0, (len(widths), -1)).unflatten(2, (widths.shape[1], -1))
    size = blocks.abs().amax((1, 3)) * 2 ** (1 - widths)
    spread = size.repeat_interleave(quant.block, 0).repeat_interleave(quant.block, 1)
    return weight + drawn.to(weight.dtype) * spread


def losses_and_norms(config: Config, shards: Shards, start: int) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """(loss, gradient norm before clipping) of every step, those after the first `start` with noise; the last bit widths."""
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("cpu"))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, weight in weights.items():
        std = init_std(name, config.model.num_layers, config.model.init_std, None)
        fill(weight, (0,) * weight.dim(), weight.shape, name=name, seed=config.run.seed, std=std)
    quant, uniform, widths = config.quant, config.quant.name == "diffq", {}
    moments: dict[str, tuple[Tensor, Tensor, int]] = {}
    loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
    rows = config.train.batch_tokens // config.train.sequence
    results = []
    for step in range(1, config.steps + 1):
        if step == start + 1:
            for name, weight in weights.items():
                if weight.dim() == 2 and (quant.outer or name.startswith("blocks.")):
                    widths[name] = weight.new_full([size // quant.block for size in weight.shape], quant.b_init)
        batch = loader.batch(range((step - 1) * rows, step * rows))
        leaves = {n: t.detach().requires_grad_() for n, t in weights.items()}
        leaves |= {f"{n} bits": t.detach().requires_grad_() for n, t in widths.items()}
        used = dict(leaves)
        for name in widths:
            drawn = noise(config.run.seed, step - 1, name, tuple(weights[name].shape), uniform)
            used[name] = noised(leaves[name], leaves[f"{name} bits"], drawn, quant)
        used = {name: used[name] for name in weights}
        logits = functional_call(model, used, (batch.tokens_BS, batch.document_BS)).flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets_BS.flatten())
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        results.append((loss.item(), norm))
        rate = schedule_of(config).learning_rate(step * config.train.batch_tokens)
        for name, gradient in gradients.items():
            of, _, is_width = name.partition(" ")
            tensor = widths[of] if is_width else weights[of]
            plain = is_width or tensor.dim() < 2 or of.startswith("embedding")
            decay = 0.0 if plain else config.optimizer.weight_decay
            eps = 1e-15 if is_width else config.optimizer.eps
            clipped = gradient * min(1.0, config.optimizer.clip_norm / (norm + 1e-6))
            if is_width:
                clipped = clipped + quant.penalty / tensor.numel()
            own = rate * (quant.bits_learning_rate * (quant.b_init - quant.b_target) if is_width else 1.0)
            moments[name] = adamw(config, tensor, clipped, moments.get(name), own, decay, eps)
            if is_width:
                tensor.clamp_(quant.b_target, quant.b_init)
    return results, widths
