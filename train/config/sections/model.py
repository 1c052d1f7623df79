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
    """width inside the feed-forward"""
    vocab_size: PositiveInt
    """rows of the embedding and of the head; at least the tokenizer's"""
    ffn: FeedForwardName
    """kind of feed-forward"""
    tie_embeddings: bool
    """use the embedding table as the head"""
    qk_norm: bool
    """RMSNorm on queries and keys, per head"""
    rope_theta: Annotated[float, Field(gt=0)]
    """base of the rotary embedding"""
    norm_eps: Annotated[float, Field(gt=0)]
    """epsilon of RMSNorm"""
    init_std: Annotated[float, Field(gt=0)]
    """standard deviation of initial weights (those into the residual stream: / sqrt(2 num_layers); see optimizer.mup)"""
    embedding_multiplier: Annotated[float, Field(gt=0)]
    """times the embedding's output; null: 1, with optimizer.mup 12"""
    residual_multiplier: Annotated[float, Field(gt=0)]
    """times what attention and feed-forward add to the residual stream; null: 1, with optimizer.mup 1.4 / sqrt(num_layers)"""
    attention_multiplier: Annotated[float, Field(gt=0)]
    """times the products of queries and keys; null: 1 / sqrt(head_dim), with optimizer.mup 1 / head_dim"""
    logit_multiplier: Annotated[float, Field(gt=0)]
    """times the logits; null: 1, with optimizer.mup mup_base_width / hidden_size"""
    initial_weights: str | None
    """start from the weights in this folder (Hugging Face's format, Llama or Qwen3) instead of random ones; null: random"""

    @property
    def shape(self) -> ModelShape:
        """The plain record that layouts and the planner use."""
        names = [field.name for field in dataclasses.fields(ModelShape)]
        return ModelShape(**{name: getattr(self, name) for name in names})
