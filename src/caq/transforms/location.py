"""Where a map or a number format acts on a module: compressed-tensors' six locations. Imports no torch."""

from __future__ import annotations

from enum import StrEnum


class Location(StrEnum):
    """The first two are folded into weights; the others run online, on activations."""

    WEIGHT_INPUT = "weight_input"
    WEIGHT_OUTPUT = "weight_output"
    INPUT = "input"
    OUTPUT = "output"
    Q_ATTN = "q_attn"
    K_CACHE = "k_cache"


#: Queries and keys are seen after RoPE, inside the attention.
ATTENTION = frozenset({Location.Q_ATTN, Location.K_CACHE})
ONLINE = frozenset({Location.INPUT, Location.OUTPUT}) | ATTENTION
