"""What a user would write instead: a Llama-family decoder and a training loop in plain PyTorch, without documents."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.shape import ModelShape
from train.config import Config
from train.data.loader import TrainLoader

SKIPPED_STEPS = 2
"""first steps that do not count: allocation, and the compiler"""


class _Attention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.query = nn.Linear(shape.hidden_size, self.heads * self.head_dim, bias=False)
        self.key = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(self.heads * self.head_dim, shape.hidden_size, bias=False)
        self.query_norm = nn.RMSNorm(self.head_dim) if shape.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_dim) if shape.qk_norm else nn.Identity()

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, sequence, _ = hidden.shape
        query = self.query_norm(self.query(hidden).view(rows, sequence, self.heads, self.head_dim)).transpose(1, 2)
        key = self.key_norm(self.key(hidden).view(rows, sequence, self.kv_heads, self.head_dim)).transpose(1, 2)
        value = self.value(hidden).view(rows, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            _rotate(query, cos, sin), _rotate(key, cos, sin), value, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        result: Tensor = self.output(attended.transpose(1, 2).reshape(rows, sequence, -1))
        return result


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


class _Block(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(shape.hidden_size), _Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.hidden_size)
        self.gate = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.up = nn.Linear(shape.hidden_size, shape.ffn_size, bias=False)
        self.down = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), cos, sin)
        normed = self.ffn_norm(hidden)
        result: Tensor = hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return result


class BareDecoder(nn.Module):
    """Tokens (B, S) to logits (B, S, V)."""

    def __init__(self, shape: ModelShape, theta: float = 10_000.0) -> None:
        super().__init__()
        assert shape.ffn == "swiglu"
        self.theta, self.head_dim = theta, shape.head_dim
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size)
        self.head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tie_embeddings:
            self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, S, V)."""
        exponents = torch.arange(0, self.head_dim, 2, device=tokens.device) / self.head_dim
        angles = torch.outer(torch.arange(tokens.shape[1], device=tokens.device), self.theta**-exponents)
        cos, sin = angles.cos(), angles.sin()
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden, cos, sin)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def adamw(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on the matrices alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3, betas=(0.9, 0.95), fused=True)


def train(
    model: Callable[[Tensor], Tensor],
    inner: nn.Module,
    config: Config,
    loader: TrainLoader,
    *,
    rank: int = 0,
    ranks: int = 1,
    last_of_step: Callable[[bool], None] = lambda last: None,
) -> float:
    """Tokens per second of the median step.

    `inner` has the parameters; `last_of_step` hears before every micro-batch whether it is the last of its step.
    """
    optimizer, rows = adamw(inner, config), config.train.microbatch
    casting = torch.autocast("cpu", torch.bfloat16) if config.train.precision == "bf16" else nullcontext()
    sample, seconds = 0, []
    for _ in range(config.steps):
        start = time.perf_counter()
        for number in range(config.accumulation):
            batch = loader.batch(range(sample + rank * rows, sample + (rank + 1) * rows))
            sample += ranks * rows
            last_of_step(number == config.accumulation - 1)
            with casting:
                loss = F.cross_entropy(model(batch.tokens_BS).flatten(0, 1).float(), batch.targets_BS.flatten())
            (loss / config.accumulation).backward()
        loss.item()  # as such loops do, to show it
        nn.utils.clip_grad_norm_(inner.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return config.train.batch_tokens / statistics.median(seconds[SKIPPED_STEPS:])
