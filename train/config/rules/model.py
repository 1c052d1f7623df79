"""Rules for the constants of the model."""

from collections.abc import Iterator

from train.config.schema import Config


def model_rules(config: Config) -> Iterator[str]:
    """The rotary embedding's frequencies are changed between two bounds in order."""
    model = config.model
    low, high = model.rope_low_frequency_factor, model.rope_high_frequency_factor
    if model.rope_factor != 1.0 and low >= high:
        yield f"model.rope_low_frequency_factor={low:g} is not below model.rope_high_frequency_factor={high:g}"
