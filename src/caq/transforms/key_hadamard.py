"""A fixed Hadamard matrix on queries and keys after RoPE, computed at run time where keys are quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from caq.options import Options
from caq.transforms.location import Location
from caq.transforms.spec import Edit, Placed, Subject


class KeyHadamard(Options):
    """Mix the channels of each head's queries and keys, which leaves their products as they are.

    It does nothing unless keys are quantized.
    """

    name: Literal["key-hadamard"] = "key-hadamard"
    learnable: ClassVar[bool] = False
    online: ClassVar[frozenset[Location]] = frozenset({Location.Q_ATTN, Location.K_CACHE})

    def place(self, subject: Subject) -> Iterator[Placed]:
        """Yield one Hadamard matrix a block, in blocks of a power of two."""
        from caq.families import Address
        from caq.transforms.maps.hadamard import Hadamard, online_block

        if subject.numerics.key is None:
            return
        for index, branches in enumerate(subject.bound.branches):
            for branch in branches:
                if branch.kind == "attention":
                    name, attention = f"block.{index}.key_hadamard", Address(branch.module, ())
                    edits = (
                        Edit(attention, Location.Q_ATTN, name, inverse=True),
                        Edit(attention, Location.K_CACHE, name),
                    )
                    yield Placed(name, Hadamard(online_block(subject.bound.shape.head_dim)), {index: edits})
