"""Megatron-Core's GPT model for our shape record, with a norm and an attention of ours in its layers.

Its own norm without TransformerEngine refuses sequence parallelism, and its own attention knows no documents. Everything else
is Megatron-Core's: embedding, fused linears, rotary embedding, output, cross entropy.

Shape suffixes: B batch, S sequence, H query heads, K key/value heads, D head_dim; Megatron-Core has the sequence first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from parallel.attention.attend import attend
from parallel.engine.blueprint import Blueprint
from parallel.layout import Layout


class Norm(nn.RMSNorm):
    """RMSNorm whose gradient Megatron-Core sums over tensor ranks, each of which has a part of the sequence."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **others: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class Attention(nn.Module):
    """Causal attention within documents. Inputs (S, B, heads, D), output (S, B, heads x D).

    `attention_mask` are the pieces that say which query sees which keys (`parallel.attention.plan.encode`).
    """

    def __init__(self, config: TransformerConfig, **others: Any) -> None:
        super().__init__()
        self.scale: float = config.kv_channels**-0.5

    def forward(  # noqa: D102 - described by its class
        self, query_SBHD: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, attention_mask: Tensor, **others: Any
    ) -> Tensor:
        query_BHSD, key_BKSD, value_BKSD = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBHD, key_SBKD, value_SBKD))
        attended_BHSD = attend(query_BHSD, key_BKSD, value_BKSD, attention_mask, self.scale)
        return attended_BHSD.permute(2, 0, 1, 3).flatten(2).contiguous()


def transformer_config(blueprint: Blueprint, layout: Layout) -> TransformerConfig:
    """Megatron-Core's configuration of the model and the layout, without any of its fused kernels."""
    shape, composition = blueprint.shape, blueprint.composition
    bf16 = blueprint.compute_dtype == torch.bfloat16
    interleaved = layout.pipeline > 1 and composition.pipeline_schedule == "interleaved"
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_size,
        gated_linear_unit=shape.ffn == "swiglu",
        activation_func=F.silu if shape.ffn == "swiglu" else F.gelu,
        qk_layernorm=shape.qk_norm,
        normalization="RMSNorm",
        layernorm_epsilon=blueprint.norm_eps,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=composition.virtual_stages if interleaved else None,
        sequence_parallel=layout.tensor > 1,
        bf16=bf16,
        params_dtype=blueprint.compute_dtype,
        pipeline_dtype=blueprint.compute_dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
        calculate_per_token_loss=True,  # gradients are sums: our objective is divided by the tokens of the whole batch already
        recompute_granularity="full" if composition.recompute == "full" else None,
        recompute_method="uniform" if composition.recompute == "full" else None,
        recompute_num_layers=1 if composition.recompute == "full" else None,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        # Between two ranks a batch would hold messages both ways, and mix them up (Megatron-LM refuses it likewise).
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,
        deallocate_pipeline_outputs=False,
    )


def gpt_model(config: TransformerConfig, blueprint: Blueprint, *, first: bool, last: bool, chunk: int | None) -> GPTModel:
    """This rank's stage of the model; under virtual stages its `chunk`-th."""
    shape = blueprint.shape
    layer = get_gpt_layer_local_spec(qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = Attention
    attention.q_layernorm = attention.k_layernorm = Norm if shape.qk_norm else IdentityOp
    layers = TransformerBlockSubmodules([layer] * get_num_layers_to_build(config, vp_stage=chunk), layer_norm=Norm)
    return GPTModel(
        config,
        layers,
        vocab_size=shape.vocab_size,
        max_sequence_length=blueprint.sequence,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=shape.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=blueprint.rope_theta,
        vp_stage=chunk,
    )
