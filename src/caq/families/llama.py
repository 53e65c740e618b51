"""Families that share LLaMA's layout: separate q/k/v, gate/up, two RMSNorms a block."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from caq.families.spec import Address, Branch, Family, Norm, Pair, Shape, shape_of


def llama_block(config: PretrainedConfig, index: int) -> tuple[Branch, ...]:
    """Return LLaMA's two branches; all blocks are alike."""
    shape = shape_of(config)
    return (_attention(shape), _mlp(shape))


def qwen3_block(config: PretrainedConfig, index: int) -> tuple[Branch, ...]:
    """Return LLaMA's branches, with queries and keys normalised per head: one gain serves every head of each."""
    attention, mlp = llama_block(config, index)
    size = shape_of(config).head_dim
    query, key = (Norm(f"self_attn.{name}_norm", size) for name in "qk")
    inner = tuple(
        replace(pair, writer=key, reader=query, heads=1) if pair.kind == "query-key" else pair
        for pair in attention.inner
    )
    return replace(attention, inner=inner), mlp


def _attention(shape: Shape) -> Branch:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    query = Address("self_attn.q_proj", (queries, shape.hidden))
    key = Address("self_attn.k_proj", (keys, shape.hidden))
    value = Address("self_attn.v_proj", (keys, shape.hidden))
    output = Address("self_attn.o_proj", (shape.hidden, queries))
    return Branch(
        kind="attention",
        module="self_attn",
        norm=Norm("input_layernorm", shape.hidden),
        reads=(query, key, value),
        inner=(
            Pair("value-output", value, output, shape.kv_heads, shape.head_dim),
            Pair("query-key", key, query, shape.kv_heads, shape.head_dim),
        ),
        writes=output,
    )


def _mlp(shape: Shape) -> Branch:
    gate = Address("mlp.gate_proj", (shape.intermediate, shape.hidden))
    up = Address("mlp.up_proj", (shape.intermediate, shape.hidden))
    down = Address("mlp.down_proj", (shape.hidden, shape.intermediate))
    return Branch(
        kind="mlp",
        module="mlp",
        norm=Norm("post_attention_layernorm", shape.hidden),
        reads=(gate, up),
        inner=(Pair("up-down", up, down, 1, shape.intermediate),),
        writes=down,
    )


LLAMA = Family("LLaMA", ("llama",), llama_block)
MISTRAL = Family("Mistral", ("mistral", "ministral"), llama_block)
QWEN2 = Family("Qwen2", ("qwen2",), llama_block)
QWEN3 = Family("Qwen3", ("qwen3",), qwen3_block)
