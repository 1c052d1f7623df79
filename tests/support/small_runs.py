"""Finished runs of a small model on a small text, made by the command."""

from pathlib import Path

import torch

from tests.support import console
from train.build.model import PARAMETER_DTYPES, build_model
from train.folder.reading import load_run_config
from train.trained.checkpoint import load_weights

TEXT = "".join(f"line {i * i * 7919 % 1000} of é 漢字\tand {i % 7} <|endoftext|> more\n" for i in range(400))
SMALL = ["model.num_layers=2", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=24", "model.vocab_size=310"]
LENGTH = ["train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"]
# Hot, and so short that nothing diverges: every norm moves away from one, so that none can stand for another unnoticed.
HOT = ["schedule=constant", "schedule.peak=0.1", "schedule.warmup_tokens=0", "model.init_std=0.2", "train.steps=3"]
# An update so small that no weight changes.
COLD = ["schedule=constant", "schedule.peak=1e-37", "schedule.warmup_tokens=0", "train.steps=1"]


def words(place: Path, *overrides: str) -> list[str]:
    """What is typed for a small run on the text in `place`."""
    corpus = ["data=files", f"data.files=[{place}/text.txt]", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    return [f"run.dir={place}/runs", f"data.cache_dir={place}/cache", *corpus, *SMALL, *LENGTH, *overrides]


def train(place: Path, name: str, *overrides: str) -> Path:
    """A finished run."""
    (place / "text.txt").write_text(TEXT)
    answer = console.warm("train", f"run.name={name}", *words(place, *overrides))
    assert answer.code == 0, answer.err
    return place / "runs" / name


def trained(run: Path) -> torch.nn.Module:
    """The run's model, with its weights."""
    config = load_run_config(run)
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("cpu"))
    model.load_state_dict(load_weights(run))
    return model
