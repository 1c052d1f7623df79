"""Parses `--quantize`: weights rounded to nearest levels, or cast to a small float. Imports no torch."""

import dataclasses
from dataclasses import dataclass

from common.bits import FLOAT_FORMATS, FloatFormat
from common.errors import UserError
from train.config import Config, load_config, require_layout
from train.config.sections.quantization import ROUNDING_KEYS, QatConfig


@dataclass(frozen=True)
class Cast:
    """A cast of the blocks' matrices to a small float with a scale for each block of columns (see `quant.floats`)."""

    name: str
    block: int = 32
    outer: bool = False
    """the embedding and the head too"""

    @property
    def form(self) -> FloatFormat:
        """The format."""
        return FLOAT_FORMATS[self.name]

    def applies_to(self, parameter: str) -> bool:
        """Whether it casts that parameter. Norms and biases are never cast."""
        module, _, key = parameter.rpartition(".")
        return key == "weight" and not module.endswith("norm") and (self.outer or module not in ("embedding", "head"))

    def __str__(self) -> str:
        return f"cast to {self.name} in blocks of {self.block}"


def rounding_of(text: str) -> QatConfig | Cast:
    """What a text such as "bits=4,group=64" or "format=e2m1,block=32" describes.

    Raises:
        UserError: the text is invalid.
    """
    words = [word.strip() for word in text.split(",")]
    keys = [word.partition("=")[0] for word in words]
    if "format" in keys:
        return _cast_of(text, words, keys)
    problem = _problem(words, keys, ROUNDING_KEYS)
    if "bits" not in keys or problem:
        further = ", ".join(f"{key}=..." for key in ROUNDING_KEYS[1:])
        raise UserError(
            f"--quantize {text}: {problem}type bits=4; further keys, with commas: {further}\n"
            f"or a float, format={' or '.join(FLOAT_FORMATS)}, with block=32 if you like"
        )
    try:
        quant = load_config(["quant=qat", *(f"quant.{word}" for word in words)]).quant
    except UserError as error:
        raise UserError(f"--quantize {text}: {error}") from None
    assert isinstance(quant, QatConfig)
    return quant


def _cast_of(text: str, words: list[str], keys: list[str]) -> Cast:
    problem, values = _problem(words, keys, ("format", "block", "outer")), dict(word.partition("=")[::2] for word in words)
    name, block, outer = values["format"], values.get("block", "32"), values.get("outer", "false")
    if not problem and name not in FLOAT_FORMATS:
        problem = f"format={name}: no such format; "
    if not problem and not (block.isdecimal() and int(block) > 0):
        problem = f"block={block}: a number of columns is a whole number from 1 up; "
    if not problem and outer not in ("true", "false"):
        problem = f"outer={outer}: type true or false; "
    if problem:
        raise UserError(
            f"--quantize {text}: {problem}type format={' or '.join(FLOAT_FORMATS)}; further keys, with commas: block=32, "
            f"outer=true (the embedding and the head too)"
        )
    return Cast(name, int(block), outer == "true")


def _problem(words: list[str], keys: list[str], known: tuple[str, ...]) -> str:
    """What is wrong with the words, with a semicolon; empty if nothing is."""
    wrong = [word for key, word in zip(keys, words, strict=True) if key not in known or not word.partition("=")[2]]
    twice = [key for key in known if keys.count(key) > 1]
    return f"'{wrong[0]}' is not understood; " if wrong else f"{twice[0]} is given twice; " if twice else ""


def check_rounding(config: Config, text: str) -> None:
    """Check `--quantize` against a run's configuration, before any process group exists.

    Raises:
        UserError: the text is invalid, or its group or block does not divide the run's rows.
    """
    rounding = rounding_of(text)
    if isinstance(rounding, QatConfig):
        rounded = dataclasses.replace(config, quant=rounding)
        require_layout(rounded, world_size=rounded.parallel.layout.world_size)
        return
    model = config.model
    columns = {
        "model.hidden_size": model.hidden_size,
        "model.num_heads x model.head_dim": model.num_heads * model.head_dim,
        "model.ffn_size": model.ffn_size,
    }
    if undivided := [f"{key} = {size}" for key, size in columns.items() if size % rounding.block]:
        fitting = [str(block) for block in (64, 32, 16, 8, 4, 2) if not any(size % block for size in columns.values())]
        raise UserError(
            f"--quantize {text}: block={rounding.block} does not divide {', '.join(undivided)}: "
            f"type block={' or '.join(fitting)}"
        )
