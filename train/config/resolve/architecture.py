"""The decoder's sizes and constants from a configuration. Imports no torch."""

from train.config.sections.model import ModelConfig
from train.model.architecture import Architecture, Multipliers, Rope


def architecture_of(config: ModelConfig) -> Architecture:
    """The sizes and constants of a decoder."""
    return Architecture(
        shape=config.shape,
        rope=Rope(
            theta=config.rope_theta,
            factor=config.rope_factor,
            low=config.rope_low_frequency_factor,
            high=config.rope_high_frequency_factor,
            original_sequence=config.rope_original_sequence,
        ),
        norm_eps=config.norm_eps,
        multipliers=Multipliers(
            embedding=config.embedding_multiplier,
            residual=config.residual_multiplier,
            attention=config.attention_multiplier,
            logit=config.logit_multiplier,
        ),
    )
