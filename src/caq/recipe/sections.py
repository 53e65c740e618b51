"""The sections of a recipe: one frozen, validated class per part of a run. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
)

from caq.errors import nearest
from caq.options import Options, Positive, PositiveFloat

# compressed-tensors' preset names without its no-op; a test keeps them equal to the library's, whose
# import would bring in torch.
SCHEMES = (
    *("W4A4", "W4A4_G128", "W4A8", "W4A16", "W4A16_ASYM", "W8A8", "INT8", "W4AFP8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK"),
    *("NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP4XFP8", "MXFP6A16", "MXFP6A8", "MXFP8A16", "MXFP8"),
    *(
        "W2A4",
        "W2A8",
        "W2A16",
        "W3A4",
        "W3A8",
        "W3A16",
        "W5A8",
        "W5A16",
        "W6A8",
        "W6A16",
        "W7A8",
        "W7A16",
        "W8A16",
    ),
)

#: As `data.text`: the aligned model's own responses.
SELF = "self"

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 16]


def _scheme(name: object) -> object:
    if isinstance(name, str) and name.upper() not in SCHEMES:
        raise ValueError(f"unknown scheme{nearest(name, SCHEMES)}")
    return name.upper() if isinstance(name, str) else name


def _objective(name: object) -> object:
    return "cal" if name == "apc" else name


class SchemeRecipe(Options):
    """The numbers that stand for weights, activations, values and keys.

    Attributes:
        preset: a compressed-tensors preset name, or `W4A4` as in the paper (per channel, per token).
        activations_symmetric: overrides the preset; None leaves it as it is.
        output_projection_groups: quantize o_proj's input in groups of head_dim instead of per token.
        value_bits: bits of v in the cache; 16 leaves it alone.
        key_bits: bits of k in the cache; 16 leaves it alone.
    """

    preset: Annotated[str, BeforeValidator(_scheme)] = "W4A4"
    activations_symmetric: bool | None = None
    output_projection_groups: bool = False
    value_bits: Bits = 16
    key_bits: Bits = 16

    @property
    def weight_only(self) -> bool:
        """Whether activations stay in 16 bits."""
        return self.preset.removesuffix("_ASYM").endswith("A16")


class TransformRecipe(Options):
    """Which transforms of method.md §4 are used, and whether they are learned.

    Attributes:
        residual: how the residual rotation starts, or that there is none.
        learn: optimise the transforms; otherwise they stay as they start.
        scale_norms: `S_attn`, `S_ffn` after each norm.
        rotate_value_output: `R_ov` per KV head.
        scale_value_output: `S_ov`.
        scale_query_key: `S_qk`, one scale per RoPE pair.
        scale_up_down: `S_updown`.
        online_down_hadamard: the fixed Hadamard on down_proj's input, computed at run time.
    """

    residual: Literal["womi", "hadamard", "none"] = "womi"
    learn: bool = True
    scale_norms: bool = True
    rotate_value_output: bool = True
    scale_value_output: bool = True
    scale_query_key: bool = True
    scale_up_down: bool = True
    online_down_hadamard: bool = True

    @property
    def learnable(self) -> bool:
        """Whether any transform that has parameters is on."""
        scalings = self.scale_norms or self.scale_value_output or self.scale_query_key or self.scale_up_down
        return self.residual != "none" or self.rotate_value_output or scalings


class ObjectiveRecipe(Options):
    """The loss that the transforms are learned under (arXiv:2511.07842, eq. in method.md §2–3).

    Attributes:
        name: one of the six; `apc`, the paper's older name, is read as `cal`.
        alpha: weight of the push away from the base.
        pull_k: size of `S_top`.
        push_k: size of `S_diff`, or of the base's top-K.
        difference: what `S_diff` ranks: |p_FT − p_PT| (paper) or the logits' (the authors' code).
        renormalize: softmax restricted to S (paper); otherwise full softmax, then gather (the authors' code).
    """

    name: Annotated[
        Literal["mse", "kl", "kl-top", "contrastive-kl", "contrastive-kl-top", "cal"],
        BeforeValidator(_objective),
    ] = "cal"
    alpha: Annotated[float, Field(ge=0)] = 0.75
    pull_k: Positive = 500
    push_k: Positive = 500
    difference: Literal["probability", "logit"] = "probability"
    renormalize: bool = True

    @property
    def needs_base(self) -> bool:
        """Whether the loss compares with the pre-trained base."""
        return self.name in ("contrastive-kl", "contrastive-kl-top", "cal")


class QuantizerRecipe(Options):
    """How weights are rounded.

    Attributes:
        name: `rtn` or `gptq`.
        block_size: columns that GPTQ quantizes before it updates the rest.
        damping: share of the Hessian's mean diagonal that is added to it.
        max_damping: where escalation after a failed Cholesky ends and the run fails.
        clip_search: search the clip that minimises the weights' error.
        clip_norm: the error's exponent.
        clip_steps: clips tried.
        quantized_statistics: Hessians from quantized activations rather than full-precision ones.
        samples: calibration sequences for the Hessians; None takes all of `data.samples`.
    """

    name: Literal["rtn", "gptq"] = "gptq"
    block_size: Positive = 128
    damping: PositiveFloat = 0.01
    max_damping: PositiveFloat = 1.0
    clip_search: bool = True
    clip_norm: PositiveFloat = 2.4
    clip_steps: Positive = 80
    quantized_statistics: bool = True
    samples: Positive | None = None


class DataRecipe(Options):
    """The calibration data.

    Attributes:
        text: a text file; a .jsonl, .json or .parquet file or a data set's directory, whose rows hold `text`,
            `messages` or `conversations`; a name in `caq.data.SOURCES`, such as `wikitext2`; or `self`, which is what
            the aligned model answers to prompts.
        prompts: for `self`: one prompt a line, or .jsonl with `prompt`; None takes the bundled, generic ones. Not those
            that the result is measured on.
        samples: sequences.
        length: tokens per sequence.
        allow_short: go on, with an entry in the ledger, when there is less text than asked for.
    """

    text: Annotated[str, Field(min_length=1)] = "wikitext2"
    prompts: Annotated[str, Field(min_length=1)] | None = None
    samples: Positive = 128
    length: Annotated[int, Field(ge=2)] = 2048
    allow_short: bool = False


class TrainingRecipe(Options):
    """How the transforms are optimised.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences per step.
        micro_batch_size: sequences per forward pass; a step accumulates over them.
        rotation_learning_rate: for the rotations, decaying linearly to 0.
        scaling_learning_rate: for the scalings, decaying linearly to 0.
        gradient_clip: largest gradient norm.
        quantize_weights: fake-quantize the weights too while learning.
        dtype: of activations and effective weights.
        gradient_checkpointing: recompute each block in the backward pass; a third slower, one block's memory.
        evaluate_every: steps between looks at the validation sequences.
        validation_samples: sequences of `data.samples` that are kept from learning.
        keep: which step's parameters are folded: the one with the lowest pull term on the validation sequences, or
            the last, whatever became of the pull (what the paper and its code do; their ablations need it).
    """

    steps: Positive = 100
    batch_size: Positive = 4
    micro_batch_size: Positive = 1
    rotation_learning_rate: PositiveFloat = 0.01
    scaling_learning_rate: PositiveFloat = 0.01
    gradient_clip: PositiveFloat = 1.0
    quantize_weights: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = True
    evaluate_every: Positive = 10
    validation_samples: Positive = 4
    keep: Literal["best", "last"] = "best"
