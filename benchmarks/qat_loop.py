"""The end of a trunk in a bare PyTorch loop, so that another library's QAT and ours differ only in the quantizer."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from parallel.batch import IGNORE
from quant.linear import Precision, QuantLinear, quantizing_modules, swap_modules
from train.build.model import build_model
from train.checkpoint.storage import read_whole
from train.config import Config
from train.data.loader import TrainLoader, ValidationLoader
from train.data.prepare import prepare
from train.data.shards import open_shards
from train.folder.reading import load_run_config

BITS, SHARE = 4, 0.2
KINDS = ("full precision", "ours", "ours, scales remade every step", "torchao")


def final_loss(trunk: Path, kind: str, tokens: int) -> float:
    """Validation loss after `tokens` tokens, of which the trunk has trained all but the last fraction `SHARE`.

    The linears of the blocks are quantized as `kind` says. All kinds start from the trunk's weights with AdamW's moments at
    zero, continue with the trunk's next samples, and decay linearly.
    """
    config = load_run_config(trunk)
    result = trunk.parent / f"loop-{kind.replace(', ', '-').replace(' ', '-')}-s{config.run.seed}.json"
    if not result.exists():
        loss = _train(config, trunk, kind, tokens)
        result.write_text(json.dumps({"loss": loss}), encoding="utf-8")
    return float(json.loads(result.read_text(encoding="utf-8"))["loss"])


def _train(config: Config, trunk: Path, kind: str, tokens: int) -> float:
    batch = config.train.batch_tokens
    steps = tokens // batch
    every = config.checkpoint_every_tokens // batch
    first = round((1 - SHARE) * steps) // every * every
    model = build_model(config.model, torch.float32, torch.device("cpu"))
    model.load_state_dict(read_whole(trunk / "checkpoints" / f"step_{first:08}", "model."))
    before_step = _prepare(model, kind)
    names = dict(model.named_parameters())
    matrices = [
        p for name, p in names.items() if p.dim() > 1 and not name.startswith("embedding") and not name.endswith("scale")
    ]
    scales = [p for name, p in names.items() if name.endswith("scale")]
    others = [p for name, p in names.items() if p.dim() == 1 or name.startswith("embedding.w")]
    largest = Precision(bits=BITS).levels.largest
    groups = [
        {"params": matrices, "weight_decay": config.optimizer.weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
        *([{"params": scales, "weight_decay": 0.0, "scale": 1 / largest, "eps": 1e-15}] if scales else []),
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.optimizer.beta1, config.optimizer.beta2), fused=True)
    shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
    loader, rows = TrainLoader(shards.train, config.train.sequence, config.run.seed), batch // config.train.sequence
    for step in range(first, steps):
        before_step()
        samples = loader.batch(range(step * rows, (step + 1) * rows))
        logits = model(samples.tokens_BS, samples.document_BS)
        F.cross_entropy(logits.flatten(0, 1), samples.targets_BS.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.schedule.peak * group["scale"] * (steps - step - 1) / (steps - first)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    before_step()
    validation = ValidationLoader(shards.validation, config.train.sequence, config.eval.tokens)
    total = targets = 0.0
    with torch.no_grad():
        for start in range(0, validation.num_samples, 16):
            samples = validation.batch(range(start, start + 16))
            logits = model(samples.tokens_BS, samples.document_BS).flatten(0, 1)
            total += float(F.cross_entropy(logits, samples.targets_BS.flatten(), ignore_index=IGNORE, reduction="sum"))
            targets += float((samples.targets_BS != IGNORE).sum())
    return total / targets


def _prepare(model: nn.Module, kind: str) -> Callable[[], None]:
    """Quantize the linears of the blocks. Returns a function to call before every step."""
    if kind == "torchao":
        from torchao.quantization import quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

        four_bits = IntxFakeQuantizeConfig(torch.int4, "per_channel", is_symmetric=True)  # type: ignore[attr-defined]
        is_inner = lambda module, name: isinstance(module, nn.Linear) and name.startswith("blocks.")  # noqa: E731
        quantize_(model, QATConfig(weight_config=four_bits, step="prepare"), filter_fn=is_inner)
        return lambda: None
    if kind == "full precision":
        return lambda: None
    swapped = build_swap(model)
    _remake_scales(swapped)
    if kind == "ours":
        return lambda: None
    for module in swapped:
        module.scale.requires_grad_(False)
    return lambda: _remake_scales(swapped)


def build_swap(model: nn.Module) -> list[QuantLinear]:
    """Replace the linears of the blocks by our modules with the same weights, and activate these. Returns them."""
    weights = model.state_dict()
    swap_modules(model, lambda name: Precision(bits=BITS))
    model.load_state_dict(weights, strict=False)
    inner = []
    for name, module in quantizing_modules(model):
        if isinstance(module, QuantLinear) and name.startswith("blocks."):
            module.active = True
            inner.append(module)
        else:
            module.scale.requires_grad_(False)
    return inner


@torch.no_grad()
def _remake_scales(modules: list[QuantLinear]) -> None:
    for module in modules:
        module.scale.copy_(module.precision.first_scale(module.weight))
