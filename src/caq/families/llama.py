"""Families that share LLaMA's layout: separate q/k/v, gate/up, two RMSNorms a block."""

from __future__ import annotations

from caq.families.spec import Attention, Family

LLAMA = Family(name="LLaMA", model_types=("llama",))
MISTRAL = Family(name="Mistral", model_types=("mistral", "ministral"))
QWEN2 = Family(name="Qwen2", model_types=("qwen2",))
QWEN3 = Family(
    name="Qwen3",
    model_types=("qwen3",),
    attention=Attention(query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"),
)
