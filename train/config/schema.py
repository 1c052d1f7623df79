"""The configuration of one run: its sections, and numbers computed from them. Imports no torch."""

import dataclasses
import hashlib
import json
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from schedulers.batch import BatchWarmup
from train.config.sections.corpus import Corpus
from train.config.sections.logger import LoggerConfig
from train.config.sections.model import ModelConfig
from train.config.sections.optimizer import AdamWConfig, Optimizer
from train.config.sections.parallel import ParallelConfig
from train.config.sections.quantization import LowPrecisionConfig, Quant
from train.config.sections.run import CheckpointConfig, EvalConfig, HealthConfig, RunConfig, TrainConfig
from train.config.sections.schedule import Schedule
from train.config.sections.tokenizer import Tokenizer
from train.config.sections.types import FREE, STRICT, identity_keys


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """One run."""

    run: RunConfig
    model: ModelConfig
    data: Corpus
    tokenizer: Tokenizer
    optimizer: Optimizer
    schedule: Schedule
    quant: Quant
    train: TrainConfig
    parallel: Annotated[ParallelConfig, FREE]
    eval: EvalConfig
    checkpoint: Annotated[CheckpointConfig, FREE]
    health: Annotated[HealthConfig, FREE]
    logger: Annotated[LoggerConfig, FREE]

    @property
    def batches(self) -> BatchWarmup:
        """Tokens per optimizer step as a function of tokens."""
        full = self.train.batch_tokens
        return BatchWarmup(full=full, start=self.train.batch_warmup_start or full, warmup_tokens=self.train.batch_warmup_tokens)

    @property
    def low_precision(self) -> LowPrecisionConfig | None:
        """The section of low-precision weights; None if all weights stay in full precision."""
        return self.quant if isinstance(self.quant, LowPrecisionConfig) else None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return self.batches.steps(self.train.tokens)

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, in whole steps."""
        return self.batches.tokens(self.steps)

    @property
    def checkpoint_every_tokens(self) -> int:
        """Tokens between checkpoints."""
        return self.checkpoint.every_tokens or max(-(-self.total_tokens // 20), 20 * self.train.batch_tokens)

    @property
    def evaluate_every_tokens(self) -> int:
        """Tokens between evaluations."""
        return self.eval.every_tokens or max(-(-self.total_tokens // 10), 20 * self.train.batch_tokens)

    @property
    def mup_width(self) -> float | None:
        """hidden_size over the base width under muP, else None."""
        optimizer = self.optimizer
        if isinstance(optimizer, AdamWConfig) and optimizer.mup:
            return self.model.hidden_size / optimizer.mup_base_width
        return None

    @property
    def pass_tokens(self) -> int:
        """Tokens of one micro-batch on every data-parallel rank together. A batch is a multiple of it."""
        return self.train.sequence * self.train.microbatch * self.parallel.layout.data_parallel

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and optimizer step, after batch warmup."""
        return self.train.batch_tokens // self.pass_tokens

    def as_dict(self) -> dict[str, Any]:
        """Every key and value, as plain data."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Every key that the losses depend on (all but `FREE` ones): it tells this run from others."""
        plain = self.as_dict()
        sections = {
            name: {key: value for key, value in plain[name].items() if key in identity_keys(getattr(self, name).__class__)}
            for name in plain
            if name in identity_keys(Config)
        }
        sections["train"]["steps"] = self.steps  # the same whether tokens or steps were set
        return sections

    def identity_hash(self) -> str:
        """SHA-256 of the identity, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
