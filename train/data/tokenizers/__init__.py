"""Tokenizers: one module for each option of the configuration group `tokenizer`, with the option's name."""

import importlib

from train.config.sections.tokenizer import Tokenizer
from train.data.tokenizers.base import TokenizerSource


def tokenizer_source(config: Tokenizer) -> TokenizerSource:
    """The source of the tokenizer that a section names."""
    source: TokenizerSource = importlib.import_module(f"train.data.tokenizers.{config.name}").Source(config)
    return source
