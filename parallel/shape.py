"""The sizes of a decoder, and its parameters and FLOPs by arithmetic.

Layouts and the planner work with these sizes, so they need no model class. Standard library only.
"""

from dataclasses import dataclass
from typing import Literal

FeedForwardName = Literal["swiglu", "gelu"]
FEED_FORWARD_MATRICES: dict[FeedForwardName, int] = {"swiglu": 3, "gelu": 2}
"""Number of hidden_size x ffn_size matrices in a feed-forward layer."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Llama-family decoder, by its sizes."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    ffn: FeedForwardName
    tie_embeddings: bool
    qk_norm: bool
    qkv_bias: bool = False

    @property
    def parameters_embedding(self) -> int:
        """Parameters of the input embedding table."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_vectors(self) -> int:
        """Parameters of a block that are no matrices: norms and biases."""
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return norms + (self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.qkv_bias else 0)

    @property
    def parameters(self) -> int:
        """All parameters: embedding, blocks, final norm and, unless it is tied, the head."""
        query_and_output = 2 * self.hidden_size * self.num_heads * self.head_dim
        key_and_value = 2 * self.hidden_size * self.num_kv_heads * self.head_dim
        ffn = FEED_FORWARD_MATRICES[self.ffn] * self.hidden_size * self.ffn_size
        vectors = self.layer_vectors
        blocks = self.num_layers * (query_and_output + key_and_value + ffn + vectors)
        head = 0 if self.tie_embeddings else self.parameters_embedding
        return self.parameters_embedding + blocks + self.hidden_size + head

    @property
    def parameters_non_embedding(self) -> int:
        """All parameters but the input embedding and the output head."""
        tables = 1 if self.tie_embeddings else 2
        return self.parameters - tables * self.parameters_embedding

    def layer_flops_per_token(self, sequence: int) -> float:
        """One layer's part of `flops_per_token` with full attention, without its norms."""
        query_and_output = 2 * self.hidden_size * self.num_heads * self.head_dim
        key_and_value = 2 * self.hidden_size * self.num_kv_heads * self.head_dim
        ffn = FEED_FORWARD_MATRICES[self.ffn] * self.hidden_size * self.ffn_size
        return 6.0 * (query_and_output + key_and_value + ffn) + 12.0 * self.num_heads * self.head_dim * sequence

    def head_flops_per_token(self) -> float:
        """The output head's part of `flops_per_token`."""
        return 6.0 * self.parameters_embedding

    def flops_per_token(self, sequence: int, *, causal: bool = False) -> float:
        """Model FLOPs per trained token: 6 N + 12 x layers x (num_heads x head_dim) x sequence.

        N excludes the input embedding (a table look-up multiplies nothing) but includes the head, tied or not, because its
        matrix product is computed either way. 6 and 12 are forward plus backward; recomputation is not counted. The attention
        term is full attention; `causal` halves it. Source: Chowdhery et al., PaLM (arXiv 2204.02311), appendix B.
        """
        matmul_parameters = self.parameters - (0 if self.tie_embeddings else self.parameters_embedding)
        attention = 12.0 * self.num_layers * self.num_heads * self.head_dim * sequence
        return 6.0 * matmul_parameters + (attention / 2 if causal else attention)
