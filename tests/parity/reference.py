"""The run that every layout must equal: a loop in bare PyTorch, in one process, over the whole global batch at once.

It shares with the trainer the model's definition, the initial values, the samples and nothing else: clipping, AdamW and the
learning rate are written out here from their formulas.
"""

import math

import torch
import torch.nn.functional as F

from train.build import PARAMETER_DTYPES, build_model
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
            std = init_std(name, config.model.num_layers, config.model.init_std)
            fill(parameter, (0,) * parameter.dim(), parameter.shape, name=name, seed=config.run.seed, std=std)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    loader = TrainLoader(shards.train, config.train.sequence, config.run.seed)
    rows = config.train.batch_tokens // config.train.sequence
    results = []
    for step in range(1, config.steps + 1):
        batch = loader.batch(range((step - 1) * rows, step * rows))
        logits = model(batch.tokens_BS, batch.document_BS).flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets_BS.flatten())
        objective = loss + config.train.z_loss * torch.logsumexp(logits, -1).square().mean()
        gradients = dict(zip(parameters, torch.autograd.grad(objective, list(parameters.values())), strict=True))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        results.append((loss.item(), norm))
        with torch.no_grad():
            _adamw(config, step, parameters, gradients, moments, min(1.0, config.optimizer.clip_norm / (norm + 1e-6)))
    return results


def _adamw(config, step, parameters, gradients, moments, clip) -> None:
    """Loshchilov & Hutter (arXiv 1711.05101), algorithm 2, with the trainer's schedule: warmup, constant, linear to zero."""
    tokens, total = step * config.train.batch_tokens, config.steps * config.train.batch_tokens
    rise = tokens / config.schedule.warmup_tokens if config.schedule.warmup_tokens else 1.0
    fall = (total - tokens) / (config.schedule.decay_fraction * total) if config.schedule.decay_fraction else 1.0
    rate = config.schedule.peak * min(1.0, rise, fall)
    optimizer = config.optimizer
    for name, parameter in parameters.items():
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
