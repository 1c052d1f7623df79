"""The run that every layout must equal: a loop in bare PyTorch, in one process, over the whole global batch at once.

It shares with the trainer the model's definition, the initial values, the samples and nothing else: clipping, AdamW and the
learning rate are written out here from their formulas; Muon, whose iteration in bf16 can only be the same, is torch's own.
"""

import math

import torch
import torch.nn.functional as F

from train.build.model import PARAMETER_DTYPES, build_model
from train.config import Config
from train.data.loader import TrainLoader
from train.data.shards import Shards
from train.model.initialize import fill, init_std


def losses_and_norms(config: Config, shards: Shards) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of every step of `config`, as one process computes them."""
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("cpu"))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            std = init_std(name, config.model.num_layers, config.model.init_std, config.mup_width)
            fill(parameter, (0,) * parameter.dim(), parameter.shape, name=name, seed=config.run.seed, std=std)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
    matrices = [p for name, p in parameters.items() if name.startswith("blocks.") and p.dim() == 2]
    muon = _muon(config, matrices) if config.optimizer.name == "muon" else None
    results, tokens, sample = [], 0, 0
    for step in range(1, config.steps + 1):
        rows = _batch_tokens(config, tokens) // config.train.sequence
        batch = loader.batch(range(sample, sample + rows))
        tokens, sample = tokens + rows * config.train.sequence, sample + rows
        logits = model(batch.tokens_BS, batch.document_BS).flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets_BS.flatten())
        objective = loss + config.train.z_loss * torch.logsumexp(logits, -1).square().mean()
        gradients = dict(zip(parameters, torch.autograd.grad(objective, list(parameters.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        results.append((loss.item(), norm))
        with torch.no_grad():
            clip = min(1.0, config.optimizer.clip_norm / (norm + 1e-6))
            rate = _learning_rate(config, tokens)
            if muon is not None:
                for name, parameter in parameters.items():
                    parameter.grad = gradients[name] * clip
                muon.param_groups[0]["lr"] = rate
                muon.step()
            rest = {name: p for name, p in parameters.items() if muon is None or all(p is not matrix for matrix in matrices)}
            _adamw(config, step, rate, rest, gradients, moments, clip)
    return results


def _batch_tokens(config, tokens) -> int:
    """Of the step that begins at `tokens`: from the first size to the full one in increments of the first."""
    train = config.train
    if train.batch_warmup_start is None or tokens >= train.batch_warmup_tokens:
        return train.batch_tokens
    increments = train.batch_tokens // train.batch_warmup_start - 1
    return train.batch_warmup_start * (1 + math.floor(tokens / train.batch_warmup_tokens * increments))


def _learning_rate(config, tokens) -> float:
    """Warmup, constant, linear to zero; for a power law, what it has come down to where the decay begins."""
    schedule, total = config.schedule, config.total_tokens
    begin = total - round(schedule.decay_fraction * total)

    def trunk(n) -> float:
        return (
            min(schedule.peak, config.train.batch_tokens / 4096 * schedule.a * n**schedule.b)
            if schedule.name == "power"
            else schedule.peak
        )

    rise = tokens / schedule.warmup_tokens if schedule.warmup_tokens else 1.0
    if rise < 1.0:
        return trunk(schedule.warmup_tokens) * rise
    return trunk(min(tokens, begin)) * min(1.0, (total - tokens) / (total - begin) if tokens > begin else 1.0)


def _muon(config, matrices) -> torch.optim.Muon:
    optimizer = config.optimizer
    return torch.optim.Muon(
        matrices,
        weight_decay=optimizer.weight_decay,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        ns_steps=optimizer.iterations,
        adjust_lr_fn="match_rms_adamw",
    )


def _adamw(config, step, rate, parameters, gradients, moments, clip) -> None:
    """Loshchilov & Hutter (arXiv 1711.05101), algorithm 2. Under muP the blocks' matrices take less, as the width is more."""
    optimizer, schedule_rate = config.optimizer, rate
    for name, parameter in parameters.items():
        inner = name.startswith("blocks.") and parameter.dim() > 1
        scaled = inner and getattr(optimizer, "mup", False)
        rate = schedule_rate * optimizer.mup_base_width / config.model.hidden_size if scaled else schedule_rate
        first, second = moments[name]
        gradient = gradients[name] * clip
        first.mul_(optimizer.beta1).add_(gradient, alpha=1 - optimizer.beta1)
        second.mul_(optimizer.beta2).add_(gradient * gradient, alpha=1 - optimizer.beta2)
        decays = parameter.dim() > 1 and not name.startswith("embedding")
        if decays:
            parameter.mul_(1 - rate * optimizer.weight_decay)
        mean = first / (1 - optimizer.beta1**step)
        root = (second / (1 - optimizer.beta2**step)).sqrt() + optimizer.eps
        parameter.sub_(rate * mean / root)
