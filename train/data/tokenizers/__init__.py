"""Tokenizers: a module for each option of the configuration group `tokenizer`, found by its name."""

import importlib

from train.config.sections.tokenizer import Tokenizer
from train.data.tokenizers.base import TokenizerSource


def tokenizer_source(config: Tokenizer) -> TokenizerSource:
    """The tokenizer that a section asks for."""
    source: TokenizerSource = importlib.import_module(f"train.data.tokenizers.{config.name}").Source(config)
    return source
