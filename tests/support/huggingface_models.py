"""Models that transformers makes and saves, and what they and ours compute."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.small_runs import SMALL
from train.build.initial_weights import initial_values
from train.build.model import PARAMETER_DTYPES, build_model
from train.config import Config, load_config


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
