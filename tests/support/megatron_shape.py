"""A small decoder whose sizes all differ, for maps between its parameters and Megatron-Core's."""

from parallel.shape import ModelShape

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=3,
    ffn_size=10,
    vocab_size=12,
    ffn="swiglu",
    tie_embeddings=False,
    qk_norm=True,
)
