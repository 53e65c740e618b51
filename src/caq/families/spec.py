"""What a model family is: its sizes, and where its tensors are. Paths are inside a block unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig

#: Between which two tensors of a branch a map can act: the second reads what the first writes.
PairKind = Literal["value-output", "query-key", "up-down"]


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


@dataclass(frozen=True)
class Norm:
    """An RMSNorm; its gain is `weight + offset`, where some families store the gain less one.

    Attributes:
        path: of the module.
        size: elements of the gain.
        offset: of the stored weight.
    """

    path: str
    size: int
    offset: float = 0.0


@dataclass(frozen=True)
class Address:
    """A linear's weight, or some rows of one.

    Attributes:
        path: of the module that holds `weight` and perhaps `bias`.
        shape: of the whole weight, out by in.
        rows: first and last of a fused projection's rows, the last excluded; None is all of them.
        quantized: whether its weight is rounded; what routes tokens to experts is not.
    """

    path: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    quantized: bool = True


@dataclass(frozen=True)
class Pair:
    """Two tensors of a branch between which a map can act without a change of function.

    `value-output`: any invertible map of each head, applied to the writer's output and undone in the reader. `up-down`:
    one factor a channel. `query-key`: factors on the writer's output and their inverses on the reader's, equal within
    the pairs of channels that RoPE mixes.

    Attributes:
        kind: which of the three.
        writer, reader: the two; norms where queries and keys are normalised after their projections.
        heads: equal parts of the writer's output, each with a map of its own.
        size: channels of a part.
    """

    kind: PairKind
    writer: Address | Norm
    reader: Address | Norm
    heads: int
    size: int


@dataclass(frozen=True)
class Branch:
    """One branch of a block: it reads the residual stream through a norm, and adds what it writes to it.

    Attributes:
        kind: `attention` sees keys and values, which can be quantized as the cache would hold them.
        module: of the whole branch.
        norm: whose output all of `reads` read.
        reads: linears that read the norm's output.
        inner: pairs inside the branch.
        writes: the linear that writes the stream.
        post_norm: between the writer and the stream, where the family has one; the stream cannot be rotated then.
    """

    kind: Literal["attention", "mlp"]
    module: str
    norm: Norm
    reads: tuple[Address, ...]
    inner: tuple[Pair, ...]
    writes: Address
    post_norm: Norm | None = None

    def pair(self, kind: PairKind) -> Pair | None:
        """Return the pair of a kind, or None if the branch has none."""
        return next((pair for pair in self.inner if pair.kind == kind), None)


@dataclass(frozen=True)
class Family:
    """A decoder family with one residual stream.

    Attributes:
        name: the name shown to people.
        model_types: `config.model_type` values that this spec describes.
        block: the branches of a block, in order, from the configuration and the block's index.
        layers, embedding, final_norm, head: paths from the causal language model.
        norm_offset: of the final norm's stored weight, as in `Norm`.
    """

    name: str
    model_types: tuple[str, ...]
    block: Callable[[PretrainedConfig, int], tuple[Branch, ...]]
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    norm_offset: float = 0.0

    def inputs(self, config: PretrainedConfig) -> dict[int, tuple[str, ...]]:
        """Return how many inputs the linears that are quantized have, each number with the paths of its linears."""
        found: dict[int, dict[str, None]] = {}
        branches = (branch for index in range(config.num_hidden_layers) for branch in self.block(config, index))
        for address in (address for branch in branches for address in (*branch.reads, branch.writes)):
            if address.quantized:
                found.setdefault(address.shape[-1], {})[address.path] = None
        return {features: tuple(paths) for features, paths in found.items()}
