"""The sizes of a model, read from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """The sizes that transforms need, in elements."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    layers: int


def shape_of(config: PretrainedConfig) -> Shape:
    """Read the sizes from a Transformers configuration."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    return Shape(
        hidden=hidden,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        layers=config.num_hidden_layers,
    )
