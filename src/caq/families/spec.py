"""What a model family is: where its tensors live. Declarative; no code runs per family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """Paths inside one block, relative to it.

    Attributes:
        norm: the RMSNorm whose output query, key and value read.
        query, key, value: linears that read the norm's output.
        output: linear that reads the attention's output and writes the residual stream.
        query_norm, key_norm: per-head RMSNorms between the projection and RoPE, where the family has them.
    """

    norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    module: str = "self_attn"

    @property
    def readers(self) -> tuple[str, ...]:
        """The linears that read the norm's output."""
        return (self.query, self.key, self.value)


@dataclass(frozen=True)
class Mlp:
    """Paths of a gated MLP inside one block: `down(act(gate(x)) * up(x))`."""

    norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    @property
    def readers(self) -> tuple[str, ...]:
        """The linears that read the norm's output."""
        return (self.gate, self.up)


@dataclass(frozen=True)
class Family:
    """A decoder family with one residual stream, pre-norms of RMSNorm kind and a gated MLP.

    Attributes:
        name: the name shown to people.
        model_types: `config.model_type` values this spec describes.
        layers, embedding, final_norm, head: paths from the causal language model.
        attention, mlp: the two branches of a block.
    """

    name: str
    model_types: tuple[str, ...]
    attention: Attention = Attention()
    mlp: Mlp = Mlp()
    decoder: str = "model"
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
