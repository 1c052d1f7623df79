"""Runs and models that the tests of export and of `model.initial_weights` share."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.end_to_end import console
from train.build.initial_weights import initial_values
from train.build.model import PARAMETER_DTYPES, build_model
from train.config import Config, load_config
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


def started(config: Config) -> torch.nn.Module:
    """The model of `config` with its initial weights, in one process."""
    model = build_model(config.model, PARAMETER_DTYPES[config.train.precision], torch.device("cpu"))
    fill = initial_values(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(name, parameter, (0,) * parameter.dim(), tuple(parameter.shape))
    return model


def tokens(vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (3, 29), generator=torch.Generator().manual_seed(5))


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, torch.zeros_like(ids))


def their_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def make_theirs(folder: Path, architecture: str = "Llama", shard_size: str = "5GB", **settings: Any) -> Any:
    """A model that transformers makes and saves, random in every parameter, norms included."""
    import transformers

    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    more = {"intermediate_size": 24, "vocab_size": 310, "max_position_embeddings": 64}
    config = getattr(transformers, f"{architecture}Config")(**{**sizes, **more, **settings})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    plain = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in plain.items() if value is not None}))


def imported(folder: Path, *overrides: str) -> Config:
    """The configuration of a run that starts from a folder of `make_theirs`."""
    return load_config([*SMALL, "model.norm_eps=1e-6", *overrides, f"model.initial_weights={folder}", "tokenizer=bytes"])
