"""Parses `--quantize`, which rounds full-precision weights to nearest. Imports no torch."""

import dataclasses

from common.errors import UserError
from train.config import Config, load_config, require_layout
from train.config.sections.quantization import QUANTIZER_KEYS, QatConfig


def rounding_of(text: str) -> QatConfig:
    """The quantizer that a text such as "bits=4,group=64" describes.

    Raises:
        UserError: the text is invalid.
    """
    words = [word.strip() for word in text.split(",")]
    keys = [word.partition("=")[0] for word in words]
    wrong = [word for key, word in zip(keys, words, strict=True) if key not in QUANTIZER_KEYS or not word.partition("=")[2]]
    twice = [key for key in QUANTIZER_KEYS if keys.count(key) > 1]
    if "bits" not in keys or wrong or twice:
        problem = f"'{wrong[0]}' is not understood; " if wrong else f"{twice[0]} is given twice; " if twice else ""
        further = ", ".join(f"{key}=..." for key in QUANTIZER_KEYS[1:])
        raise UserError(f"--quantize {text}: {problem}type bits=4; further keys, with commas: {further}")
    try:
        quant = load_config(["quant=qat", *(f"quant.{word}" for word in words)]).quant
    except UserError as error:
        raise UserError(f"--quantize {text}: {error}") from None
    assert isinstance(quant, QatConfig)
    return quant


def check_rounding(config: Config, text: str) -> None:
    """Check `--quantize` against a run's configuration, before any process group exists.

    Raises:
        UserError: the text is invalid, or its group does not divide the run's rows.
    """
    rounded = dataclasses.replace(config, quant=rounding_of(text))
    require_layout(rounded, world_size=rounded.parallel.layout.world_size)
