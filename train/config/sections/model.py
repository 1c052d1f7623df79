"""The sizes and constants of the decoder."""

import dataclasses
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from parallel.shape import FeedForwardName, ModelShape
from train.config.sections.types import STRICT, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """A Llama-family decoder."""

    num_layers: PositiveInt
    """transformer blocks"""
    hidden_size: PositiveInt
    """width of the residual stream"""
    num_heads: PositiveInt
    """query heads"""
    num_kv_heads: PositiveInt
    """key and value heads (grouped-query attention); null: num_heads"""
    head_dim: Annotated[int, Field(gt=0, multiple_of=2)]
    """width of one head; null: hidden_size / num_heads"""
    ffn_size: PositiveInt
    """inner width of the feed-forward"""
    vocab_size: PositiveInt
    """rows of the embedding and of the head; at least the tokenizer's entries"""
    ffn: FeedForwardName
    """kind of feed-forward"""
    tie_embeddings: bool
    """use the embedding table as the head"""
    qk_norm: bool
    """RMSNorm on queries and keys, per head"""
    qkv_bias: bool
    """biases on queries, keys and values, as Qwen2 has them"""
    rope_theta: Annotated[float, Field(gt=0)]
    """base of the rotary embedding"""
    rope_factor: Annotated[float, Field(ge=1)]
    """how many times longer than rope_original_sequence contexts become: low frequencies turn this much slower, as in
    Llama 3.1; 1: no frequency is changed"""
    rope_low_frequency_factor: Annotated[float, Field(gt=0)]
    """with rope_factor: frequencies with fewer turns than this over rope_original_sequence are divided by all of it"""
    rope_high_frequency_factor: Annotated[float, Field(gt=0)]
    """with rope_factor: frequencies with more turns than this stay; between the two, the division grows smoothly"""
    rope_original_sequence: PositiveInt
    """with rope_factor: the sequence that the frequencies were first trained with"""
    norm_eps: Annotated[float, Field(gt=0)]
    """epsilon of RMSNorm"""
    init_std: Annotated[float, Field(gt=0)]
    """standard deviation of initial weights (projections into the residual stream: / sqrt(2 num_layers); see optimizer.mup)"""
    embedding_multiplier: Annotated[float, Field(gt=0)]
    """factor of the embedding's output; null: 1, with optimizer.mup 12"""
    residual_multiplier: Annotated[float, Field(gt=0)]
    """factor of what blocks add to the residual stream; null: 1, with optimizer.mup 1.4 / sqrt(num_layers)"""
    attention_multiplier: Annotated[float, Field(gt=0)]
    """factor of the products of queries and keys; null: 1 / sqrt(head_dim), with optimizer.mup 1 / head_dim"""
    logit_multiplier: Annotated[float, Field(gt=0)]
    """factor of the logits; null: 1, with optimizer.mup mup_base_width / hidden_size"""
    initial_weights: str | None
    """folder of the weights to start from (Hugging Face's format, Llama, Qwen2 or Qwen3); null: random weights"""

    @property
    def shape(self) -> ModelShape:
        """The sizes, as layouts and the planner use them."""
        names = [field.name for field in dataclasses.fields(ModelShape)]
        return ModelShape(**{name: getattr(self, name) for name in names})
