"""Where a model's tensors come from, whatever holds them: memory today, files or other processes later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Weights(Protocol):
    """The tensors of one version of a model: its own, folded, or as they are stored."""

    def block(self, index: int) -> Mapping[str, Tensor]:
        """Return the tensors of block `index` by their names inside it."""

    def outer(self) -> Mapping[str, Tensor]:
        """Return the tensors outside of the blocks, embedding, final norm and head, by state-dict name."""
